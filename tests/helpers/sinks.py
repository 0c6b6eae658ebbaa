"""Queries, keys and values with attention sinks: a few keys that all rows attend to."""

from __future__ import annotations

import math

import torch
from torch import Tensor

KEY_BLOCK = 128  # of the CPU kernel, which rounds weights relative to the largest of a block
PLACES = (
    "first",
    "one",
    "every",
)  # the first keys, some of one block in the middle, of every block


def with_sinks(
    keys: int,
    gap: float,
    dim: int = 64,
    *,
    place: str = "first",
    sinks: int = 1,
    size: float = 0.05,
    spread: float = 1.0,
    queries: int = 96,
    heads: int = 1,
    jitter: float = 0.0,
) -> list[Tensor]:
    """Return q, k and v [1, H, T, D] whose sinks have logits of ``gap`` at 1 / sqrt(D).

    All else is N(0, 1), so the other logits are about N(0, ``spread``), in the directions that the
    sinks leave; ``size`` is that of the values of sinks, small in real models; ``jitter`` lowers
    each sink by up to so many nats.
    """
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, n, dim, generator=g) for n in (queries, keys, keys))
    to = torch.nn.functional.normalize(torch.randn(dim, generator=g), dim=0)
    q = q - (q @ to)[..., None] * to + 8 * to
    k = (k - (k @ to)[..., None] * to) * spread
    blocks = range(0, keys, KEY_BLOCK)
    first = {
        "first": [0],
        "one": [len(blocks) // 2 * KEY_BLOCK + 11],
        "every": [b + 5 for b in blocks],
    }
    at = torch.tensor([(b + 13 * i) % keys for b in first[place] for i in range(sinks)])
    logits = gap - jitter * torch.rand(len(at), generator=g)
    k[..., at, :] = logits[:, None] * math.sqrt(dim) / 8 * to
    v[..., at, :] *= size
    return [q, k, v]
