"""Memory of a model's activations: measured by tensor lifetimes, or simulated without weights.

``Tracker`` follows the storage of every tensor that an operation makes until it is freed, on any
device. On the meta device nothing is computed and nothing allocated, so the same code run there
gives the peak of a model nobody has downloaded. Counted are live tensor bytes: no weights, no
scratch memory of kernels, no fragmentation of an allocator.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from accel.slicing.record import leaves

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
          "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}  # fmt: skip


def parse_bytes(text: str | int) -> int:
    """Bytes of "8GiB", "500 MB" or a number. Raises ValueError for anything else."""
    if isinstance(text, int):
        return text
    digits = text.strip().rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
    unit = text.strip()[len(digits) :].strip().upper()
    try:
        return int(float(digits) * _UNITS[unit])
    except (ValueError, KeyError):
        raise ValueError(f"memory must look like '8GiB' or '500MB', got {text!r}") from None


class Tracker(TorchDispatchMode):
    """Follows live tensors while active. ``peak``: most bytes alive at once, ``at``: the operation
    that reached it, ``live``: bytes alive now. ``hold`` counts a tensor made before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.at = ""
        self._known: dict[int, int] = {}

    def hold(self, tree: Any, at: str = "inputs") -> None:
        """Count every tensor of ``tree`` until it is freed, each storage once."""
        for tensor in leaves(tree):
            if isinstance(tensor, Tensor) and tensor.layout is torch.strided:
                self._count(tensor, at)

    def _count(self, tensor: Tensor, at: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = self._known[key] = storage.nbytes()
        self.live += size
        if self.live > self.peak:
            self.peak, self.at = self.live, at
        weakref.finalize(storage, self._free, key)

    def ignore(self, tree: Any) -> None:
        """Never count these tensors: weights."""
        for tensor in leaves(tree):
            if isinstance(tensor, Tensor):
                self._known[tensor.untyped_storage()._cdata] = 0

    def _free(self, key: int) -> None:
        self.live -= self._known.pop(key, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.hold(out, func.__name__)
        return out


@contextmanager
def fused() -> Iterator[None]:
    """On the meta device attention and RMS norm make nothing but their result, as fused kernels do.

    Attention lays its result out [B, T, H, D] in memory, like torch's flash kernels.
    """
    attention, rms_norm = F.scaled_dot_product_attention, F.rms_norm

    def lean_attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kw: Any) -> Tensor:
        if query.device.type != "meta":
            return attention(query, key, value, *args, **kw)
        *batch, heads, tokens = query.shape[:-1]
        return query.new_empty(*batch, tokens, heads, value.shape[-1]).transpose(-3, -2)

    def lean_rms_norm(input: Tensor, *args: Any, **kw: Any) -> Tensor:
        return torch.empty_like(input) if input.is_meta else rms_norm(input, *args, **kw)

    F.scaled_dot_product_attention, F.rms_norm = lean_attention, lean_rms_norm
    try:
        yield
    finally:
        F.scaled_dot_product_attention, F.rms_norm = attention, rms_norm


def activation_peak(run: Callable[[], Any], inputs: Any, weights: Any) -> tuple[int, str]:
    """Most bytes alive while ``run`` runs, ``inputs`` included and ``weights`` not, and the
    operation that reached it.
    """
    tracker = Tracker()
    tracker.ignore(weights)
    tracker.hold(inputs)
    with torch.no_grad(), fused(), tracker:
        run()
    return tracker.peak, tracker.at
