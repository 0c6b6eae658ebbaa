"""Qwen-Image, whose VAE is a relative of Wan's."""

from __future__ import annotations

from accel.families.family import Decoder, Family, Strip

FAMILY = Family(
    "qwen-image",
    decoders={
        "QwenImageDecoder3d": Decoder(("norm_out", "nonlinearity"), pieces="joined"),
        "QwenImage21Decoder3d": Decoder(pieces="joined"),
    },
    strips={
        "QwenImageResidualBlock": Strip(2, cached=True),
        "QwenImageResample": Strip(1, 2, cached=True),
    },
)
