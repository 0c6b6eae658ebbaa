"""Calls of operators in given sizes, to be timed.

Operands are taken from a pool in turn, so that, as in a model, a call does not find in a cache what
the call before it read.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel.kernels import linear as kernels
from accel.kernels.attention import attention
from accel.memory.seconds.operator_kinds import FUNCTIONS
from accel.memory.seconds.operators import Operator, Sizes

Job = Callable[[], object]
POOL = 2**24  # bytes
MOST_COPIES = 64  # of a call's operands
MOST_PACKED = 4  # of packed weights, which are no part of the pool
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Operands:
    """Tensors of one dtype on one device; small ones lie in a pool, one after the other."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self._pool, self._at, self.taken = _pool(dtype, device), 0, 0

    def __call__(self, *size: int) -> Tensor:
        """Return a tensor with values from 0 to 1."""
        count = math.prod(size)
        self.taken += count * self.dtype.itemsize
        if count > len(self._pool):
            return torch.rand(size, dtype=torch.float32, device=self.device).to(self.dtype)
        self._at = 0 if self._at + count > len(self._pool) else self._at
        found = self._pool[self._at : self._at + count].view(size)
        self._at += -(-count // 16) * 16
        return found


@cache
def _pool(dtype: torch.dtype, device: torch.device) -> Tensor:
    count = POOL // dtype.itemsize
    return torch.rand(count, dtype=torch.float32, device=device).to(dtype)


def in_turn(make: Callable[[Operands], Job], dtype: torch.dtype, device: torch.device) -> Job:
    """Return a call whose operands are others each time, as far as the pool has room for them."""
    operands = Operands(dtype, device)
    jobs = [make(operands)]
    copies = min(MOST_COPIES, POOL // max(1, operands.taken))
    jobs += [make(operands) for _ in range(copies - 1)]
    following = itertools.cycle(jobs)
    return lambda: next(following)()


def of_operator(operator: Operator, device: torch.device) -> Job | None:
    """Return a call of an operator, None for a kind that is not known."""
    dtype = DTYPES.get(operator.dtype, torch.float32)
    words = operator.kind.split(" ")
    make = _maker(words, operator.sizes, operator.shape)
    if make is None:
        return None
    return in_turn(make, dtype, device)


def _maker(
    words: list[str], sizes: Sizes, shape: tuple[Sizes, ...]
) -> Callable[[Operands], Job] | None:
    kind, options = words[0], words[1:]
    precision = options[0] if options else "full"
    if kind in ("matmul", "linear"):
        return partial(_product, precision, sizes)
    if kind == "attention":
        return partial(_attend, precision, sizes)
    if kind == "conv":
        kernel = tuple(map(int, options[0].split("x")))
        shape = shape or _usual(kernel, options[1:], sizes)
        return partial(_convolution, "transposed" in options, shape)
    name = " ".join(words)
    known = name in STREAMS or kind in FUNCTIONS
    return partial(_stream, name, sizes[0]) if known else None


def _product(precision: Any, sizes: Sizes, operands: Operands) -> Job:
    rows, columns, inner = sizes
    x, weight, bias = operands(rows, inner), operands(columns, inner), operands(columns)
    if precision == "full" or kernels.why_not(x, weight, precision):
        return partial(F.linear, x, weight, bias)
    packed = kernels.pack(weight, precision=precision)
    operands.taken = max(operands.taken, POOL // MOST_PACKED)
    return partial(kernels.run, x, packed, bias)


def _attend(precision: Any, sizes: Sizes, operands: Operands) -> Job:
    heads, queries, keys, size = sizes
    q, k, v = (operands(1, n, heads, size).transpose(1, 2) for n in (queries, keys, keys))
    if precision == "full":
        return partial(F.scaled_dot_product_attention, q, k, v)
    return partial(attention, q, k, v, precision=precision, smooth_v=True)


def _usual(kernel: Sizes, options: list[str], sizes: Sizes) -> tuple[Sizes, ...]:
    """Return the shape of a convolution of one square frame, padded to keep its size."""
    pixels, channels, inner = sizes
    side = math.isqrt(pixels)
    lines = (side, side) if len(kernel) > 1 else (pixels,)
    frames = kernel[:1] if len(kernel) == 3 else ()
    pad = (*(0 for _ in frames), *(k // 2 for k in kernel[len(frames) :]))
    groups = channels if "depthwise" in options else 4 if "grouped" in options else 1
    x, stride = (1, inner * groups, *frames, *lines), (1,) * len(kernel)
    if "transposed" in options:
        weight = (inner * groups, max(1, channels // groups), *kernel)
        return x, weight, kernel, (0,) * len(kernel), (groups,)
    return x, (channels, inner, *kernel), stride, pad, (groups,)


def _convolution(transposed: bool, shape: tuple[Sizes, ...], operands: Operands) -> Job:
    x, weight, stride, padding, (groups,) = shape
    name = f"conv{'_transpose' * transposed}{len(x) - 2}d"
    call: Any = getattr(F, name)
    given = operands(*x), operands(*weight)
    return partial(call, *given, stride=stride, padding=padding, groups=groups)


# Makers of calls that read and write n elements in all; ``t`` takes operands.
STREAMS: Mapping[str, Callable[[Operands, int], Job]] = {
    "pointwise": lambda t, n: partial(torch.mul, t(n // 3), t(n // 3)),
    "strided": lambda t, n: partial(
        torch.mul, t(n // 192, 64, 2)[..., 0], t(n // 192, 64, 2)[..., 1]
    ),
    "transposed": lambda t, n: t(n // 128, 64).t().contiguous,
    "softmax": lambda t, n: partial(torch.softmax, t(n // 512, 256), -1),
    "layer_norm": lambda t, n: partial(F.layer_norm, t(n // 1024, 512), (512,)),
    "rms_norm": lambda t, n: partial(F.rms_norm, t(n // 1024, 512), (512,)),
    "group_norm": lambda t, n: partial(F.group_norm, t(1, 32, n // 64), 32),
    "reduce": lambda t, n: partial(torch.mean, t(n // 256, 256), -1),
    "reduce across": lambda t, n: partial(torch.mean, t(32, n // 32), 0),
    "norm": lambda t, n: partial(torch.linalg.vector_norm, t(n // 256, 256), dim=-1),
    "norm across": lambda t, n: partial(torch.linalg.vector_norm, t(32, n // 32), dim=0),
    "pad": lambda t, n: partial(F.pad, t(8, *_square(n // 16)), (1, 1, 1, 1)),
    "upsample": lambda t, n: partial(F.interpolate, t(1, 4, *_square(n // 20)), scale_factor=2.0),
    "gather": lambda t, n: partial(
        F.embedding, torch.arange(n // 512, dtype=torch.int64, device=t.device), t(n // 512, 256)
    ),
}  # fmt: skip


def _square(pixels: int) -> tuple[int, int]:
    side = max(1, math.isqrt(pixels))
    return side, side


def _stream(name: str, size: int, operands: Operands) -> Job:
    n = max(1024, size // operands.dtype.itemsize)
    if name in STREAMS:
        return STREAMS[name](operands, n)
    kind, _, option = name.partition(" ")
    call: Any = getattr(F, kind, None) or getattr(torch, kind)
    x = operands(n // 2)
    if kind == "gelu":
        return partial(call, x, approximate=option)
    return partial(call, x, 2) if kind == "pow" else partial(call, x)


class Block(nn.Module):
    """Attention as models have it, with all the code around its operators."""

    def __init__(self, width: int = 64, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.out = nn.LayerNorm(width), nn.ModuleList([nn.Linear(width, width)])
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.act = nn.GELU()

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        """Attend to x [B, T, C]."""
        y = self.norm(x) * (1 + scale) + scale
        q, k, v = (
            layer(y).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer in (self.to_q, self.to_k, self.to_v)
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        for part in self.out:
            y = part(y)
        return x + self.act(y) * scale


def block(device: torch.device) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """Return a stack of blocks so small that their time is that of the code, and arguments."""
    layers = nn.ModuleList([Block() for _ in range(4)]).to(device)

    class Stack(nn.Module):
        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            for layer in layers:
                x = layer(x, scale)
            return x

    return Stack(), (
        torch.zeros(1, 64, 64, dtype=torch.float32, device=device),
        torch.zeros(1, 1, 64, dtype=torch.float32, device=device),
    )
