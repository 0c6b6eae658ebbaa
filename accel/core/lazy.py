"""Stands for a tensor until somebody looks at it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from accel.core.tree import tree_map


class Lazy:
    """What a subclass does not do itself is done to the ``whole`` tensor."""

    def whole(self) -> Tensor:
        """The tensor."""
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
