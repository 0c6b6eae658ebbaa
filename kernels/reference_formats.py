"""Eager definitions of the number formats: integers by group, E4M3, NVFP4, and the rotation.

This is a part of the specification in ``kernels/reference.py``. Every function is written in fp32
for readers, not for speed.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Granularity = Literal["token", "thread", "block"]
SCALE_FLOOR = 1e-30  # least largest magnitude of a group, so that no scale is zero
E4M3_MAX = 448.0
NVFP4_MAX = 448.0 * 6.0  # largest E4M3 scale times largest E2M1 value
NVFP4_GROUP = 16


def group_ids(tokens: int, granularity: Granularity, block: int, *, is_key: bool) -> Tensor:
    """Return the scale group of each token, int64 [T].

    "thread" is the layout of one tensor-core thread (SageAttention2, section 3.2): queries share a
    scale in groups of 4 rows {i, i+8, i+16, i+24} of a 32-row warp, keys in groups of 16 of a
    64-key tile.
    """
    n = torch.arange(tokens, dtype=torch.int64, device="cpu")
    if granularity == "token":
        return n
    if granularity == "block":
        return n // block
    return (n // 64) * 4 + (n % 8) // 2 if is_key else (n // 32) * 8 + n % 8


def quantize(x: Tensor, bits: int, groups: Tensor, clip: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return symmetric integers of ``x [..., T, D]`` with one scale per token group.

    Args:
        x: Float tensor [..., T, D].
        bits: Bits of an integer with its sign; qmax is 2^(bits-1) - 1.
        groups: The group of each token, int64 [T].
        clip: Share of a group's maximum that still fits, as in ``QuantSpec``.

    Returns:
        Codes (a float tensor of integers in [-qmax, qmax], rounded half to even) [..., T, D] and
            scale
        [..., T, 1]; ``codes * scale`` approximates ``x``.
    """
    qmax = 2 ** (bits - 1) - 1
    rows = x.abs().amax(-1)
    index = groups.to(x.device).expand(rows.shape)
    peak = torch.zeros_like(rows[..., : int(groups.max()) + 1 if groups.numel() else 0])
    peak = peak.scatter_reduce(-1, index, rows, "amax")
    scale = (peak.clamp_min(SCALE_FLOOR) * clip / qmax).gather(-1, index)[..., None]
    return (x / scale).round().clamp(-qmax, qmax), scale


def round_e4m3(x: Tensor) -> Tensor:
    """Return the nearest E4M3 value of each element, saturating at +-448, in ``x``'s dtype."""
    return x.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).to(x.dtype)


def nvfp4(x: Tensor, peak: Tensor) -> tuple[Tensor, Tensor]:
    """Return NVFP4 of ``x [..., N]``: (values, scale), where values * scale approximates x.

    ``peak`` [..., 1] is the largest magnitude, which ``scale`` [..., 1] maps to 448 * 6. Each 16
    neighbors along the last axis share an E4M3 scale, a sixth of their largest magnitude. Their
    values are E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and negatives, the nearest one, ties to the even
    code.
    """
    scale = peak.clamp_min(SCALE_FLOOR) / NVFP4_MAX
    padding = -x.shape[-1] % NVFP4_GROUP
    groups = torch.nn.functional.pad(x / scale, (0, padding)).unflatten(-1, (-1, NVFP4_GROUP))
    steps = round_e4m3(groups.abs().amax(-1, keepdim=True) / 6)
    size = (groups / steps.masked_fill(steps == 0, 1)).abs()
    up_at = x.new_tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    tie_up = torch.tensor([False, True] * 3 + [False], dtype=torch.bool, device=x.device)
    code = ((size[..., None] > up_at) | (tie_up & (size[..., None] == up_at))).sum(-1)
    grid = x.new_tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    values = (grid[code] * groups.sign() * steps).flatten(-2)
    return values[..., : x.shape[-1]], scale


def hadamard_matrix(size: int, *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the orthogonal Sylvester-Hadamard matrix [size, size].

    It is block-diagonal, with the largest possible blocks of 2^k.
    """
    block = size & -size
    h = torch.ones(1, 1, device=device, dtype=dtype)
    while h.shape[0] < block:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)], 0)
    return torch.block_diag(*[h / math.sqrt(block)] * (size // block))
