"""LTX-Video and LTX-2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accel.families.family import Decoder, Family, Geometry, Pipeline, Strip, Vae


def _scales(config: Mapping[str, Any]) -> tuple[int, int]:
    halvings = 2 ** sum(config.get("spatio_temporal_scaling", (True, True, True, False)))
    space = config.get("spatial_compression_ratio") or config.get("patch_size", 4) * halvings
    time = config.get("temporal_compression_ratio") or config.get("patch_size_t", 1) * halvings
    return int(space), int(time)


def _geometry(pipe: Any) -> Geometry:
    config = pipe.transformer.config
    if (config.patch_size, config.patch_size_t) != (1, 1):
        raise ValueError("motion for LTX needs a transformer with patches of one latent pixel")
    channels = int(pipe.vae.config.latent_channels)
    return Geometry(channels, *_scales(pipe.vae.config), layout="tokens")


FAMILY = Family(
    "ltx",
    vaes={"AutoencoderKLLTXVideo": Vae(_scales)},
    decoders={
        "LTXVideoDecoder3d": Decoder(("norm_out", "conv_act")),
        "LTX2VideoDecoder3d": Decoder(("norm_out", "conv_act")),
    },
    strips={
        "LTXVideoResnetBlock3d": Strip(2), "LTXVideoUpsampler3d": Strip(1, 2),
        "LTX2VideoResnetBlock3d": Strip(2), "LTX2VideoUpsampler3d": Strip(1, 2),
    },
    pipelines={"LTXPipeline": Pipeline(32)},
    latents={"LTX": _geometry},
)  # fmt: skip
