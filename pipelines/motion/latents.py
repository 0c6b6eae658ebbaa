"""Initial latents that carry a motion: warped noise brought to a model's latent grid.

How latent frames follow from frames, and how a pipeline wants them laid out, differs by family
(``accel/families``). Spatially every block of VAE-factor squared pixels is averaged and rescaled to
unit variance; temporally one frame is kept per latent frame
(Go-with-the-Flow's nearest rule). Both keep the noise exactly N(0, 1).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from accel.families import geometry_rules
from accel.families.family import Geometry, Layout
from accel.kernels.warp import NoiseWarper
from accel.pipelines.motion.flows import NEWEST
from accel.pipelines.motion.grid import Grid, Moving
from accel.pipelines.motion.noise_options import NoiseOptions
from accel.pipelines.motion.sources import Known

USUAL = NoiseOptions()


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

    Flow is in pixels, previous to next; the rest is as for ``followed``.
    """
    arrays = [
        None if field is None else field.detach().float().cpu().permute(0, 2, 3, 1).numpy()
        for field in (flow, backward)
    ]
    assert arrays[0] is not None
    size = (flow.shape[0] + 1, flow.shape[2], flow.shape[3])
    return followed(Known(arrays[0], arrays[1]), geometry, size, seed=seed, strength=strength)


def followed(
    moving: Moving,
    geometry: Geometry,
    size: tuple[int, int, int],
    *,
    seed: int,
    strength: float | Tensor,
    options: NoiseOptions = USUAL,
    version: int = NEWEST,
) -> Tensor:
    """Return latent noise [1, C, F', H', W'] that follows a motion.

    Noise of two frames is in memory at a time. A pixel holds as many samples as ``geometry`` has
    for the family, so that slow motion is not lost in rounding. They are averaged with the square
    roots of their densities as weights, which conserves the integral noise as the warp does.

    Args:
        moving: Where the flow comes from.
        geometry: The latent grid.
        size: Frames, height and width in pixels.
        seed: Same seed and motion, same noise.
        strength: Gamma mixes in fresh noise: 0 follows the flow exactly, 1 is free; a tensor
            [F, H, W] (or [1, H, W]) in 0..1 gives every place its own. The result is exactly
            N(0, 1) per element for every gamma, because gamma does not depend on the noise.
        options: How the noise is made otherwise.
        version: 1 gives the bytes of the first jobs: one sample a pixel, equal weights.

    Raises:
        ValueError: A number of frames that the model cannot make.
    """
    frames, height, width = size
    scale = options.supersample or (1 if version == 1 else geometry.supersample)
    grid = Grid(height, width, scale)
    warper = NoiseWarper(geometry.channels, *grid.shape, seed=seed, mode=options.mode)
    spare, block = torch.empty_like(warper.noise), geometry.spatial * grid.scale
    groups = list(options.groups(frames, geometry))
    wanted, found = {k for group in groups for k in group}, dict[int, Tensor]()
    if 0 in wanted:
        found[0] = pooled(warper, block, weighted=version > 1)
    for k, step in enumerate(moving.steps(grid, frames), 1):
        forward, backward = (None if field is None else _planes(field) for field in step)
        assert forward is not None
        before = warper.noise
        warper.advance(forward, backward, out=spare)
        spare = before
        if k in wanted:
            found[k] = pooled(warper, block, weighted=version > 1)
    latents = torch.stack([options.joined([found[k] for k in group]) for group in groups])
    return degraded(latents, geometry, seed=seed, strength=strength, version=version)


def degraded(
    noise: Tensor, geometry: Geometry, *, seed: int, strength: float | Tensor, version: int
) -> Tensor:
    """Return latents [1, C, F', H', W'] of ``noise`` [F', C, H', W'] with fresh noise mixed in."""
    gamma = _latent_strength(strength, geometry)
    fresh = seed if version == 1 else _fresh_seed(seed)
    return mix(noise.transpose(0, 1), gamma, seed=fresh)[None].contiguous()


def _planes(field: np.ndarray) -> Tensor:
    """``field`` [rows, columns, 2] as [2, rows, columns]."""
    return torch.from_numpy(field).permute(2, 0, 1).contiguous()


def pooled(warper: NoiseWarper, block: int, *, weighted: bool) -> Tensor:
    """Return the noise of a frame in blocks, [C, H', W'], one channel after the other."""
    out = [
        avg_pool2d((q * warper.density.sqrt() if weighted else q)[None], block) * block
        for q in warper.noise
    ]
    mean = torch.cat(out).cpu()
    return mean / avg_pool2d(warper.density[None], block).sqrt().cpu() if weighted else mean


def _fresh_seed(seed: int) -> int:
    """Return the seed of the noise that a strength mixes in.

    The sampler draws its own from ``seed``; equal draws would make the two one noise.
    """
    return int.from_bytes(hashlib.sha256(b"strength %d" % seed).digest()[:8]) >> 1


def fresh_noise(shape: Sequence[int], seed: int) -> Tensor:
    """Return N(0, 1) fp32 of ``shape``, of which a sampler with ``seed`` draws nothing."""
    generator = torch.Generator("cpu").manual_seed(_fresh_seed(seed))
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32, device="cpu")


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
