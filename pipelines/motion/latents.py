"""Initial latents that carry a motion: warped noise brought to a model's latent grid.

How latent frames follow from frames, and how a pipeline wants them laid out, differs by family
(``accel/families``). Spatially every block of VAE-factor squared pixels is
averaged and rescaled to unit variance; temporally one frame is kept per latent frame
(Go-with-the-Flow's nearest rule). Both keep the noise exactly N(0, 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from accel.families import geometry_rules
from accel.families.family import Geometry, Layout
from accel.kernels.warp import warp_noise


def latent_geometry(pipe: Any, names: Sequence[str] = ()) -> Geometry:
    """Return the latent geometry of a pipeline.

    Args:
        pipe: A loaded pipeline, or anything whose components have their ``config``.
        names: Class names of the pipeline, the most special first; by default those of ``pipe``.

    Raises:
        ValueError: Its family has no rule.
    """
    rules, names = geometry_rules(), names or [cls.__name__ for cls in type(pipe).__mro__]
    for name in names:
        fits = [start for start in rules if name.startswith(start)]
        if fits:
            return rules[max(fits, key=len)](pipe)
    raise ValueError(
        f"motion is not supported for {names[0]}: there is a rule for the latents of "
        f"{', '.join(rules)} only; leave motion out of the job"
    )


def warped_latents(
    flow: Tensor,
    geometry: Geometry,
    *,
    seed: int,
    strength: float | Tensor,
    backward: Tensor | None = None,
) -> Tensor:
    """Return latent noise [1, C, F', H', W'] that follows ``flow`` [F - 1, 2, H, W].

    Flow is in pixels, previous to next. ``strength`` gamma mixes in fresh noise: 0 follows the
    flow exactly, 1 is free; a tensor [F, H, W] (or [1, H, W]) in 0..1 gives every place its own.
    The result is exactly N(0, 1) per element for every gamma, because gamma does not depend on
    the noise.
    """
    geometry.latent_frames(flow.shape[0] + 1)
    noise = warp_noise(flow, channels=geometry.channels, seed=seed, backward=backward)
    pooled = avg_pool2d(noise[:: geometry.temporal], geometry.spatial) * geometry.spatial
    mixed = mix(pooled.transpose(0, 1), _latent_strength(strength, geometry), seed=seed)
    return mixed[None].contiguous()


def _latent_strength(strength: float | Tensor, geometry: Geometry) -> float | Tensor:
    """Return gamma on the latent grid: a map [F, H, W] becomes [F', H', W']."""
    if not isinstance(strength, Tensor):
        return strength
    return avg_pool2d(strength[:: geometry.temporal].float(), geometry.spatial)


def mix(warped: Tensor, strength: float | Tensor, *, seed: int) -> Tensor:
    """Return Go-with-the-Flow's degradation: (1 - gamma) warped + gamma fresh, at unit variance.

    ``warped`` [C, F, H, W]; ``strength`` a number or a tensor that broadcasts to it.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    frames_first = warped.transpose(0, 1)
    fresh = torch.randn(
        frames_first.shape, generator=generator, dtype=torch.float32, device="cpu"
    ).transpose(0, 1)
    mixed = (1 - strength) * warped + strength * fresh
    return mixed / ((1 - strength) ** 2 + strength**2) ** 0.5


def arrange(latents: Tensor, layout: Layout) -> Tensor:
    """``latents`` [1, C, F, H, W] as a pipeline takes them.

    BFCHW [1, F, C, H, W]; tokens [1, F H W, C]; BCHW [F, C, H, W], one image per frame.
    """
    if layout == "BFCHW":
        return latents.transpose(1, 2).contiguous()
    if layout == "tokens":
        return latents.flatten(2).transpose(1, 2).contiguous()
    if layout == "BCHW":
        return latents[0].transpose(0, 1).contiguous()
    return latents
