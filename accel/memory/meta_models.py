"""Models on the meta device from configurations: released ones, folders, hub ids, loaded ones.

Nothing but configurations is downloaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from accel import families
from accel.core.validate import did_you_mean
from accel.families.components import Part
from accel.families.family import Model
from accel.families.sizes import SizeRule
from accel.memory.configurations import of_pipeline, stored

__all__ = [
    "Size", "Video", "find", "framewise", "in_dtype", "latent_shape", "of_pipeline", "scales",
    "size_rule",
]  # fmt: skip


class Size(Protocol):
    """The attributes of a job that are read: pixels and frames."""

    @property
    def width(self) -> int | None:
        """Width in pixels."""

    @property
    def height(self) -> int | None:
        """Height in pixels."""

    @property
    def frames(self) -> int | None:
        """Number of frames."""


@dataclass(frozen=True)
class Video:
    """The size of what is generated, in pixels and frames."""

    width: int
    height: int
    frames: int


def find(model: str) -> Model:
    """Return a released model by its short name, or the model of a folder or hub id.

    Raises ValueError for a model without a denoiser or a VAE that diffusers has.
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
    return stored(str(folder) if folder.is_dir() else model)


def in_dtype(model: Model, dtype: torch.dtype) -> Model:
    """Return the model with all components in another dtype."""
    return replace(
        model,
        denoiser=replace(model.denoiser, dtype=dtype),
        vae=replace(model.vae, dtype=dtype),
        encoders={name: replace(e, dtype=dtype) for name, e in model.encoders.items()},
        second=None if model.second is None else replace(model.second, dtype=dtype),
        others={name: replace(part, dtype=dtype) for name, part in model.others.items()},
    )


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
