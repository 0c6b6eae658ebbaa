"""Random queries, keys and values, and how far apart two results are."""

from __future__ import annotations

import torch
from torch import Tensor


def qkv(
    queries: int,
    keys: int | None = None,
    dim: int = 64,
    *,
    batch: int = 1,
    heads: int = 2,
    key_heads: int | None = None,
    value_dim: int | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    mean: float = 0.0,
) -> list[Tensor]:
    """Return q [B, H, Tq, D], k [B, Hk, Tk, D] and v [B, Hk, Tk, Dv] of N(mean, 1)."""
    generator = torch.Generator().manual_seed(seed)
    keys, kv = queries if keys is None else keys, key_heads or heads
    shapes = [(heads, queries, dim), (kv, keys, dim), (kv, keys, value_dim or dim)]
    return [torch.randn(batch, *s, generator=generator).add(mean).to(dtype) for s in shapes]


def relative_l1(result: Tensor, exact: Tensor) -> float:
    """Return the sum of the distances over the sum of ``exact``."""
    distance = (result.double() - exact.double()).abs().sum()
    return float(distance / exact.double().abs().sum().clamp_min(1e-30))
