"""Initial latents that carry a motion: warped noise brought to a model's latent grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from accel.kernels.warp import warp_noise


@dataclass(frozen=True)
class Geometry:
    """Latent grid of a causal video VAE: channels, pixels per latent pixel, frames per latent
    frame.
    """

    channels: int
    spatial: int
    temporal: int


def latent_geometry(pipe: Any) -> Geometry:
    """Latent geometry of a loaded pipeline. Raises ValueError for families without a rule yet."""
    spatial = getattr(pipe, "vae_scale_factor_spatial", None)
    temporal = getattr(pipe, "vae_scale_factor_temporal", None)
    channels = getattr(getattr(getattr(pipe, "vae", None), "config", None), "z_dim", None)
    if spatial is None or temporal is None or channels is None:
        raise ValueError(
            f"motion is not supported for {type(pipe).__name__}: only causal video VAEs of Wan's "
            "kind have a rule for their latents; leave motion out of the job"
        )
    return Geometry(channels, spatial, temporal)


def warped_latents(
    flow: Tensor, geometry: Geometry, *, seed: int, strength: float, backward: Tensor | None = None
) -> Tensor:
    """Latent noise [1, C, F', H', W'] that follows ``flow`` [F - 1, 2, H, W] (pixels, previous to
    next).

    Every ``temporal``-th frame is kept (Go-with-the-Flow's nearest rule), each spatial x spatial
    block is averaged and rescaled to unit variance. ``strength`` gamma mixes in fresh noise: 0
    follows the flow exactly, 1 is free. The result is exactly N(0, 1) per element for every gamma.
    """
    noise = warp_noise(flow, channels=geometry.channels, seed=seed, backward=backward)
    pooled = avg_pool2d(noise[:: geometry.temporal], geometry.spatial) * geometry.spatial
    generator = torch.Generator().manual_seed(seed)
    fresh = torch.randn(pooled.shape, generator=generator)
    mixed = (1 - strength) * pooled + strength * fresh
    mixed = mixed / ((1 - strength) ** 2 + strength**2) ** 0.5
    return mixed.transpose(0, 1)[None].contiguous()
