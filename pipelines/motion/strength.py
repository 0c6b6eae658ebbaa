"""How strongly a motion is followed, for the whole picture or place by place.

    strength: 0.2                                        0 follows the motion, 1 is free
    strength: {default: 0.2, regions: [{polygon: [[x, y], ...], strength: 0.9, by: [dx, dy]}]}
    strength: {map: strength.npy}                        [H, W] or [F, H, W] in 0..1
    strength: {map: strength.png}                        black follows the motion, white is free

A region may move like a drawn layer (``by`` or ``keys``). Gamma is chosen before any noise is
drawn, so noise mixed with it stays exactly Gaussian.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from accel.core.validate import from_dict, number, text
from accel.pipelines.motion.array_formats import open_array
from accel.pipelines.motion.grid import Grid
from accel.pipelines.motion.layers import Layer


@dataclass(frozen=True)
class Region:
    """A polygon with its own strength; ``by`` and ``keys`` move it like a drawn layer."""

    polygon: tuple[tuple[float, float], ...]
    strength: float
    by: tuple[float, float] | None = None
    keys: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        number("region strength", self.strength, 0.0, 1.0)
        _ = self.layer

    @cached_property
    def layer(self) -> Layer:
        """The region as a drawn layer."""
        by = (0.0, 0.0) if self.by is None and not self.keys else self.by
        return Layer(self.polygon, by, self.keys)


@dataclass(frozen=True)
class Strength:
    """``default`` outside of all ``regions`` (later ones on top), or a ``map`` file."""

    default: float = 0.2
    regions: tuple[Region, ...] = ()
    map: str | None = None

    def __post_init__(self) -> None:
        number("strength default", self.default, 0.0, 1.0)
        if not isinstance(self.regions, (list, tuple)):
            raise ValueError(f"strength regions must be a list, got {self.regions!r}")
        if self.map is not None:
            text("strength map", self.map)
        if self.map is not None and self.regions:
            raise ValueError("strength has either regions or a map, not both")
        regions = tuple(from_dict(Region, data, "strength region") for data in self.regions)
        object.__setattr__(self, "regions", regions)

    @classmethod
    def parse(cls, data: Any) -> Strength:
        """Return the strength of a job file: a number from 0 to 1, or a mapping.

        Raises:
            ValueError: Anything else, or a bad value in it.
        """
        if isinstance(data, (cls, Mapping)):
            return from_dict(cls, data, "strength")
        return cls(number("strength", data, 0.0, 1.0))


def make_strength(strength: Any, *, frames: int, height: int, width: int) -> float | Tensor:
    """Return a number, or gamma [F or 1, H, W] for every place.

    Args:
        strength: A ``Strength``, or what one is parsed from.
        frames: Number of frames F.
        height: Pixels H.
        width: Pixels W.

    Raises:
        ValueError: Bad values, or a map of another size.
    """
    config = Strength.parse(strength)
    if config.map is not None:
        return _read_map(config.map, frames, height, width)
    if not config.regions:
        return float(config.default)
    grid = Grid(height, width)
    gamma = np.full((frames, height, width), config.default, np.float32)
    for region in config.regions:
        for k in range(frames):
            at = k / max(frames - 1, 1)
            gamma[k][region.layer.mask(at, grid)] = region.strength
    return torch.from_numpy(gamma)


def _read_map(path: str, frames: int, height: int, width: int) -> Tensor:
    file = open_array("strength map", path)
    if file.kind == "flo":
        raise ValueError(f"strength map {path} holds a flow, not a map")
    shape = file.shape if file.kind == "array" else file.shape[:2]
    if shape not in {(height, width), (1, height, width), (frames, height, width)}:
        raise ValueError(
            f"strength map {path} has shape {shape}, needs {(frames, height, width)} or "
            f"{(height, width)}"
        )
    gamma = file.numbers() if file.kind == "array" else file.gray()
    low, high = float(gamma.min()), float(gamma.max())
    if low < 0 or high > 1:
        raise ValueError(
            f"strength map {path} must hold values from 0 to 1, has {low:g} to {high:g}; scale it"
        )
    return torch.from_numpy(np.ascontiguousarray(gamma.reshape(-1, height, width)))
