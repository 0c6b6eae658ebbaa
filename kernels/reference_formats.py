"""Eager definitions of the number formats: integers by group, E4M3, NVFP4, and the rotation.

Part of the specification in ``kernels/reference.py``; every function is fp32 and readable, none is
fast.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Granularity = Literal["token", "thread", "block"]
SCALE_FLOOR = 1e-12  # largest magnitude assumed for an all-zero group, so that no scale is zero
E4M3_MAX = 448.0
NVFP4_MAX = 448.0 * 6.0  # largest E4M3 scale times largest E2M1 value
NVFP4_GROUP = 16


def group_ids(tokens: int, granularity: Granularity, block: int, *, is_key: bool) -> Tensor:
    """Scale group of each token, int64 [T].

    "thread" is the layout of one tensor-core thread (SageAttention2, section 3.2): queries share a
    scale in groups of 4 rows {i, i+8, i+16, i+24} of a 32-row warp, keys in groups of 16 of a
    64-key tile.
    """
    n = torch.arange(tokens)
    if granularity == "token":
        return n
    if granularity == "block":
        return n // block
    return (n // 64) * 4 + (n % 8) // 2 if is_key else (n // 32) * 8 + n % 8


def quantize(x: Tensor, bits: int, groups: Tensor, clip: float = 1.0) -> tuple[Tensor, Tensor]:
    """Symmetric integers of ``x [..., T, D]`` with one scale per token group.

    ``groups`` int64 [T] names each token's group; ``clip`` as in ``QuantSpec``. Returns codes
    (float tensor holding integers in [-qmax, qmax]) and scale [..., T, 1]; ``codes * scale``
    approximates ``x``. Rounds half to even.
    """
    qmax = 2 ** (bits - 1) - 1
    rows = x.abs().amax(-1)
    index = groups.to(x.device).expand(rows.shape)
    peak = torch.zeros_like(rows[..., : int(groups.max()) + 1 if groups.numel() else 0])
    peak = peak.scatter_reduce(-1, index, rows, "amax")
    scale = (peak.clamp_min(SCALE_FLOOR) * clip / qmax).gather(-1, index)[..., None]
    return (x / scale).round().clamp(-qmax, qmax), scale


def round_e4m3(x: Tensor) -> Tensor:
    """Nearest E4M3 value of each element, saturating at +-448, returned in ``x``'s dtype."""
    return x.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).to(x.dtype)


def nvfp4(x: Tensor, peak: Tensor) -> tuple[Tensor, Tensor]:
    """NVFP4 of ``x [..., N]``: (values, scale) with values * scale near x.

    ``peak`` [..., 1] is the largest magnitude that ``scale`` [..., 1] brings to 448 * 6. Each 16
    neighbours along the last axis share an E4M3 scale, of a sixth of their largest magnitude; what
    they hold is E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and negatives, nearest, ties to the even code.
    """
    scale = peak.clamp_min(SCALE_FLOOR) / NVFP4_MAX
    padding = -x.shape[-1] % NVFP4_GROUP
    groups = torch.nn.functional.pad(x / scale, (0, padding)).unflatten(-1, (-1, NVFP4_GROUP))
    steps = round_e4m3(groups.abs().amax(-1, keepdim=True) / 6)
    size = (groups / steps.masked_fill(steps == 0, 1)).abs()
    up_at = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0], device=x.device)
    tie_up = torch.tensor([False, True] * 3 + [False], device=x.device)
    code = ((size[..., None] > up_at) | (tie_up & (size[..., None] == up_at))).sum(-1)
    grid = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], device=x.device)
    values = (grid[code] * groups.sign() * steps).flatten(-2)
    return values[..., : x.shape[-1]], scale


def hadamard_matrix(size: int, *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Orthogonal block-diagonal Sylvester-Hadamard matrix [size, size], largest 2^k blocks."""
    block = size & -size
    h = torch.ones(1, 1, device=device, dtype=dtype)
    while h.shape[0] < block:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)], 0)
    return torch.block_diag(*[h / math.sqrt(block)] * (size // block))
