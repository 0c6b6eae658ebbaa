"""Stable Diffusion 1, 2 and XL: the UNet, and the KL autoencoder that many families share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accel.families.family import Decoder, Family, Geometry, Vae

KL: Mapping[str, Any] = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip


def _geometry(pipe: Any) -> Geometry:
    return Geometry(int(pipe.vae.config.latent_channels), pipe.vae_scale_factor, 1, "BCHW")


FAMILY = Family(
    "stable-diffusion",
    vaes={"AutoencoderKL": Vae(lambda config: (8, 1), framewise=True)},
    decoders={"Decoder": Decoder(grouped=True)},
    grouped_blocks={"ResnetBlock2D": "resnet", "Upsample2D": "upsampler"},
    unet_parts=("ResnetBlock2D", "BasicTransformerBlock", "Upsample2D", "Downsample2D"),
    latents={"StableDiffusion": _geometry},
)
