"""Stable Diffusion 1, 2 and XL: the UNet, and the KL autoencoder that many families share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from accel.families.components import Part
from accel.families.encoders import CLIP, CLIP_G, FLOW, T5, encoder
from accel.families.family import Decoder, Family, Geometry, Model, Pipeline, Vae

KL: Mapping[str, Any] = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip


def kl_scales(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return pixels and frames per latent cell of a KL autoencoder of images."""
    return 2 ** (len(config.get("block_out_channels", (64,))) - 1), 1


def _geometry(pipe: Any) -> Geometry:
    channels = int(pipe.vae.config.latent_channels)
    return Geometry(channels, *kl_scales(pipe.vae.config), layout="BCHW", casts=False)


_FROM_IMAGE = Pipeline(images=True, needs=("image",))
_INPAINT = Pipeline(images=True, needs=("image", "mask"))
_CONTROLLED = Pipeline(images=True, needs=("control",))
SDXL: Mapping[str, Any] = {
    "sample_size": 128, "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (5, 10, 20), "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
SD35: Mapping[str, Any] = {
    "sample_size": 128, "num_layers": 38, "attention_head_dim": 64, "num_attention_heads": 38,
    "joint_attention_dim": 4096, "caption_projection_dim": 2432, "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192, "qk_norm": "rms_norm",
}  # fmt: skip


def _sdxl() -> Model:
    half = torch.float16
    return Model(
        Part("UNet2DConditionModel", SDXL, half),
        Part("AutoencoderKL", {**KL, "sample_size": 1024, "scaling_factor": 0.13025}, half),
        2,
        {
            "text_encoder": encoder("CLIPTextModel", CLIP, 77, half, states=True),
            "text_encoder_2": encoder("CLIPTextModelWithProjection", CLIP_G, 77, half, states=True),
        },
        pipeline="StableDiffusionXLPipeline",
        schedulers={"scheduler": ("EulerDiscreteScheduler", {"beta_schedule": "scaled_linear"})},
    )


def _sd35() -> Model:
    vae = {
        **KL, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False,
        "scaling_factor": 1.5305, "shift_factor": 0.0609,
    }  # fmt: skip
    clip = "CLIPTextModelWithProjection"
    return Model(
        Part("SD3Transformer2DModel", SD35),
        Part("AutoencoderKL", vae),
        2,
        {
            "text_encoder": encoder(clip, CLIP, 77, states=True),
            "text_encoder_2": encoder(clip, CLIP_G, 77, states=True),
            "text_encoder_3": encoder("T5EncoderModel", T5, 256),
        },
        pipeline="StableDiffusion3Pipeline",
        schedulers={"scheduler": (FLOW, {"shift": 3.0})},
    )


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
    models={"sdxl": _sdxl(), "sd3.5-large": _sd35()},
)
