"""Inputs and the error measure that the tests of GPU attention share."""

from __future__ import annotations

import torch


def inputs(batch, heads, queries, keys, dim, *, key_heads=None, value_dim=None, seed=0, bias=2.0):
    g = torch.Generator().manual_seed(seed)
    kv = key_heads or heads
    q = torch.randn(batch, heads, queries, dim, generator=g)
    k = torch.randn(batch, kv, keys, dim, generator=g) + bias * torch.randn(dim, generator=g)
    v = torch.randn(batch, kv, keys, value_dim or dim, generator=g)
    return q, k, v + bias * torch.randn(v.shape[-1], generator=g)


def relative(a, b):
    return float((a.double() - b.double()).abs().sum() / b.double().abs().sum().clamp_min(1e-30))
