"""HunyuanVideo 1.0 and 1.5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from accel.families.components import Part
from accel.families.encoders import BYT5, CLIP, FLOW, LLAMA, QWEN_7B, encoder
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


def _scales(config: Mapping[str, Any], space: int = 8) -> tuple[int, int]:
    time = config.get("temporal_compression_ratio", 4)
    return int(config.get("spatial_compression_ratio", space)), int(time)


def _geometry(pipe: Any) -> Geometry:
    return Geometry(int(pipe.vae.config.latent_channels), *_scales(pipe.vae.config))


FAMILY = Family(
    "hunyuanvideo",
    denoisers={"HunyuanVideo15Transformer3DModel": Denoiser(reads_values=True)},
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
    pipelines={
        "HunyuanVideoPipeline": Pipeline(16),
        "HunyuanVideoImageToVideoPipeline": Pipeline(16, needs=("image",), clean_first=True),
        "HunyuanVideoFramepackPipeline": Pipeline(16, needs=("image",)),
        "HunyuanVideo15ImageToVideoPipeline": Pipeline(16, needs=("image",)),
    },
    latents={"HunyuanVideo": _geometry},
    models={
        "hunyuanvideo": Model(
            Part("HunyuanVideoTransformer3DModel", {}),
            Part("AutoencoderKLHunyuanVideo", {}, torch.float16),
            encoders={
                # A template of 95 tokens, then 256 tokens of text.
                "text_encoder": encoder("LlamaModel", LLAMA, 351, torch.float16, states=True),
                "text_encoder_2": encoder("CLIPTextModel", CLIP, 77, torch.float16),
            },
            pipeline="HunyuanVideoPipeline",
            schedulers={"scheduler": (FLOW, {"shift": 7.0})},
        ),
        "hunyuanvideo-1.5": Model(
            Part("HunyuanVideo15Transformer3DModel", {"target_size": 960, "task_type": "t2v"}),
            Part("AutoencoderKLHunyuanVideo15", {}),
            encoders={
                "text_encoder": encoder("Qwen2_5_VLTextModel", QWEN_7B, 1108, states=True),
                "text_encoder_2": encoder("T5EncoderModel", BYT5, 256),
            },
            pipeline="HunyuanVideo15Pipeline",
            schedulers={
                "scheduler": (FLOW, {"shift": 9.0}),
                "guider": ("ClassifierFreeGuidance", {"guidance_scale": 6.0}),
            },
        ),
    },
)
