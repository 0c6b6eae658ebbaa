"""Memory by tensor lifetimes: which tensors are alive when, measured or simulated.

``Tracker`` follows the storage of every tensor that an operation makes until it is freed, on any
device. On the meta device nothing is computed or allocated, so the same code gives the peak of a
model that nobody has downloaded. Counted are bytes of live tensors: no weights, no scratch memory
of kernels, no fragmentation of an allocator.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental import _config as config
from torch.utils._python_dispatch import TorchDispatchMode

from accel.core.tree import leaves


class Tracker(TorchDispatchMode):
    """Counts live tensors while it is active.

    ``peak`` is the most bytes alive at once, ``at`` the operation that reached it, and ``live`` the
    bytes alive now. ``hold`` counts a tensor made before.

    With a ``device``, only tensors on it are counted. A copy from the meta device to the CPU stays
    on meta, where its shape is known, but counts as elsewhere from then on. So does what is made of
    such tensors alone.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.at = ""
        self._device = device
        self._known: dict[int, int] = {}
        self._elsewhere: set[int] = set()
        self._derived: dict[Any, tuple[tuple[Any, ...], ...]] = {}

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
        """Never count the tensors of ``tree``, such as weights."""
        for tensor in _tensors(tree):
            self._known[tensor.untyped_storage()._cdata] = 0

    def _free(self, key: int) -> None:
        self.live -= self._known.pop(key, 0)
        self._elsewhere.discard(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves_meta = func is torch.ops.aten._to_copy.default and _leaves_meta(args[0], kwargs)
        out = self._made(func, args, {**kwargs, "device": "meta"} if leaves_meta else kwargs)
        if leaves_meta or (self._elsewhere and self._all_elsewhere((args, kwargs))):
            for tensor in _tensors(out):
                self._count(tensor, func.__name__, elsewhere=True)
        else:
            self.hold(out, func.__name__)
        return out

    def _made(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return the result of an operation.

        On meta, the sizes of a result follow from those of the arguments, and torch derives them in
        slow Python. So they are derived once for equal arguments.
        """
        try:
            key = (func, _sizes(args), _sizes(kwargs)) if _makes_new(func) else None
            known = self._derived.get(key) if key else None
        except (_Values, TypeError):  # the latter for arguments that cannot be hashed
            key = known = None
        if known is not None:
            made = [torch.empty_strided(*size, dtype=d, device="meta") for *size, d in known]
            return made[0] if len(made) == 1 else tuple(made)
        out = func(*args, **kwargs)
        outs = out if isinstance(out, tuple) else (out,)
        if key and all(isinstance(x, Tensor) and x.is_meta for x in outs):
            self._derived[key] = tuple((x.shape, x.stride(), x.dtype) for x in outs)
        return out

    def _all_elsewhere(self, given: Any) -> bool:
        keys = [x.is_meta and x.untyped_storage()._cdata for x in _tensors(given)]
        return bool(keys) and self._elsewhere.issuperset(keys)


class _Values(Exception):
    """One of the arguments is a tensor with values."""


def _sizes(tree: Any) -> Any:
    """Return a hashable value of all sizes that the sizes of a result can depend on.

    Raises _Values for tensors that are not on meta.
    """
    if isinstance(tree, Tensor):
        if not tree.is_meta:
            raise _Values
        return Tensor, tree.shape, tree.stride(), tree.dtype
    if isinstance(tree, (tuple, list)):
        return tuple(_sizes(leaf) for leaf in tree)
    if isinstance(tree, dict):
        return tuple((name, _sizes(leaf)) for name, leaf in tree.items())
    return type(tree), tree


@functools.cache
def _makes_new(func: Any) -> bool:
    """Return whether all results are new tensors: no views, none written in place."""
    schema = func._schema
    return not any(x.alias_info for x in [*schema.arguments, *schema.returns]) and all(
        isinstance(x.type, torch.TensorType) for x in schema.returns
    )


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in leaves(tree) if isinstance(x, Tensor)]


def _leaves_meta(tensor: Tensor, kwargs: Any) -> bool:
    device = kwargs.get("device")
    return tensor.is_meta and device is not None and torch.device(device).type != "meta"


def all_true() -> AbstractContextManager[Any]:
    """Return a context in which masks on the meta device count as all true.

    Mochi's attention reads from its mask which text tokens it keeps.
    """
    return config.patch(meta_nonzero_assume_all_nonzero=True)  # type: ignore[attr-defined]


@contextmanager
def fused() -> Iterator[None]:
    """Make attention and RMS norm on meta allocate only their result, as fused kernels do.

    Attention lays its result out as [B, T, H, D] in memory, like torch's flash kernels.
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
    """Return the most bytes alive while ``run`` runs, and the operation that reached them.

    ``inputs`` are included, ``weights`` are not. Only tensors on the device of the inputs count.
    """
    tracker = Tracker(next((x.device for x in _tensors(inputs)), None))
    tracker.ignore(weights)
    tracker.hold(inputs)
    with torch.no_grad(), fused(), all_true(), tracker:
        run()
    return tracker.peak, tracker.at
