"""Sizes of well-known models, to simulate their memory before anything is downloaded.

``BUILT_IN`` holds configurations by name; ``INPUTS`` says, per denoiser class, what one call at a
width, height and number of frames looks like. Everything is on the meta device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from accel import encoders
from accel.config import did_you_mean
from accel.parts import Encoder, Part, meta
from accel.slicing import mochi


@dataclass(frozen=True)
class Family:
    """A denoiser, its VAE and its encoders of prompts and images by component. ``batch``: 2 where
    both guidance branches run in one call. ``unknown``: encoders that cannot be simulated.
    """

    denoiser: Part
    vae: Part
    batch: int = 1
    encoders: Mapping[str, Encoder] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True)
class Video:
    """What is generated: pixels and frames."""

    width: int
    height: int
    frames: int


_WAN = {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40, "text_dim": 4096}
_WAN_SMALL = {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30, "text_dim": 4096}
_COG = {"num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True}
_FLUX = {"guidance_embeds": True}
_UP = "up_block_types"
_SD_VAE = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4, _UP: ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
_FLUX_VAE = {
    **_SD_VAE, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False,
}  # fmt: skip
_HALF = torch.float16
# Denoisers whose pipelines run both guidance branches in one call.
BATCHED = dict.fromkeys(
    (
        "CogVideoXTransformer3DModel", "MochiTransformer3DModel", "UNetMotionModel",
        "UNetSpatioTemporalConditionModel",
    ), 2,
)  # fmt: skip
FRAMEWISE = ("AutoencoderKL", "AutoencoderKLTemporalDecoder")  # frames are samples of a batch

BUILT_IN = {
    "wan-14b": Family(
        Part("WanTransformer3DModel", _WAN),
        Part("AutoencoderKLWan", {}, torch.float32),
        encoders=encoders.WAN,
    ),
    "wan-1.3b": Family(
        Part("WanTransformer3DModel", _WAN_SMALL),
        Part("AutoencoderKLWan", {}, torch.float32),
        encoders=encoders.WAN,
    ),
    "hunyuanvideo": Family(
        Part("HunyuanVideoTransformer3DModel", {}),
        Part("AutoencoderKLHunyuanVideo", {}, torch.float16),
        encoders=encoders.HUNYUANVIDEO,
    ),
    "cogvideox-5b": Family(
        Part("CogVideoXTransformer3DModel", _COG),
        Part("AutoencoderKLCogVideoX", {}),
        2,
        encoders.COGVIDEOX,
    ),
    "mochi": Family(
        Part("MochiTransformer3DModel", {}),
        Part("AutoencoderKLMochi", {"latent_channels": 12}),
        2,
        encoders.MOCHI,
    ),
    "animatediff": Family(
        Part("UNetMotionModel", {"cross_attention_dim": 768, "motion_max_seq_length": 32}, _HALF),
        Part("AutoencoderKL", _SD_VAE, _HALF),
        2,
        encoders.ANIMATEDIFF,
    ),
    "svd": Family(
        Part("UNetSpatioTemporalConditionModel", {"num_frames": 14}, _HALF),
        Part("AutoencoderKLTemporalDecoder", {k: v for k, v in _SD_VAE.items() if k != _UP}, _HALF),
        2,
        encoders.SVD,
    ),
    "flux": Family(
        Part("FluxTransformer2DModel", _FLUX),
        Part("AutoencoderKL", _FLUX_VAE),
        encoders=encoders.FLUX,
    ),
}


def find(model: str) -> Family:
    """A built-in configuration, or that of a folder or hub id with a ``model_index.json``.

    Raises ValueError for a model whose denoiser or VAE is of a class not listed here.
    """
    if model in BUILT_IN:
        return BUILT_IN[model]
    folder = Path(model).expanduser()
    if "/" not in model and not folder.is_dir():
        hint = did_you_mean(model, list(BUILT_IN))
        raise ValueError(
            f"no model {model!r}{hint}: not 'tiny', not one of {list(BUILT_IN)}, not a folder"
        )
    from diffusers import DiffusionPipeline

    index = DiffusionPipeline.load_config(model)
    names = [k for k in ("transformer", "unet") if k in index]
    if not names or index[names[0]][1] not in INPUTS or "vae" not in index:
        raise ValueError(
            f"cannot simulate {model!r}: its denoiser must be one of {list(INPUTS)} and it needs "
            f"a VAE; it has {sorted(k for k in index if not k.startswith('_'))}"
        )
    denoiser, vae = (_stored(model, name, index) for name in (names[0], "vae"))
    known, unknown = encoders.stored(model, index, denoiser.cls)
    return Family(denoiser, vae, BATCHED.get(denoiser.cls, 1), known, unknown)


def _stored(model: str, name: str, index: Mapping[str, Any]) -> Part:
    import diffusers

    cls = getattr(diffusers, index[name][1])
    dtype = torch.float32 if name == "vae" else torch.bfloat16
    return Part(cls.__name__, dict(cls.load_config(model, subfolder=name)), dtype)


# ------------------------------------------------------------------------------------------ inputs


def scales(vae: Part) -> tuple[int, int]:
    """Pixels and frames per latent cell."""
    if vae.cls == "AutoencoderKLWan":
        default = 8 if vae.config.get("patch_size") is None else 16
        space = vae.config.get("scale_factor_spatial", default)
        return int(space), int(vae.config.get("scale_factor_temporal", 4))
    if vae.cls == "AutoencoderKLMochi":
        return 8, 6
    return 8, 1 if vae.cls in FRAMEWISE else 4


def latent_shape(family: Family, video: Video) -> tuple[int, int, int, int, int]:
    """[batch, channels, frames, height, width] of the denoiser's latent.

    Raises ValueError if the size is no multiple of what one token covers.
    """
    space, time = scales(family.vae)
    patch = family.denoiser.config.get("patch_size") or 1
    multiple = space * (patch if isinstance(patch, int) else patch[-1])
    for name, pixels in (("width", video.width), ("height", video.height)):
        if pixels < multiple or pixels % multiple:
            raise ValueError(f"{name} must be a multiple of {multiple}, got {pixels}")
    if video.frames < 1:
        raise ValueError(f"frames must be at least 1, got {video.frames}")
    channels = family.vae.config.get("z_dim", family.vae.config.get("latent_channels", 16))
    frames = (video.frames - 1) // time + 1 if time > 1 else video.frames
    return family.batch, channels, frames, video.height // space, video.width // space


def _wan(denoiser: Any, latent: tuple[int, ...]) -> dict[str, Any]:
    batch, _, *rest = latent
    return {
        "hidden_states": meta(batch, denoiser.config.in_channels, *rest),
        "timestep": meta(batch, dtype=torch.int64),
        "encoder_hidden_states": meta(batch, 512, denoiser.config.text_dim),
    }


def _hunyuan(denoiser: Any, latent: tuple[int, ...]) -> dict[str, Any]:
    batch, config = latent[0], denoiser.config
    return {
        "hidden_states": meta(batch, config.in_channels, *latent[2:]),
        "timestep": meta(batch, dtype=torch.int64),
        "encoder_hidden_states": meta(batch, 256, config.text_embed_dim),
        "encoder_attention_mask": meta(batch, 256, dtype=torch.int64),
        "pooled_projections": meta(batch, config.pooled_projection_dim),
        "guidance": meta(batch),
    }


def _cogvideox(denoiser: Any, latent: tuple[int, ...]) -> dict[str, Any]:
    batch, channels, frames, height, width = latent
    tokens = frames * (height // 2) * (width // 2)
    table = meta(tokens, denoiser.config.attention_head_dim, dtype=torch.float32)
    return {
        "hidden_states": meta(batch, frames, channels, height, width),
        "timestep": meta(batch, dtype=torch.int64),
        "encoder_hidden_states": meta(batch, 226, denoiser.config.text_embed_dim),
        "image_rotary_emb": (table, table.clone()),
    }


def _mochi(denoiser: Any, latent: tuple[int, ...]) -> dict[str, Any]:
    """Also gives ``denoiser`` rotary tables that meta can make."""
    mochi.prepare_rotary(denoiser)
    batch, config = latent[0], denoiser.config
    return {
        "hidden_states": meta(*latent),
        "timestep": meta(batch, dtype=torch.int64),
        "encoder_hidden_states": meta(batch, 256, config.text_embed_dim),
        "encoder_attention_mask": meta(batch, 256, dtype=torch.bool),
    }


def _flux(denoiser: Any, latent: tuple[int, ...]) -> dict[str, Any]:
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


def _animatediff(denoiser: Any, latent: tuple[int, ...]) -> dict[str, Any]:
    batch, _, frames, *_ = latent
    return {
        "sample": meta(*latent),
        "timestep": meta(batch, dtype=torch.int64),
        "encoder_hidden_states": meta(batch * frames, 77, denoiser.config.cross_attention_dim),
    }


def _svd(denoiser: Any, latent: tuple[int, ...]) -> dict[str, Any]:
    batch, channels, frames, *size = latent
    return {
        "sample": meta(batch, frames, 2 * channels, *size),
        "timestep": meta(batch, dtype=torch.int64),
        "encoder_hidden_states": meta(batch, 1, denoiser.config.cross_attention_dim),
        "added_time_ids": meta(batch, 3),
    }


INPUTS: dict[str, Callable[[Any, tuple[int, ...]], dict[str, Any]]] = {
    "WanTransformer3DModel": _wan,
    "HunyuanVideoTransformer3DModel": _hunyuan,
    "CogVideoXTransformer3DModel": _cogvideox,
    "MochiTransformer3DModel": _mochi,
    "FluxTransformer2DModel": _flux,
    "UNetMotionModel": _animatediff,
    "UNetSpatioTemporalConditionModel": _svd,
}
