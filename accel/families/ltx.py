"""LTX-Video."""

from __future__ import annotations

from typing import Any

from accel.families.family import Decoder, Family, Geometry, Strip


def _geometry(pipe: Any) -> Geometry:
    if (pipe.transformer_spatial_patch_size, pipe.transformer_temporal_patch_size) != (1, 1):
        raise ValueError("motion for LTX needs a transformer with patches of one latent pixel")
    return Geometry(
        int(pipe.vae.config.latent_channels),
        pipe.vae_spatial_compression_ratio,
        pipe.vae_temporal_compression_ratio,
        "tokens",
    )


FAMILY = Family(
    "ltx",
    decoders={"LTXVideoDecoder3d": Decoder(("norm_out", "conv_act"))},
    strips={"LTXVideoResnetBlock3d": Strip(2), "LTXVideoUpsampler3d": Strip(1, 2)},
    latents={"LTX": _geometry},
)
