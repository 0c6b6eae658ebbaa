"""Shapes and containers that the GPU kernels share; this module needs no Triton."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

TOKENS = 128  # packed tokens are padded to a multiple of this; also the block of smoothed queries


@dataclass(frozen=True)
class Packed:
    """Keys and values as the attention kernel reads them; shapes in ``gpu/prepare.py``."""

    k_codes: Tensor
    k_scale: Tensor
    k_mean: Tensor
    v_codes: Tensor
    v_scale: Tensor
    v_mean: Tensor
    values: str
    k_groups: Tensor | None = None
    v_groups: Tensor | None = None


@dataclass(frozen=True)
class Queries:
    """Queries as the attention kernel reads them; shapes in ``gpu/prepare.py``."""

    codes: Tensor
    scale: Tensor
    mean: Tensor | None
    shift: Tensor | None
    groups: Tensor | None = None


def padded_dim(dim: int, least: int = 32) -> int:
    """Return the head size for tensor cores: the next power of two, at least ``least``."""
    return max(least, 1 << (dim - 1).bit_length())


def padded_tokens(tokens: int) -> int:
    """Return the tokens rounded up to whole key tiles."""
    return -(-tokens // TOKENS) * TOKENS


@dataclass(frozen=True)
class Tile:
    """The tile of one launch of the attention kernel: query rows, keys, warps, pipeline stages."""

    rows: int
    keys: int
    warps: int
    stages: int


def with_mask(tile: Tile, rows: bool) -> Tile:
    """Return the tile to use instead of ``tile`` where a mask differs by query ``rows``.

    A row of such a mask takes as many registers as one of the logits, and 128 keys of both do not
    fit.
    """
    return replace(tile, keys=64) if rows and tile.keys > 64 else tile


def candidates(values: str, dim: int) -> tuple[Tile, ...]:
    """Return the tiles to try for a format of values and a padded head size, likeliest first.

    Two accumulators [rows, dim] in fp32 are in registers besides the logits, which bounds
    rows * dim / warps. Each of these tiles compiles without spilling (``make gpu-report``).
    """
    if dim >= 256:
        return (Tile(64, 64, 8, 2),)
    if values == "e2m1":
        return (Tile(128, 64, 8, 3),)
    if values == "e4m3":  # on an H100 the first one wins at every head size
        return (Tile(64, 128, 4, 3), Tile(128, 64, 8, 3), Tile(64, 64, 4, 3))
    return (Tile(128, 64, 8, 3), Tile(64, 64, 4, 3))
