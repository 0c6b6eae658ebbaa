"""CogVideoX 1.0, and pipelines built on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from accel.families.components import Part, meta
from accel.families.encoders import T5, encoder
from accel.families.family import Decoder, Denoiser, Family, Geometry, Model, Pipeline, Vae


def _inputs(denoiser: Any, latent: tuple[int, ...]) -> dict[str, Any]:
    batch, channels, frames, height, width = latent
    tokens = frames * (height // 2) * (width // 2)
    table = meta(tokens, denoiser.config.attention_head_dim, dtype=torch.float32)
    return {
        "hidden_states": meta(batch, frames, channels, height, width),
        "timestep": meta(batch, dtype=torch.int64),
        "encoder_hidden_states": meta(batch, 226, denoiser.config.text_embed_dim),
        "image_rotary_emb": (table, table.clone()),
    }


def _scales(config: Mapping[str, Any]) -> tuple[int, int]:
    levels = len(config.get("block_out_channels", (128, 256, 256, 512)))
    return 2 ** (levels - 1), int(config.get("temporal_compression_ratio", 4))


def _geometry(pipe: Any) -> Geometry:
    if (getattr(pipe.transformer.config, "patch_size_t", None) or 1) != 1:
        raise ValueError("motion for CogVideoX needs a transformer without temporal patches (1.0)")
    channels = int(pipe.vae.config.latent_channels)
    return Geometry(channels, *_scales(pipe.vae.config), layout="BFCHW")


FAMILY = Family(
    "cogvideox",
    denoisers={
        "CogVideoXTransformer3DModel": Denoiser(_inputs, batched=True, text_tokens=226),
    },
    vaes={"AutoencoderKLCogVideoX": Vae(_scales)},
    decoders={"CogVideoXDecoder3D": Decoder(caches=True, pieces="apart")},
    grouped_blocks={
        "CogVideoXResnetBlock3D": "cached resnet", "CogVideoXUpsample3D": "upsampler"
    },
    pipelines={
        "CogVideoXPipeline": Pipeline(),
        "CogVideoXImageToVideoPipeline": Pipeline(needs="an image"),
    },
    latents={"CogVideoX": _geometry},
    return_frames=(
        "CogVideoXPipeline", "CogVideoXImageToVideoPipeline", "CogVideoXVideoToVideoPipeline",
        "CogVideoXFunControlPipeline", "ConsisIDPipeline",
    ),
    models={
        "cogvideox-5b": Model(
            Part(
                "CogVideoXTransformer3DModel",
                {"num_attention_heads": 48, "num_layers": 42,
                 "use_rotary_positional_embeddings": True},
            ),
            Part("AutoencoderKLCogVideoX", {}),
            2,
            {"text_encoder": encoder("T5EncoderModel", T5, 226)},
        )
    },
)  # fmt: skip
