"""The operators that code runs, counted while it runs on the meta device.

An operator is what its time depends on: a kind, a dtype and sizes. Equal ones are counted once with
their number. Attention and RMS norm are counted as what torch is asked for. Operators that only
look at memory in another way, and calls of modules, are counted as glue: each costs little, but
there are many.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from accel.core.tree import leaves
from accel.memory.seconds.operator_kinds import FREE, OTHER, is_view, kind_of
from accel.memory.tracker import Tracker, all_true, fused

GLUE = "glue"
Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Operator:
    """What the time of an operator depends on.

    ``sizes``: of "matmul" rows, columns and inner; of "attention" heads of all samples, queries,
    keys and head size; of "conv" pixels of the result (of "transposed" ones, of the input), output
    channels and input channels of one group; of others bytes. ``flops`` counts a multiply-add as
    two, ``nbytes`` is what is read and written. ``shape`` of a convolution: its input, weight,
    stride, padding, and groups. ``name`` is torch's own name of an operator of kind "other".
    """

    kind: str
    dtype: str
    sizes: tuple[int, ...]
    flops: int = 0
    nbytes: int = 0
    name: str = ""
    shape: tuple[tuple[int, ...], ...] = ()

    @property
    def table(self) -> str:
        """The name of the table of times that has it."""
        return f"{self.kind} {self.dtype}".strip()

    @property
    def key(self) -> str:
        """A text that is equal for operators that take the same time."""
        sizes = self.shape or (self.sizes,)
        return " ".join([self.table, *(",".join(map(str, part)) for part in sizes)])


Counts = Mapping[Operator, int]


@dataclass
class Counted:
    """Operators with their numbers: those of attention modules and linear layers, and the rest."""

    rest: Counter[Operator] = field(default_factory=Counter)
    attention: dict[str, Counter[Operator]] = field(default_factory=dict)
    linear: dict[str, Counter[Operator]] = field(default_factory=dict)

    def all(self) -> Counter[Operator]:
        """Return all operators."""
        found = Counter(self.rest)
        for sites in (self.attention, self.linear):
            for counts in sites.values():
                found.update(counts)
        return found

    @property
    def flops(self) -> int:
        """Floating-point operations of all."""
        return sum(op.flops * n for op, n in self.all().items())


def count(
    run: Callable[[], Any],
    attention: Mapping[str, nn.Module] | None = None,
    linear: Mapping[str, nn.Module] | None = None,
) -> Counted:
    """Return the operators that ``run`` runs on the meta device.

    ``attention`` and ``linear`` are the modules whose attention and products are told apart, by
    name.
    """
    mode = _Mode()
    hooks = [register_module_forward_pre_hook(mode.module)]
    for sites, stack in ((attention, mode.attention), (linear, mode.linear)):
        for name, module in (sites or {}).items():
            hooks += _named(module, name, stack)
    try:
        with torch.no_grad(), fused(), mode.noting(), all_true(), Tracker(), mode:
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return mode.counted


def _named(module: nn.Module, name: str, stack: list[str]) -> list[Any]:
    """Keep a module's name on a stack while it runs."""

    def enter(*given: Any) -> None:
        stack.append(name)

    def leave(*given: Any) -> None:
        stack.pop()

    return [
        module.register_forward_pre_hook(enter),
        module.register_forward_hook(leave, always_call=True),
    ]


class _Mode(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counted = Counted()
        self.attention: list[str] = []
        self.linear: list[str] = []
        self._inside = False  # an operator that is counted as a whole

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        operator = None if self._inside else operator_of(func, args, kwargs or {}, out)
        if operator is not None:
            self._add(operator, self.counted.linear, self.linear)
        return out

    def _whole(self, function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Run a function without counting what it is made of."""
        self._inside = True
        try:
            return function(*args, **kwargs)
        finally:
            self._inside = False

    def _add(
        self, operator: Operator, sites: dict[str, Counter[Operator]], stack: list[str]
    ) -> None:
        own = stack and operator.kind in ("matmul", "attention")
        where = sites.setdefault(stack[-1], Counter()) if own else self.counted.rest
        where[operator] += 1

    def module(self, *given: Any) -> None:
        """Count the call of a module."""
        self.counted.rest[Operator(GLUE, "", ())] += 1

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Count attention and RMS norm where they are asked for."""
        attention, rms_norm = F.scaled_dot_product_attention, F.rms_norm

        def attend(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kw: Any) -> Tensor:
            out = self._whole(attention, query, key, value, *args, **kw)
            self._add(attention_of(query, key, value), self.counted.attention, self.attention)
            return out

        def norm(input: Tensor, *args: Any, **kw: Any) -> Tensor:
            out = self._whole(rms_norm, input, *args, **kw)
            self.counted.rest[_stream("rms_norm", [input, out])] += 1
            return out

        F.scaled_dot_product_attention, F.rms_norm = attend, norm
        try:
            yield
        finally:
            F.scaled_dot_product_attention, F.rms_norm = attention, rms_norm


def attention_of(query: Tensor, key: Tensor, value: Tensor) -> Operator:
    """Return the operator of attention; query [..., Tq, D], key [..., Tk, D], value [..., Tk, Dv].

    A mask counts for nothing: kernels compute what it hides.
    """
    heads, (queries, size) = math.prod(query.shape[:-2]), query.shape[-2:]
    keys, width = key.shape[-2], value.shape[-1]
    flops = 2 * heads * queries * keys * (size + width)
    nbytes = 2 * query.nbytes + key.nbytes + value.nbytes
    sizes = (heads, queries, keys, (size + width) // 2)
    return Operator("attention", _dtype(query), sizes, flops, nbytes)


def operator_of(func: Any, args: Any, kwargs: Any, out: Any) -> Operator | None:
    """Return the operator of one call of torch, None for one that costs nothing."""
    name = str(func._schema.name).rpartition("::")[2].removesuffix("_")
    if name.startswith(FREE):
        return None
    if is_view(func) or name == "_unsafe_view":
        return Operator(GLUE, "", ())
    tensors = [x for x in leaves((args, kwargs)) if isinstance(x, Tensor)]
    outs = [x for x in leaves(out) if isinstance(x, Tensor)]
    if name in ("mm", "addmm", "bmm", "baddbmm", "mv", "dot", "addmv"):
        return _product(tensors[-2], tensors[-1], outs[0])
    if name == "convolution":
        return _convolution(args, outs[0])
    kind = kind_of(name, func, kwargs, tensors, outs)
    return _stream(kind, [*outs, *outs] if kind == "gather" else [*tensors, *outs], name)


def _product(a: Tensor, b: Tensor, out: Tensor) -> Operator:
    """Return the product of [..., rows, inner] and [..., inner, columns]; batches are rows."""
    inner = a.shape[-1]
    columns = b.shape[-1] if b.dim() > 1 else 1
    rows = max(1, out.numel() // max(1, columns))
    flops, nbytes = 2 * rows * columns * inner, a.nbytes + b.nbytes + out.nbytes
    return Operator("matmul", _dtype(out), (rows, columns, inner), flops, nbytes)


def _convolution(args: Any, out: Tensor) -> Operator:
    """Return a convolution of x [N, C, ...]; patches that do not overlap are a product.

    ``args`` are those of torch's own operator.
    """
    x, weight, _, stride, padding, _, transposed, _, groups = args
    kernel, channels = tuple(weight.shape[2:]), out.shape[1]
    inner = weight.shape[0] // groups if transposed else weight.shape[1]
    at = x if transposed else out
    pixels = at.shape[0] * math.prod(at.shape[2:])
    flops = 2 * pixels * channels * inner * math.prod(kernel)
    moved = x.nbytes + weight.nbytes + out.nbytes
    patches = not transposed and groups == 1 and tuple(stride) == kernel
    if patches and math.prod(kernel) > 1:
        sizes = (pixels, channels, inner * math.prod(kernel))
        return Operator("matmul", _dtype(out), sizes, flops, moved)
    words = ["conv", "x".join(map(str, kernel)), "transposed" * transposed]
    words += [f"{'depthwise' if inner == 1 else 'grouped'}"] if groups > 1 else []
    kind = " ".join(filter(None, words))
    shape = (tuple(x.shape), tuple(weight.shape), tuple(stride), tuple(padding), (groups,))
    return Operator(kind, _dtype(out), (pixels, channels, inner), flops, moved, shape=shape)


def _stream(kind: str, tensors: list[Tensor], name: str = "") -> Operator:
    """Return an operator whose time depends on the bytes that it reads and writes."""
    nbytes = sum(_held(x) for x in tensors)
    floats = [x for x in tensors if x.is_floating_point()]
    dtype = _dtype(max(floats, key=lambda x: x.nbytes)) if floats else "float32"
    dtype = "float32" if dtype not in ("float16", "bfloat16") else dtype
    return Operator(kind, dtype, (nbytes,), 0, nbytes, name=name if kind == OTHER else "")


def _held(x: Tensor) -> int:
    """Return the bytes of a tensor, those of an expanded one once."""
    shape = (n for n, stride in zip(x.shape, x.stride(), strict=True) if stride)
    return math.prod(shape) * x.itemsize


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
