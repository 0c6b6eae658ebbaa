"""Models on the meta device from configurations: released ones, folders, hub ids, loaded ones.

Nothing but configurations is downloaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from accel import families
from accel.core.structure import denoisers
from accel.core.validate import did_you_mean
from accel.families.components import Part
from accel.families.family import Model
from accel.families.sizes import SizeRule
from accel.memory import encoders


@dataclass(frozen=True)
class Video:
    """The size of what is generated, in pixels and frames."""

    width: int
    height: int
    frames: int


def find(model: str) -> Model:
    """Return a released model by its short name, or the model of a folder or hub id.

    Raises ValueError for a model whose denoiser or VAE has a class that is in no family.
    """
    released = families.models()
    if model in released:
        return released[model]
    folder = Path(model).expanduser()
    if "/" not in model and not folder.is_dir():
        hint = did_you_mean(model, list(released))
        raise ValueError(
            f"no model {model!r}{hint}: not 'tiny', not one of {list(released)}, not a folder"
        )
    from diffusers import DiffusionPipeline

    model = str(folder) if folder.is_dir() else model
    index = DiffusionPipeline.load_config(model)
    names = [k for k in ("transformer", "unet") if k in index]
    known = families.denoisers()
    if not names or index[names[0]][1] not in known or "vae" not in index:
        raise ValueError(
            f"cannot simulate {model!r}: its denoiser must be one of {list(known)} and it needs "
            f"a VAE; it has {sorted(k for k in index if not k.startswith('_'))}"
        )
    denoiser, vae = (_stored(model, name, index) for name in (names[0], "vae"))
    return _model(denoiser, vae, *encoders.stored(model, index, denoiser.cls))


def in_dtype(model: Model, dtype: torch.dtype) -> Model:
    """Return the model with all components in another dtype."""
    return replace(
        model,
        denoiser=replace(model.denoiser, dtype=dtype),
        vae=replace(model.vae, dtype=dtype),
        encoders={name: replace(e, dtype=dtype) for name, e in model.encoders.items()},
    )


def of_pipeline(pipe: Any) -> Model:
    """Return the classes and configurations of a loaded pipeline.

    Raises ValueError for classes that are in no family.
    """
    denoiser: Any = next(iter(denoisers(pipe).values()))
    vae, name, known = getattr(pipe, "vae", None), type(denoiser).__name__, families.denoisers()
    if name not in known or vae is None:
        raise ValueError(
            f"cannot simulate {type(pipe).__name__}: it needs a VAE, and its denoiser ({name}) "
            f"must be one of {list(known)}"
        )
    first = Part(name, dict(denoiser.config), denoiser.dtype)
    second = Part(type(vae).__name__, dict(vae.config), vae.dtype)
    return _model(first, second, *encoders.loaded(pipe, name))


def _model(denoiser: Part, vae: Part, known: Any, unknown: tuple[str, ...]) -> Model:
    batch = 2 if families.denoisers()[denoiser.cls].batched else 1
    return Model(denoiser, vae, batch, known, unknown)


def _stored(model: str, name: str, index: Mapping[str, Any]) -> Part:
    import diffusers

    cls = getattr(diffusers, index[name][1])
    dtype = torch.float32 if name == "vae" else torch.bfloat16
    return Part(cls.__name__, dict(cls.load_config(model, subfolder=name)), dtype)


def scales(cls: str, config: Mapping[str, Any]) -> tuple[int, int]:
    """Return pixels and frames per latent cell of a VAE; 8 and 4 for an unknown class."""
    known = families.vaes().get(cls)
    return (8, 4) if known is None else known.scales(config)


def size_rule(denoiser: Part, scales: tuple[int, int], grid: int = 1) -> SizeRule:
    """Return the sizes that a model can make.

    Args:
        denoiser: Its class and configuration.
        scales: Pixels and frames per latent cell.
        grid: Pixels that its pipeline wants width and height to be multiples of.
    """
    (space, time), patch = scales, denoiser.config.get("patch_size") or 1
    token = space * int(patch if isinstance(patch, int) else patch[-1])
    known = families.denoisers().get(denoiser.cls)
    frames, side = known.positions(denoiser.config) if known and known.positions else (None, None)
    return SizeRule(
        math.lcm(token, grid),
        time,
        None if side is None else side * space,
        None if frames is None else (frames - 1) * time + 1,
    )


def latent_shape(model: Model, video: Video) -> tuple[int, int, int, int, int]:
    """Return [batch, channels, frames, height, width] of the denoiser's latent.

    Raises ValueError for a size that is no multiple of what one token covers.
    """
    space, time = scales(model.vae.cls, model.vae.config)
    rule = size_rule(model.denoiser, (space, time))
    rule.check(video.width, video.height, None)
    if video.frames < 1:
        raise ValueError(f"frames must be at least 1, got {video.frames}")
    channels = model.vae.config.get("z_dim", model.vae.config.get("latent_channels", 16))
    frames = (video.frames - 1) // time + 1 if time > 1 else video.frames
    return model.batch, channels, frames, video.height // space, video.width // space


def framewise(vae: str) -> bool:
    """Return whether a VAE of this class takes frames as samples of a batch."""
    known = families.vaes().get(vae)
    return known is not None and known.framewise
