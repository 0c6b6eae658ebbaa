"""AnimateDiff: Stable Diffusion with motion modules."""

from __future__ import annotations

from typing import Any

import torch

from accel.families.components import Part
from accel.families.encoders import CLIP, encoder
from accel.families.family import Denoiser, Family, Geometry, Model, Pipeline
from accel.families.stable_diffusion import KL, kl_scales


def _geometry(pipe: Any) -> Geometry:
    return Geometry(int(pipe.unet.config.in_channels), *kl_scales(pipe.vae.config), casts=False)


FAMILY = Family(
    "animatediff",
    denoisers={
        "UNetMotionModel": Denoiser(
            positions=lambda config: (config.get("motion_max_seq_length", 32), None),
        )
    },
    pipelines={
        "AnimateDiffPipeline": Pipeline(),
        "AnimateDiffVideoToVideoPipeline": Pipeline(needs=("video",)),
        "AnimateDiffControlNetPipeline": Pipeline(needs=("control",)),
    },
    latents={"AnimateDiff": _geometry},
    models={
        "animatediff": Model(
            Part(
                "UNetMotionModel",
                {"cross_attention_dim": 768, "motion_max_seq_length": 32},
                torch.float16,
            ),
            Part("AutoencoderKL", KL, torch.float16),
            2,
            {"text_encoder": encoder("CLIPTextModel", CLIP, 77, torch.float16)},
            pipeline="AnimateDiffPipeline",
            schedulers={"scheduler": ("DDIMScheduler", {"beta_schedule": "linear"})},
        )
    },
)
