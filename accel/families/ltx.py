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


def _conditions(given: Mapping[str, Any], frames: int | None) -> list[Any]:
    """Return what LTX-Video is to keep: first and last by frame, a video from the first on."""
    from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition

    places = {"image": 0, "video": 0, "last_image": (frames or 1) - 1}
    return [
        LTXVideoCondition(
            frame_index=places[key], **{"video" if key == "video" else "image": value}
        )
        for key, value in given.items()
    ]


def _conditions_2(given: Mapping[str, Any], frames: int | None) -> list[Any]:
    """Return what LTX-2 is to keep, by latent frame: 0 is the first and -1 the last."""
    from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition

    places = {"image": 0, "video": 0, "last_image": -1}
    return [LTX2VideoCondition(frames=value, index=places[key]) for key, value in given.items()]


FAMILY = Family(
    "ltx",
    vaes={"AutoencoderKLLTXVideo": Vae(_scales)},
    decoders={"LTXVideoDecoder3d": Decoder(("norm_out", "conv_act"))},
    strips={"LTXVideoResnetBlock3d": Strip(2), "LTXVideoUpsampler3d": Strip(1, 2)},
    pipelines={
        "LTXPipeline": Pipeline(32),
        "LTXImageToVideoPipeline": Pipeline(32, needs=("image",)),
        "LTXConditionPipeline": Pipeline(32, conditions=_conditions),
        "LTX2ImageToVideoPipeline": Pipeline(32, needs=("image",)),
        "LTX2ConditionPipeline": Pipeline(32, conditions=_conditions_2),
    },
    latents={"LTX": _geometry},
)
