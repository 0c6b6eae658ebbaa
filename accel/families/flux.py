"""FLUX.1 and FLUX.2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accel.families.components import Part
from accel.families.encoders import CLIP, FLOW, MISTRAL_24B, T5, encoder
from accel.families.family import Family, Model, Pipeline, Vae
from accel.families.stable_diffusion import KL

VAE: Mapping[str, Any] = {
    **KL, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False,
    "scaling_factor": 0.3611, "shift_factor": 0.1159,
}  # fmt: skip
SHIFT: Mapping[str, Any] = {
    "base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 4096, "max_shift": 1.15,
    "shift": 3.0, "use_dynamic_shifting": True,
}  # fmt: skip


def _model(pipeline: str) -> Model:
    return Model(
        Part("FluxTransformer2DModel", {"guidance_embeds": True}),
        Part("AutoencoderKL", VAE),
        encoders={
            "text_encoder": encoder("CLIPTextModel", CLIP, 77),
            "text_encoder_2": encoder("T5EncoderModel", T5),
        },
        pipeline=pipeline,
        schedulers={"scheduler": (FLOW, SHIFT)},
    )


_REFERENCES = {"references": "image"}  # a list of pictures, the job's image first

FAMILY = Family(
    "flux",
    vaes={"AutoencoderKLFlux2": Vae(lambda config: (8, 1))},
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
        "flux": _model("FluxPipeline"),
        "flux-kontext": _model("FluxKontextPipeline"),
        "flux.2-dev": Model(
            Part("Flux2Transformer2DModel", {}),
            Part("AutoencoderKLFlux2", {}),
            encoders={
                "text_encoder": encoder("Mistral3ForConditionalGeneration", MISTRAL_24B),
            },
            pipeline="Flux2Pipeline",
            schedulers={"scheduler": (FLOW, SHIFT)},
        ),
    },
)
