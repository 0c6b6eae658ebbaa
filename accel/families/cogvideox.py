"""CogVideoX 1.0, and pipelines built on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accel.families.components import Part
from accel.families.encoders import T5, encoder
from accel.families.family import Decoder, Family, Geometry, Model, Pipeline, Vae


def _scales(config: Mapping[str, Any]) -> tuple[int, int]:
    levels = len(config.get("block_out_channels", (128, 256, 256, 512)))
    return 2 ** (levels - 1), int(config.get("temporal_compression_ratio", 4))


def _geometry(pipe: Any) -> Geometry:
    if (getattr(pipe.transformer.config, "patch_size_t", None) or 1) != 1:
        raise ValueError("motion for CogVideoX needs a transformer without temporal patches (1.0)")
    channels = int(pipe.vae.config.latent_channels)
    return Geometry(
        channels, *_scales(pipe.vae.config), layout="BFCHW", casts=False, clocks=(0.08, 0.18)
    )


FAMILY = Family(
    "cogvideox",
    vaes={"AutoencoderKLCogVideoX": Vae(_scales)},
    decoders={"CogVideoXDecoder3D": Decoder(caches=True, pieces="apart")},
    grouped_blocks={
        "CogVideoXResnetBlock3D": "cached resnet", "CogVideoXUpsample3D": "upsampler"
    },
    pipelines={
        "CogVideoXPipeline": Pipeline(),
        "CogVideoXImageToVideoPipeline": Pipeline(needs=("image",)),
        "CogVideoXVideoToVideoPipeline": Pipeline(needs=("video",)),
        "CogVideoXFunControlPipeline": Pipeline(needs=("control",)),
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
            pipeline="CogVideoXPipeline",
            schedulers={
                "scheduler": ("CogVideoXDPMScheduler", {"prediction_type": "v_prediction"})
            },
        )
    },
)  # fmt: skip
