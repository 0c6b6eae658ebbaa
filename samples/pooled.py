"""The embedded VAE's latents: a clip averaged over 4 x 4 pixels, and how that changes.

A latent frame stands for four frames. Its twelve channels are the four coefficients of the cosine
transform over those frames (their mean first), each for red, green and blue, scaled to about unit
variance. A VAE that is free to choose keeps little but means, and its decoder guesses the motion
between them. A diffusion model then learns motion last, because it hardly changes the loss. Here
three quarters of the channels are motion.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

SPATIAL, TEMPORAL = 4, 4
CHANNELS = 3 * TEMPORAL
# Spread of each coefficient over the training clips.
SCALE = torch.tensor([0.73, 0.154, 0.056, 0.017]).repeat_interleave(3)


def cosines() -> Tensor:
    """Return the orthonormal cosine transform of four values, [4, 4]."""
    k, n = torch.arange(TEMPORAL)[:, None], torch.arange(TEMPORAL)[None]
    rows = torch.cos(torch.pi / TEMPORAL * (n + 0.5) * k) * (2 / TEMPORAL) ** 0.5
    rows[0] /= 2**0.5
    return rows


def pooled_latents(video: Tensor) -> Tensor:
    """Return latents [B, 12, T, H / 4, W / 4] of videos [B, 3, 4 T - 3, H, W] in -1..1.

    The first frame is a latent frame of its own, as if the clip had stood still before.
    """
    batch, _, frames, height, width = video.shape
    small = avg_pool2d(video.transpose(1, 2).flatten(0, 1), SPATIAL)
    small = small.view(batch, frames, 3, height // SPATIAL, width // SPATIAL)
    small = torch.cat([small[:, :1].expand(-1, TEMPORAL - 1, -1, -1, -1), small], 1)
    groups = small.unflatten(1, (-1, TEMPORAL))  # [B, T, 4, 3, h, w]
    mixed = torch.einsum("ij,btjchw->bicthw", cosines(), groups)
    return mixed.flatten(1, 2) / SCALE.view(1, -1, 1, 1, 1)
