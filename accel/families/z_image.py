"""Z-Image."""

from __future__ import annotations

from accel.families.components import Part
from accel.families.encoders import FLOW, QWEN3_4B, encoder
from accel.families.family import Family, Model
from accel.families.flux import VAE


def _model(shift: float) -> Model:
    return Model(
        Part("ZImageTransformer2DModel", {}),
        Part("AutoencoderKL", VAE),
        encoders={"text_encoder": encoder("Qwen3Model", QWEN3_4B, states=True)},
        pipeline="ZImagePipeline",
        schedulers={"scheduler": (FLOW, {"shift": shift})},
    )


FAMILY = Family("z-image", models={"z-image": _model(6.0), "z-image-turbo": _model(3.0)})
