"""Sizes of well-known models, to simulate their memory before anything is downloaded.

``BUILT_IN`` holds configurations by name; ``INPUTS`` says, per denoiser class, what one call at a
width, height and number of frames looks like. Everything is on the meta device.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from accel.config import did_you_mean


def size_of(module: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return sum(t.numel() * t.itemsize for t in [*module.parameters(), *module.buffers()])


@dataclass(frozen=True)
class Part:
    """A diffusers class and its configuration; ``dtype`` of its weights and activations."""

    cls: str
    config: Mapping[str, Any]
    dtype: torch.dtype = torch.bfloat16

    def build(self, **changes: Any) -> Any:
        """On the meta device, without weights."""
        import diffusers

        with torch.device("meta"):
            module = getattr(diffusers, self.cls).from_config({**self.config, **changes})
        return nn.Module.to(module, "meta", self.dtype).eval()

    def layers(self) -> dict[str, int]:
        """Numbers of layers by the name of their setting."""
        import diffusers

        defaults = inspect.signature(getattr(diffusers, self.cls).__init__).parameters
        return {
            name: self.config.get(name, defaults[name].default)
            for name in ("num_layers", "num_single_layers")
            if name in defaults
        }

    def weights(self) -> int:
        """Bytes, from one layer of each kind and from one more."""
        counts = self.layers()
        ones = dict.fromkeys(counts, 1)
        base = total = size_of(self.build(**ones))
        for name, count in counts.items():
            total += (count - 1) * (size_of(self.build(**{**ones, name: 2})) - base)
        return total


@dataclass(frozen=True)
class Family:
    """A denoiser and its VAE. ``batch``: 2 where both guidance branches run in one call."""

    denoiser: Part
    vae: Part
    batch: int = 1


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
    ("CogVideoXTransformer3DModel", "UNetMotionModel", "UNetSpatioTemporalConditionModel"), 2
)
FRAMEWISE = ("AutoencoderKL", "AutoencoderKLTemporalDecoder")  # frames are samples of a batch

BUILT_IN = {
    "wan-14b": Family(
        Part("WanTransformer3DModel", _WAN), Part("AutoencoderKLWan", {}, torch.float32)
    ),
    "wan-1.3b": Family(
        Part("WanTransformer3DModel", _WAN_SMALL), Part("AutoencoderKLWan", {}, torch.float32)
    ),
    "hunyuanvideo": Family(
        Part("HunyuanVideoTransformer3DModel", {}),
        Part("AutoencoderKLHunyuanVideo", {}, torch.float16),
    ),
    "cogvideox-5b": Family(
        Part("CogVideoXTransformer3DModel", _COG), Part("AutoencoderKLCogVideoX", {}), batch=2
    ),
    "animatediff": Family(
        Part("UNetMotionModel", {"cross_attention_dim": 768, "motion_max_seq_length": 32}, _HALF),
        Part("AutoencoderKL", _SD_VAE, _HALF),
        batch=2,
    ),
    "svd": Family(
        Part("UNetSpatioTemporalConditionModel", {"num_frames": 14}, _HALF),
        Part("AutoencoderKLTemporalDecoder", {k: v for k, v in _SD_VAE.items() if k != _UP}, _HALF),
        batch=2,
    ),
    "flux": Family(Part("FluxTransformer2DModel", _FLUX), Part("AutoencoderKL", _FLUX_VAE)),
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
    batch = BATCHED.get(index[names[0]][1], 1)
    return Family(_stored(model, names[0], index), _stored(model, "vae", index), batch)


def _stored(model: str, name: str, index: Mapping[str, Any]) -> Part:
    import diffusers

    cls = getattr(diffusers, index[name][1])
    dtype = torch.float32 if name == "vae" else torch.bfloat16
    return Part(cls.__name__, dict(cls.load_config(model, subfolder=name)), dtype)


# ------------------------------------------------------------------------------------------ inputs


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A tensor of sizes only."""
    return torch.empty(shape, dtype=dtype, device="meta")


def scales(vae: Part) -> tuple[int, int]:
    """Pixels and frames per latent cell."""
    if vae.cls == "AutoencoderKLWan":
        default = 8 if vae.config.get("patch_size") is None else 16
        space = vae.config.get("scale_factor_spatial", default)
        return int(space), int(vae.config.get("scale_factor_temporal", 4))
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
    "FluxTransformer2DModel": _flux,
    "UNetMotionModel": _animatediff,
    "UNetSpatioTemporalConditionModel": _svd,
}
