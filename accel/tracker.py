"""Memory by tensor lifetimes: who is alive when, measured or simulated.

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


class Tracker(TorchDispatchMode):
    """Follows live tensors while active. ``peak``: most bytes alive at once, ``at``: the operation
    that reached it, ``live``: bytes alive now. ``hold`` counts a tensor made before.

    Tensors elsewhere than on ``device`` are not counted, if it is given. A copy from the meta
    device to the CPU stays on meta, where its shape is known, but is elsewhere from then on, and so
    is what is made of such tensors alone.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.at = ""
        self._device = device
        self._known: dict[int, int] = {}
        self._elsewhere: set[int] = set()

    def hold(self, tree: Any, at: str = "inputs") -> None:
        """Count every tensor of ``tree`` until it is freed, each storage once."""
        for tensor in _tensors(tree):
            here = self._device is None or tensor.device == self._device
            if here and tensor.layout is torch.strided:
                self._count(tensor, at)

    def _count(self, tensor: Tensor, at: str, elsewhere: bool = False) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = self._known[key] = 0 if elsewhere else storage.nbytes()
        if elsewhere:
            self._elsewhere.add(key)
        self.live += size
        if self.live > self.peak:
            self.peak, self.at = self.live, at
        weakref.finalize(storage, self._free, key)

    def ignore(self, tree: Any) -> None:
        """Never count these tensors: weights."""
        for tensor in _tensors(tree):
            self._known[tensor.untyped_storage()._cdata] = 0

    def _free(self, key: int) -> None:
        self.live -= self._known.pop(key, 0)
        self._elsewhere.discard(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves_meta = func is torch.ops.aten._to_copy.default and _leaves_meta(args[0], kwargs)
        out = func(*args, **({**kwargs, "device": args[0].device} if leaves_meta else kwargs))
        if leaves_meta or (self._elsewhere and self._all_elsewhere((args, kwargs))):
            for tensor in _tensors(out):
                self._count(tensor, func.__name__, elsewhere=True)
        else:
            self.hold(out, func.__name__)
        return out

    def _all_elsewhere(self, given: Any) -> bool:
        keys = [x.is_meta and x.untyped_storage()._cdata for x in _tensors(given)]
        return bool(keys) and self._elsewhere.issuperset(keys)


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in leaves(tree) if isinstance(x, Tensor)]


def _leaves_meta(tensor: Tensor, kwargs: Any) -> bool:
    device = kwargs.get("device")
    return tensor.is_meta and device is not None and torch.device(device).type != "meta"


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
    operation that reached it. Counted are tensors on the device of the inputs.
    """
    tracker = Tracker(next((x.device for x in _tensors(inputs)), None))
    tracker.ignore(weights)
    tracker.hold(inputs)
    with torch.no_grad(), fused(), tracker:
        run()
    return tracker.peak, tracker.at
