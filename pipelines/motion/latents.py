"""Initial latents that carry a motion: warped noise brought to a model's latent grid.

How latent frames follow from frames, and how a pipeline wants them laid out, differs by family;
``FAMILIES`` holds one entry per family. Spatially every block of VAE-factor squared pixels is
averaged and rescaled to unit variance; temporally one frame is kept per latent frame
(Go-with-the-Flow's nearest rule). Both keep the noise exactly N(0, 1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from accel.kernels.warp import warp_noise

Temporal = Literal["causal", "each"]
Layout = Literal["BCFHW", "BFCHW", "tokens", "BCHW"]


@dataclass(frozen=True)
class Geometry:
    """Latent grid of a pipeline.

    ``channels`` that are noise; ``spatial`` pixels per latent pixel; ``temporal`` frames per latent
    frame: "causal" VAEs (frames = temporal n + 1) keep frames 0, temporal, 2 temporal, ...;
    ``layout`` of the latents that the pipeline takes ("tokens": patches of one latent pixel in a
    sequence, "BCHW": one image per call). Pipelines scale by their scheduler's first sigma
    themselves.
    """

    channels: int
    spatial: int
    temporal: int
    layout: Layout = "BCFHW"

    def latent_frames(self, frames: int) -> int:
        """Latent frames of a clip. Raises ValueError for a number the VAE cannot hold."""
        if (frames - 1) % self.temporal:
            near = (frames - 1 + self.temporal // 2) // self.temporal * self.temporal + 1
            raise ValueError(
                f"motion needs frames = {self.temporal} n + 1 here, got {frames}; "
                f"the nearest is {near}"
            )
        return (frames - 1) // self.temporal + 1


def _config(pipe: Any, part: str, name: str) -> int:
    """``pipe.<part>.config.<name>`` as a number."""
    return int(getattr(getattr(pipe, part).config, name))


def _wan(pipe: Any) -> Geometry:
    return Geometry(
        _config(pipe, "vae", "z_dim"), pipe.vae_scale_factor_spatial, pipe.vae_scale_factor_temporal
    )


def _hunyuan(pipe: Any, layout: Layout = "BCFHW") -> Geometry:
    channels = _config(pipe, "vae", "latent_channels")
    return Geometry(channels, pipe.vae_scale_factor_spatial, pipe.vae_scale_factor_temporal, layout)


def _cogvideox(pipe: Any) -> Geometry:
    if (getattr(pipe.transformer.config, "patch_size_t", None) or 1) != 1:
        raise ValueError("motion for CogVideoX needs a transformer without temporal patches (1.0)")
    return _hunyuan(pipe, "BFCHW")


def _ltx(pipe: Any) -> Geometry:
    if (pipe.transformer_spatial_patch_size, pipe.transformer_temporal_patch_size) != (1, 1):
        raise ValueError("motion for LTX needs a transformer with patches of one latent pixel")
    return Geometry(
        _config(pipe, "vae", "latent_channels"),
        pipe.vae_spatial_compression_ratio,
        pipe.vae_temporal_compression_ratio,
        "tokens",
    )


def _mochi(pipe: Any) -> Geometry:
    return Geometry(
        _config(pipe, "transformer", "in_channels"),
        pipe.vae_spatial_scale_factor,
        pipe.vae_temporal_scale_factor,
    )


def _animatediff(pipe: Any) -> Geometry:
    return Geometry(_config(pipe, "unet", "in_channels"), pipe.vae_scale_factor, 1)


def _svd(pipe: Any) -> Geometry:
    # Half of the UNet's input is the first frame.
    channels = _config(pipe, "vae", "latent_channels")
    return Geometry(channels, pipe.vae_scale_factor, 1, "BFCHW")


def _image(pipe: Any) -> Geometry:
    channels = _config(pipe, "vae", "latent_channels")
    return Geometry(channels, pipe.vae_scale_factor, 1, "BCHW")


# How the name of a pipeline's class, or of one it derives from, begins -> its geometry.
FAMILIES: dict[str, Callable[[Any], Geometry]] = {
    "Wan": _wan,
    "HunyuanVideo": _hunyuan,
    "CogVideoX": _cogvideox,
    "LTX": _ltx,
    "Mochi": _mochi,
    "AnimateDiff": _animatediff,
    "StableVideoDiffusion": _svd,
    "StableDiffusion": _image,
}


def latent_geometry(pipe: Any) -> Geometry:
    """Latent geometry of a loaded pipeline. Raises ValueError for families without a rule yet."""
    name = type(pipe).__name__
    for cls in type(pipe).__mro__:
        for family, rule in FAMILIES.items():
            if cls.__name__.startswith(family):
                return rule(pipe)
    raise ValueError(
        f"motion is not supported for {name}: there is a rule for the latents of "
        f"{', '.join(FAMILIES)} only; leave motion out of the job"
    )


def warped_latents(
    flow: Tensor,
    geometry: Geometry,
    *,
    seed: int,
    strength: float | Tensor,
    backward: Tensor | None = None,
) -> Tensor:
    """Latent noise [1, C, F', H', W'] that follows ``flow`` [F - 1, 2, H, W] (pixels, previous to
    next).

    ``strength`` gamma mixes in fresh noise: 0 follows the flow exactly, 1 is free; a tensor
    [F, H, W] (or [1, H, W]) in 0..1 gives every place its own. The result is exactly N(0, 1) per
    element for every gamma, because gamma does not depend on the noise.
    """
    geometry.latent_frames(flow.shape[0] + 1)
    noise = warp_noise(flow, channels=geometry.channels, seed=seed, backward=backward)
    pooled = avg_pool2d(noise[:: geometry.temporal], geometry.spatial) * geometry.spatial
    mixed = mix(pooled.transpose(0, 1), _latent_strength(strength, geometry), seed=seed)
    return mixed[None].contiguous()


def _latent_strength(strength: float | Tensor, geometry: Geometry) -> float | Tensor:
    """Gamma on the latent grid: a map [F, H, W] becomes [F', H', W']."""
    if not isinstance(strength, Tensor):
        return strength
    return avg_pool2d(strength[:: geometry.temporal].float(), geometry.spatial)


def mix(warped: Tensor, strength: float | Tensor, *, seed: int) -> Tensor:
    """Go-with-the-Flow's degradation: (1 - gamma) warped + gamma fresh, at unit variance.

    ``warped`` [C, F, H, W]; ``strength`` a number or a tensor that broadcasts to it.
    """
    generator = torch.Generator().manual_seed(seed)
    frames_first = warped.transpose(0, 1)
    fresh = torch.randn(frames_first.shape, generator=generator).transpose(0, 1)
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
