"""Whether a sliced result must have the plain run's bits on this machine."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor


@cache
def tokens_stand_alone(dtype: torch.dtype) -> bool:
    """Whether torch gives a token the same bits whatever tokens are beside it, in linear layers and
    as a query in attention.

    With AVX2 it does. On processors with AMX, products in bf16 are blocked by the number of tokens.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    def same(function: Callable[[Tensor], Tensor], x: Tensor) -> bool:
        whole = function(x)
        cut = (torch.cat([function(p) for p in x.tensor_split(n, -2)], -2) for n in (2, 4, 8, 16))
        return all(torch.equal(parts, whole) for parts in cut)

    for _ in range(20):
        for inner, outer in ((16, 24), (24, 32), (32, 24)):
            weight, bias = draw(outer, inner), draw(outer)
            if not same(lambda x, w=weight, b=bias: F.linear(x, w, b), draw(1, 80, inner)):
                return False
        key, value = draw(1, 2, 80, 12), draw(1, 2, 80, 12)
        if not same(
            lambda x, k=key, v=value: F.scaled_dot_product_attention(x, k, v), draw(1, 2, 80, 12)
        ):
            return False
    return True


def assert_same(out: Tensor, plain: Tensor, note: str = "") -> None:
    """Assert equal bits, or a distance within rounding where torch itself keeps no bits."""
    if torch.equal(out, plain):
        return
    assert not tokens_stand_alone(plain.dtype), f"other bits than the plain run: {note}"
    distance = float((out.double() - plain.double()).norm() / plain.double().norm())
    assert distance <= torch.finfo(plain.dtype).eps, f"{distance:.2g} off: {note}"
