"""FLUX.1."""

from __future__ import annotations

from typing import Any

from accel.families.components import Part, meta
from accel.families.encoders import CLIP, T5, encoder
from accel.families.family import Denoiser, Family, Model, Pipeline
from accel.families.stable_diffusion import KL


def _inputs(denoiser: Any, latent: tuple[int, ...]) -> dict[str, Any]:
    batch, config = latent[0], denoiser.config
    tokens = (latent[3] // 2) * (latent[4] // 2)
    return {
        "hidden_states": meta(batch, tokens, config.in_channels),
        "timestep": meta(batch),
        "encoder_hidden_states": meta(batch, 512, config.joint_attention_dim),
        "pooled_projections": meta(batch, config.pooled_projection_dim),
        "img_ids": meta(tokens, 3),
        "txt_ids": meta(512, 3),
        "guidance": meta(batch),
    }


_REFERENCES = {"references": "image"}  # a list of pictures, the job's image first

FAMILY = Family(
    "flux",
    denoisers={"FluxTransformer2DModel": Denoiser(_inputs)},
    pipelines={
        "FluxPipeline": Pipeline(16, images=True),
        "FluxImg2ImgPipeline": Pipeline(16, images=True, needs=("image",)),
        "FluxInpaintPipeline": Pipeline(16, images=True, needs=("image", "mask")),
        "FluxFillPipeline": Pipeline(16, images=True, needs=("image", "mask")),
        "FluxControlPipeline": Pipeline(16, images=True, needs=("control",)),
        "FluxControlNetPipeline": Pipeline(16, images=True, needs=("control",)),
        "FluxKontextPipeline": Pipeline(16, images=True),
        "Flux2Pipeline": Pipeline(16, images=True, inputs=_REFERENCES),
        "Flux2KleinPipeline": Pipeline(16, images=True, inputs=_REFERENCES),
    },
    models={
        "flux": Model(
            Part("FluxTransformer2DModel", {"guidance_embeds": True}),
            Part(
                "AutoencoderKL",
                {**KL, "latent_channels": 16, "use_quant_conv": False,
                 "use_post_quant_conv": False},
            ),
            encoders={
                "text_encoder": encoder("CLIPTextModel", CLIP, 77),
                "text_encoder_2": encoder("T5EncoderModel", T5),
            },
        )
    },
)  # fmt: skip
