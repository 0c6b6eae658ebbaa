"""Video models of which accel knows the latent grid only: EasyAnimate, Sana-Video, Latte.

Their pipelines draw latents of (frames - 1) / temporal + 1 frames from the factors of their VAE, so
motion can be given to them.
"""

from __future__ import annotations

from typing import Any

from accel.families.family import Family, Geometry
from accel.families.stable_diffusion import kl_scales


def _easy_animate(pipe: Any) -> Geometry:
    levels = len(pipe.vae.config.block_out_channels)
    return Geometry(int(pipe.vae.config.latent_channels), 2 ** (levels - 1), 2 ** (levels - 2))


def _sana(pipe: Any) -> Geometry:
    config = pipe.vae.config
    if "scale_factor_spatial" not in config:
        raise ValueError("motion for Sana-Video needs the VAE of Wan")
    scales = int(config.scale_factor_spatial), int(config.scale_factor_temporal)
    return Geometry(int(config.z_dim), *scales)


def _latte(pipe: Any) -> Geometry:
    config = pipe.vae.config
    return Geometry(int(config.latent_channels), *kl_scales(config), casts=False)


FAMILY = Family(
    "other videos",
    latents={
        "EasyAnimatePipeline": _easy_animate, "SanaVideo": _sana,
        "Latte": _latte,
    },
)  # fmt: skip
