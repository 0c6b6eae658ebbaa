"""Run real code at full size without its memory: large tensors have sizes, small ones also values.

A pipeline reads values of small tensors: timesteps, token ids, masks, sizes of pictures. Of large
ones, such as latents, pictures and weights, it needs only the sizes. So under ``SmallValues`` every
tensor of more than ``most`` elements lives on the meta device, whatever device was asked for, and
every smaller one on the CPU.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from accel.core.tree import leaves, tree_map

MOST = 2**16  # elements of a tensor that keeps its values

_aten = torch.ops.aten
_INDEXED = (_aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default)


class SmallValues(TorchDispatchMode):
    """Keeps values of tensors with up to ``most`` elements, and only sizes of others.

    A value that is read from a tensor without values is 0.
    """

    def __init__(self, most: int = MOST) -> None:
        super().__init__()
        self._most = most

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [x for x in leaves((args, kwargs)) if isinstance(x, Tensor)]
        unknown = any(x.is_meta for x in tensors)
        if func is _aten._local_scalar_dense.default and unknown:
            return torch.zeros((), dtype=tensors[0].dtype, device="cpu").item()
        if func is _aten.equal.default and unknown:
            return tensors[0].shape == tensors[1].shape
        if unknown or self._large(func, args, kwargs):
            return _on_meta(func, args, kwargs)
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("cpu")
        return func(*args, **kwargs)

    def _large(self, func: Any, args: Any, kwargs: Any) -> bool:
        if _writes(func):
            return False
        try:
            out = _on_meta(func, args, kwargs)
        except (RuntimeError, NotImplementedError):  # its size depends on values: it is small
            return False
        sizes = [x.numel() for x in leaves(out) if isinstance(x, Tensor)]
        return max(sizes, default=0) > self._most


def _on_meta(func: Any, args: Any, kwargs: Any) -> Any:
    """Return the result of an operation without values."""
    if _writes(func) and not args[0].is_meta:
        return args[0]  # a small tensor that unknown values are written to keeps its own
    if func in _INDEXED:
        args = (args[0], _positions(args[1]), *args[2:])
    args, kwargs = tree_map(without_values, (args, kwargs))
    if "device" in kwargs or not any(isinstance(x, Tensor) for x in leaves((args, kwargs))):
        kwargs["device"] = torch.device("meta")
    if "generator" in kwargs:
        kwargs["generator"] = None
    return func(*args, **kwargs)


def without_values(x: Any) -> Any:
    if not isinstance(x, Tensor) or x.is_meta:
        return x
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


def _positions(indices: Any) -> list[Any]:
    """Replace masks that have values by the positions they select."""
    found: list[Any] = []
    for index in indices:
        if isinstance(index, Tensor) and index.dtype == torch.bool and not index.is_meta:
            found += index.nonzero(as_tuple=True)
        else:
            found.append(index)
    return found


def _writes(func: Any) -> bool:
    first = func._schema.arguments[:1]
    return any(x.alias_info is not None and x.alias_info.is_write for x in first)


def called(denoiser: Any, kwargs: dict[str, Any]) -> Any:
    """Return what a denoiser returns; on meta, arguments that have values keep them."""
    given = [x for x in leaves(kwargs) if isinstance(x, Tensor)]
    mixed = len({x.is_meta for x in given}) > 1
    with SmallValues() if mixed else nullcontext():
        return denoiser(**kwargs, return_dict=False)
