"""A stand-in for a video that VAEs join piece by piece."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from accel.core.lazy import Lazy


class LazyVideo(Lazy):
    """Frames [B, C, T, H, W] that are made when code looks at them, then always the same tensor.

    A subclass may join with others along T without being looked at.
    """

    @classmethod
    def joined(cls, parts: Sequence[Any]) -> LazyVideo | None:
        """Return ``parts`` joined along T, or None if they must be looked at for that."""
        raise NotImplementedError

    def __setitem__(self, key: Any, value: Any) -> None:
        self.whole()[key] = value

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        along = args[1:] or tuple((kwargs or {}).values())
        if func is torch.cat and along == (2,):
            video = cls.joined(list(args[0]))
            if video is not None:
                return video
        return super().__torch_function__(func, types, args, kwargs)
