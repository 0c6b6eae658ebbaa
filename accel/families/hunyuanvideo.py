"""HunyuanVideo 1.0 and 1.5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from accel.families.components import Part, meta
from accel.families.encoders import CLIP, LLAMA, encoder
from accel.families.family import (
    Chunks,
    Decoder,
    Denoiser,
    Family,
    Geometry,
    Model,
    Pipeline,
    Strip,
    Vae,
)


def _inputs(denoiser: Any, latent: tuple[int, ...]) -> dict[str, Any]:
    batch, config = latent[0], denoiser.config
    return {
        "hidden_states": meta(batch, config.in_channels, *latent[2:]),
        "timestep": meta(batch, dtype=torch.int64),
        "encoder_hidden_states": meta(batch, 256, config.text_embed_dim),
        "encoder_attention_mask": meta(batch, 256, dtype=torch.int64),
        "pooled_projections": meta(batch, config.pooled_projection_dim),
        "guidance": meta(batch),
    }


def _scales(config: Mapping[str, Any], space: int = 8) -> tuple[int, int]:
    time = config.get("temporal_compression_ratio", 4)
    return int(config.get("spatial_compression_ratio", space)), int(time)


def _geometry(pipe: Any) -> Geometry:
    return Geometry(int(pipe.vae.config.latent_channels), *_scales(pipe.vae.config))


FAMILY = Family(
    "hunyuanvideo",
    # A template of 95 tokens, then 256 tokens of text.
    denoisers={"HunyuanVideoTransformer3DModel": Denoiser(_inputs, text_tokens=351)},
    vaes={
        "AutoencoderKLHunyuanVideo": Vae(_scales),
        "AutoencoderKLHunyuanVideo15": Vae(lambda config: _scales(config, 16)),
    },
    decoders={
        "HunyuanVideoDecoder3D": Decoder(grouped=True),
        "HunyuanVideo15Decoder3D": Decoder(
            ("norm_out", "conv_act"),
            chunks=Chunks(
                "HunyuanVideo15CausalConv3d",
                "HunyuanVideo15Upsample",
                "add_temporal_upsample",
                "HunyuanVideo15AttnBlock",
            ),
        ),
    },
    strips={"HunyuanVideo15ResnetBlock": Strip(2), "HunyuanVideo15Upsample": Strip(1, 2)},
    grouped_blocks={
        "HunyuanVideoResnetBlockCausal3D": "resnet",
        "HunyuanVideoUpsampleCausal3D": "upsampler",
        "HunyuanVideoMidBlock3D": "causal middle",
    },
    pipelines={"HunyuanVideoPipeline": Pipeline(16)},
    latents={"HunyuanVideo": _geometry},
    models={
        "hunyuanvideo": Model(
            Part("HunyuanVideoTransformer3DModel", {}),
            Part("AutoencoderKLHunyuanVideo", {}, torch.float16),
            encoders={
                "text_encoder": encoder("LlamaModel", LLAMA, 351, torch.float16),
                "text_encoder_2": encoder("CLIPTextModel", CLIP, 77, torch.float16),
            },
        )
    },
)
