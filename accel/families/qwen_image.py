"""Qwen-Image, whose VAE is a relative of Wan's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accel.families.family import Decoder, Family, Pipeline, Strip, Vae


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
    strips={
        "QwenImageResidualBlock": Strip(2, cached=True),
        "QwenImageResample": Strip(1, 2, cached=True),
    },
)
