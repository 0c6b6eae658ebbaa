"""Wan 2.1 and 2.2, and pipelines built on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from accel.families.components import Part, meta
from accel.families.encoders import T5, encoder
from accel.families.family import Decoder, Denoiser, Family, Geometry, Model, Pipeline, Strip, Vae


def _inputs(denoiser: Any, latent: tuple[int, ...]) -> dict[str, Any]:
    batch, _, *rest = latent
    return {
        "hidden_states": meta(batch, denoiser.config.in_channels, *rest),
        "timestep": meta(batch, dtype=torch.int64),
        "encoder_hidden_states": meta(batch, 512, denoiser.config.text_dim),
    }


def _scales(config: Mapping[str, Any]) -> tuple[int, int]:
    default = 8 if config.get("patch_size") is None else 16
    space = config.get("scale_factor_spatial", default)
    return int(space), int(config.get("scale_factor_temporal", 4))


def _positions(config: Mapping[str, Any]) -> tuple[int, int]:
    time, space, _ = config.get("patch_size") or (1, 2, 2)
    most = int(config.get("rope_max_seq_len", 1024))
    return most * time, most * space


def _geometry(pipe: Any) -> Geometry:
    return Geometry(int(pipe.vae.config.z_dim), *_scales(pipe.vae.config))


def _model(**sizes: int) -> Model:
    return Model(
        Part("WanTransformer3DModel", {**sizes, "text_dim": 4096}),
        Part("AutoencoderKLWan", {}, torch.float32),
        encoders={"text_encoder": encoder("UMT5EncoderModel", {**T5, "vocab_size": 256384})},
    )


FAMILY = Family(
    "wan",
    denoisers={"WanTransformer3DModel": Denoiser(_inputs, positions=_positions)},
    vaes={"AutoencoderKLWan": Vae(_scales)},
    decoders={"WanDecoder3d": Decoder(("norm_out", "nonlinearity"), pieces="joined")},
    strips={
        "WanResidualBlock": Strip(2, cached=True),
        "WanResample": Strip(1, 2, cached=True),
        "DupUp3D": Strip(0, 2, beside=True),
    },
    pipelines={
        "WanPipeline": Pipeline(16),
        "WanImageToVideoPipeline": Pipeline(16, needs="an image"),
        "WanVideoToVideoPipeline": Pipeline(16, needs="a video"),
    },
    latents={"Wan": _geometry},
    return_frames=(
        "WanPipeline", "WanImageToVideoPipeline", "WanVideoToVideoPipeline", "WanVACEPipeline",
        "LucyEditPipeline", "ChronoEditPipeline", "AnyFlowPipeline", "SkyReelsV2Pipeline",
        "SkyReelsV2ImageToVideoPipeline", "SkyReelsV2DiffusionForcingPipeline",
        "SkyReelsV2DiffusionForcingImageToVideoPipeline",
    ),
    models={
        "wan-14b": _model(num_attention_heads=40, ffn_dim=13824, num_layers=40),
        "wan-1.3b": _model(num_attention_heads=12, ffn_dim=8960, num_layers=30),
    },
)  # fmt: skip
