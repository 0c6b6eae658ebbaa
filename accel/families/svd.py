"""Stable Video Diffusion."""

from __future__ import annotations

from typing import Any

import torch

from accel.families.components import Part
from accel.families.encoders import VISION, encoder
from accel.families.family import Decoder, Family, Geometry, Model, Pipeline, Vae
from accel.families.stable_diffusion import KL, kl_scales


def _geometry(pipe: Any) -> Geometry:
    # Half of the UNet's input is the first frame.
    channels = int(pipe.vae.config.latent_channels)
    return Geometry(
        channels, *kl_scales(pipe.vae.config), layout="BFCHW", casts=False, clocks=(0.32, 0.42)
    )


FAMILY = Family(
    "svd",
    vaes={"AutoencoderKLTemporalDecoder": Vae(kl_scales, framewise=True, mixes_frames=True)},
    decoders={"TemporalDecoder": Decoder(grouped=True)},
    grouped_blocks={"TemporalResnetBlock": "resnet", "AlphaBlender": "blender"},
    unet_parts=("TemporalBasicTransformerBlock", "TemporalResnetBlock"),
    pipelines={"StableVideoDiffusionPipeline": Pipeline(needs=("image",))},
    latents={"StableVideoDiffusion": _geometry},
    models={
        "svd": Model(
            Part("UNetSpatioTemporalConditionModel", {"num_frames": 14}, torch.float16),
            Part(
                "AutoencoderKLTemporalDecoder",
                {k: v for k, v in KL.items() if k != "up_block_types"},
                torch.float16,
            ),
            2,
            {
                "image_encoder": encoder(
                    "CLIPVisionModelWithProjection", VISION, dtype=torch.float16
                )
            },
            pipeline="StableVideoDiffusionPipeline",
            schedulers={
                "scheduler": (
                    "EulerDiscreteScheduler",
                    {
                        "prediction_type": "v_prediction",
                        "timestep_type": "continuous",
                        "use_karras_sigmas": True,
                        "sigma_max": 700.0,
                        "sigma_min": 0.002,
                    },
                )
            },
        )
    },
)
