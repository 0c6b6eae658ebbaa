"""Qwen-Image, whose VAE is a relative of Wan's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accel.families.components import Part
from accel.families.encoders import FLOW, QWEN_VL_7B, encoder
from accel.families.family import Decoder, Family, Model, Pipeline, Strip, Vae

SHIFT: Mapping[str, Any] = {
    "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 0.9, "base_image_seq_len": 256,
    "max_image_seq_len": 8192, "shift_terminal": 0.02, "time_shift_type": "exponential",
}  # fmt: skip


def _model(pipeline: str) -> Model:
    return Model(
        Part("QwenImageTransformer2DModel", {}),
        Part("AutoencoderKLQwenImage", {}),
        encoders={
            "text_encoder": encoder("Qwen2_5_VLForConditionalGeneration", QWEN_VL_7B, states=True)
        },
        pipeline=pipeline,
        schedulers={"scheduler": (FLOW, SHIFT)},
    )


def _scales(config: Mapping[str, Any]) -> tuple[int, int]:
    return 2 ** len(config.get("temperal_downsample", (False, True, True))), 1


FAMILY = Family(
    "qwen-image",
    vaes={"AutoencoderKLQwenImage": Vae(_scales)},
    decoders={
        "QwenImageDecoder3d": Decoder(("norm_out", "nonlinearity"), pieces="joined"),
        "QwenImage21Decoder3d": Decoder(pieces="joined"),
    },
    pipelines={
        "QwenImagePipeline": Pipeline(16, images=True),
        "QwenImageEditPipeline": Pipeline(16, images=True, needs=("image",)),
        "QwenImageEditPlusPipeline": Pipeline(
            16, images=True, needs=("image",), inputs={"references": "image"}
        ),
        "QwenImageImg2ImgPipeline": Pipeline(16, images=True, needs=("image",)),
        "QwenImageInpaintPipeline": Pipeline(16, images=True, needs=("image", "mask")),
        "QwenImageControlNetPipeline": Pipeline(16, images=True, needs=("control",)),
    },
    models={
        "qwen-image": _model("QwenImagePipeline"),
        "qwen-image-edit": _model("QwenImageEditPipeline"),
    },
    strips={
        "QwenImageResidualBlock": Strip(2, cached=True),
        "QwenImageResample": Strip(1, 2, cached=True),
    },
)
