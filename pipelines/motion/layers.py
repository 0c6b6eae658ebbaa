"""Layers drawn by hand: polygons with a keyframed pose, and their exact flow.

The pose of a layer at time t in 0..1 of the clip is a similarity about its pivot,

    p = pivot + move(t) + scale(t) R(rotate(t)) (p0 - pivot)

so the flow of a pixel from frame k to frame k + 1 is pose(k + 1) applied after the inverse of
pose(k). Between keyframes move and rotate are linear, scale is geometric, in eased time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, TypeVar

import numpy as np
from PIL import Image, ImageDraw

from accel.core.validate import from_dict, number, one_of, pair
from accel.pipelines.motion.grid import Grid

EASINGS: dict[str, Callable[[float], float]] = {
    "linear": lambda t: t,
    "in": lambda t: t * t,
    "out": lambda t: t * (2 - t),
    "in-out": lambda t: t * t * (3 - 2 * t),
}


class Timed(Protocol):
    """What is reached at time ``at`` of a clip, by a way of an ``easing``."""

    @property
    def at(self) -> float:
        """Time from 0 to 1."""

    @property
    def easing(self) -> str:
        """One of ``EASINGS``."""


K = TypeVar("K", bound=Timed)


def from_start(name: str, keys: Sequence[K], start: K) -> tuple[K, ...]:
    """Return ``keys``, after ``start`` if the first of them is later.

    Raises ValueError, naming them, for times that do not rise.
    """
    times = [key.at for key in keys]
    if any(b <= a for a, b in pairwise(times)):
        raise ValueError(f"{name} must have rising times at, got {times}")
    return tuple(keys) if times[0] == 0.0 else (start, *keys)


def around(keys: Sequence[K], t: float) -> tuple[K, K, float]:
    """Return the keys before and after time ``t``, and how far, eased, the way between them is."""
    after = next((i for i, key in enumerate(keys) if key.at >= t), len(keys) - 1)
    a, b = keys[max(after - 1, 0)], keys[after]
    span = b.at - a.at
    return a, b, EASINGS[b.easing](min(1.0, (t - a.at) / span)) if span > 0 else 1.0


def polygon(name: str, value: Any) -> tuple[tuple[float, float], ...]:
    """``value`` as three corners or more.

    Raises ValueError naming it.
    """
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{name} must be a list of corners [x, y], got {value!r}")
    corners = tuple(pair(f"{name} corner", corner) for corner in value)
    if len(corners) < 3:
        raise ValueError(f"a {name} needs 3 corners or more, got {len(corners)}")
    return corners


@dataclass(frozen=True)
class Key:
    """Pose at time ``at`` (0..1).

    ``move`` in pixels from the drawn place, ``scale`` a factor, ``rotate`` in degrees, clockwise,
    ``easing`` of the way to this key.
    """

    at: float
    move: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0
    rotate: float = 0.0
    easing: str = "linear"

    def __post_init__(self) -> None:
        object.__setattr__(self, "at", number("key at", self.at, 0.0, 1.0))
        object.__setattr__(self, "move", pair("key move", self.move))
        object.__setattr__(self, "scale", number("key scale", self.scale, 0.01, 100.0))
        object.__setattr__(self, "rotate", number("key rotate", self.rotate))
        one_of("key easing", self.easing, tuple(EASINGS))


@dataclass(frozen=True)
class Layer:
    """A polygon and its motion: ``by`` in pixels over the whole clip, or ``keys``.

    Before the first key the layer is where it was drawn at time 0; after the last it stays. Higher
    ``z`` lies on top; of equal ones, the later. ``pivot`` defaults to the mean of the corners.
    """

    polygon: tuple[tuple[float, float], ...]
    by: tuple[float, float] | None = None
    keys: tuple[Key, ...] = ()
    easing: str = "linear"
    z: float = 0.0
    pivot: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        corners = polygon("drag polygon", self.polygon)
        object.__setattr__(self, "polygon", corners)
        one_of("drag easing", self.easing, tuple(EASINGS))
        object.__setattr__(self, "z", number("drag z", self.z))
        pivot = tuple(np.mean(corners, 0)) if self.pivot is None else pair("pivot", self.pivot)
        object.__setattr__(self, "pivot", pivot)
        object.__setattr__(self, "keys", self._all_keys())

    def _all_keys(self) -> tuple[Key, ...]:
        if (self.by is None) == (not self.keys):
            raise ValueError("a drag needs either by: [dx, dy] or keys: [{at: ..., move: ...}]")
        if self.by is not None:
            keys = [Key(1.0, pair("drag by", self.by), easing=self.easing)]
        elif not isinstance(self.keys, (list, tuple)):
            raise ValueError(f"drag keys must be a list, got {self.keys!r}")
        else:
            keys = [from_dict(Key, key, "drag key") for key in self.keys]
        return from_start("drag keys", keys, Key(0.0))

    def pose(self, t: float) -> tuple[np.ndarray, np.ndarray]:
        """Matrix [2, 2] and shift [2] at time ``t``: p = matrix (p0 - pivot) + pivot + shift."""
        a, b, x = around(self.keys, t)
        move = (1 - x) * np.asarray(a.move) + x * np.asarray(b.move)
        scale = math.exp((1 - x) * math.log(a.scale) + x * math.log(b.scale))
        angle = math.radians((1 - x) * a.rotate + x * b.rotate)
        c, s = math.cos(angle), math.sin(angle)
        return scale * np.array([[c, -s], [s, c]]), move

    def outline(self, t: float) -> list[tuple[float, float]]:
        """Return corners at time ``t``."""
        matrix, move = self.pose(t)
        pivot = np.asarray(self.pivot)
        return [tuple(matrix @ (np.asarray(p) - pivot) + pivot + move) for p in self.polygon]

    def mask(self, t: float, grid: Grid) -> np.ndarray:
        """Return boolean [rows, columns]: where the polygon is at time ``t``."""
        return fill(grid.finer(np.asarray(self.outline(t))), *grid.shape)

    def displacement(self, points: np.ndarray, t: float, later: float) -> np.ndarray:
        """Return flow [..., 2] at ``points [..., 2]`` (x, y) of time ``t`` to time ``later``."""
        (now, move), (then, further) = self.pose(t), self.pose(later)
        if np.array_equal(now, then):
            return np.broadcast_to(further - move, points.shape)
        pivot = np.asarray(self.pivot)
        origin = (points - pivot - move) @ np.linalg.inv(now).T
        return origin @ then.T + pivot + further - points


def fill(corners: Any, height: int, width: int) -> np.ndarray:
    """Return boolean [H, W]: inside of a polygon."""
    image = Image.new("1", (width, height))
    ImageDraw.Draw(image).polygon([tuple(corner) for corner in corners], fill=1)
    return np.asarray(image)
