"""Stable Diffusion 1, 2 and XL: the UNet, and the KL autoencoder that many families share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accel.families.family import Decoder, Family, Geometry, Pipeline, Vae

KL: Mapping[str, Any] = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip


def kl_scales(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return pixels and frames per latent cell of a KL autoencoder of images."""
    return 2 ** (len(config.get("block_out_channels", (64,))) - 1), 1


def _geometry(pipe: Any) -> Geometry:
    channels = int(pipe.vae.config.latent_channels)
    return Geometry(channels, *kl_scales(pipe.vae.config), layout="BCHW")


_FROM_IMAGE = Pipeline(images=True, needs=("image",))
_INPAINT = Pipeline(images=True, needs=("image", "mask"))
_CONTROLLED = Pipeline(images=True, needs=("control",))

FAMILY = Family(
    "stable-diffusion",
    vaes={"AutoencoderKL": Vae(kl_scales, framewise=True)},
    decoders={"Decoder": Decoder(grouped=True)},
    grouped_blocks={"ResnetBlock2D": "resnet", "Upsample2D": "upsampler"},
    unet_parts=("ResnetBlock2D", "BasicTransformerBlock", "Upsample2D", "Downsample2D"),
    pipelines={
        "StableDiffusionPipeline": Pipeline(images=True),
        "StableDiffusionXLPipeline": Pipeline(images=True),
        "StableDiffusion3Pipeline": Pipeline(images=True),
        **{f"StableDiffusion{v}Img2ImgPipeline": _FROM_IMAGE for v in ("", "XL", "3")},
        **{f"StableDiffusion{v}InpaintPipeline": _INPAINT for v in ("", "XL", "3")},
        **{f"StableDiffusion{v}ControlNetPipeline": _CONTROLLED for v in ("", "XL", "3")},
    },
    latents={"StableDiffusion": _geometry},
)
