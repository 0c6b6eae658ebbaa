"""A stand-in for a tensor that is made only when code looks at it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from accel.core.tree import tree_map


class Lazy:
    """Base class that forwards everything a subclass does not define to the ``whole`` tensor."""

    def whole(self) -> Tensor:
        """Return the tensor that this object stands for."""
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.whole(), name)

    def __getitem__(self, key: Any) -> Tensor:
        return self.whole()[key]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def leaf(x: Any) -> Any:
            return x.whole() if isinstance(x, Lazy) else x

        return func(*tree_map(leaf, args), **tree_map(leaf, kwargs or {}))
