"""Wan 2.1 and 2.2, and pipelines built on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from accel.families.components import Part
from accel.families.encoders import T5, VISION, encoder
from accel.families.family import (
    Decoder,
    Denoiser,
    Family,
    Geometry,
    Model,
    Pipeline,
    Scheduler,
    Strip,
    Vae,
)


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


def _model(
    pipeline: str = "WanPipeline", shift: float = 3.0, both: bool = False, image: bool = False,
    **sizes: Any,
) -> Model:  # fmt: skip
    """Return a released model.

    Args:
        pipeline: Its class.
        shift: Of its scheduler.
        both: It has a second transformer for late steps.
        image: It has an encoder of the image.
        **sizes: Of a transformer.
    """
    part = Part("WanTransformer3DModel", {**sizes, "text_dim": 4096})
    boundary = 0.875 if pipeline == "WanPipeline" else 0.9
    seen = encoder("CLIPVisionModelWithProjection", VISION, states=True)
    return Model(
        part,
        Part("AutoencoderKLWan", {}, torch.float32),
        encoders={
            "text_encoder": encoder("UMT5EncoderModel", {**T5, "vocab_size": 256384}),
            **({"image_encoder": seen} if image else {}),
        },
        pipeline=pipeline,
        second=part if both else None,
        schedulers={"scheduler": _scheduler(shift)},
        settings={"boundary_ratio": boundary} if both else {},
    )


def _scheduler(shift: float) -> Scheduler:
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
    return "UniPCMultistepScheduler", flow


LARGE: Mapping[str, Any] = {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40}
VAE_22: Mapping[str, Any] = {
    "base_dim": 160, "z_dim": 48, "is_residual": True, "in_channels": 12, "out_channels": 12,
    "decoder_base_dim": 256, "scale_factor_temporal": 4, "scale_factor_spatial": 16,
    "patch_size": 2, "latents_mean": (0.0,) * 48, "latents_std": (1.0,) * 48,
}  # fmt: skip


FAMILY = Family(
    "wan",
    denoisers={"WanTransformer3DModel": Denoiser(positions=_positions)},
    vaes={"AutoencoderKLWan": Vae(_scales)},
    decoders={"WanDecoder3d": Decoder(("norm_out", "nonlinearity"), pieces="joined")},
    strips={
        "WanResidualBlock": Strip(2, cached=True),
        "WanResample": Strip(1, 2, cached=True),
        "DupUp3D": Strip(0, 2, beside=True),
    },
    pipelines={
        "WanPipeline": Pipeline(16),
        "WanImageToVideoPipeline": Pipeline(16, needs=("image",)),
        "WanVideoToVideoPipeline": Pipeline(16, needs=("video",)),
        "WanVACEPipeline": Pipeline(16),
        "WanAnimatePipeline": Pipeline(
            16, needs=("image", "control", "arguments.face_video"), inputs={"control": "pose_video"}
        ),
    },
    latents={
        "Wan": _geometry, "SkyReelsV2Pipeline": _geometry,
        "SkyReelsV2ImageToVideoPipeline": _geometry,
    },  # diffusion forcing draws its frames part by part
    return_frames=(
        "WanPipeline", "WanImageToVideoPipeline", "WanVideoToVideoPipeline", "WanVACEPipeline",
        "LucyEditPipeline", "ChronoEditPipeline", "AnyFlowPipeline", "SkyReelsV2Pipeline",
        "SkyReelsV2ImageToVideoPipeline", "SkyReelsV2DiffusionForcingPipeline",
        "SkyReelsV2DiffusionForcingImageToVideoPipeline",
    ),
    models={
        "wan-14b": _model(**LARGE),
        "wan-1.3b": _model(num_attention_heads=12, ffn_dim=8960, num_layers=30),
        "wan-i2v-14b": _model(
            "WanImageToVideoPipeline", image=True, in_channels=36, image_dim=1280,
            added_kv_proj_dim=5120, **LARGE,
        ),
        "wan2.2-t2v-a14b": _model(both=True, **LARGE),
        "wan2.2-i2v-a14b": _model("WanImageToVideoPipeline", both=True, in_channels=36, **LARGE),
        "wan2.2-ti2v-5b": replace(
            _model(
                shift=5.0, num_attention_heads=24, ffn_dim=14336, num_layers=30, in_channels=48,
                out_channels=48,
            ),
            vae=Part("AutoencoderKLWan", VAE_22, torch.float32),
            settings={"expand_timesteps": True},
        ),
    },
)  # fmt: skip
