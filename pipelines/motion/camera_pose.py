"""Where a camera is, per frame or at a time of the clip."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from accel.core.validate import number, one_of, pair
from accel.pipelines.motion.layers import EASINGS


@dataclass(frozen=True)
class Pose:
    """Where the camera is: ``pan`` in pixels, ``zoom`` a factor, and ``roll`` in degrees.

    They move the picture's content about its center. ``orbit``: degrees to the right and up round
    the middle of the scene; ``dolly``: forward, as a fraction of the median depth.
    """

    pan: tuple[float, float] = (0.0, 0.0)
    zoom: float = 1.0
    roll: float = 0.0
    orbit: tuple[float, float] = (0.0, 0.0)
    dolly: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "pan", pair("camera pan", self.pan))
        object.__setattr__(self, "orbit", pair("camera orbit", self.orbit))
        number("camera roll", self.roll)
        number("camera zoom", self.zoom, 0.01, 100.0)
        number("camera dolly", self.dolly, -100.0, 100.0)

    @property
    def matrix(self) -> np.ndarray:
        """Homogeneous matrix [3, 3] of pan, zoom and roll about the picture's center."""
        c, s = math.cos(math.radians(self.roll)), math.sin(math.radians(self.roll))
        return np.array(
            [
                [self.zoom * c, -self.zoom * s, self.pan[0]],
                [self.zoom * s, self.zoom * c, self.pan[1]],
                [0, 0, 1],
            ]
        )

    @property
    def turn(self) -> np.ndarray:
        """Rotation [3, 3] of the scene about its middle."""
        yaw, pitch = (math.radians(-angle) for angle in self.orbit)
        across = [[math.cos(yaw), 0, -math.sin(yaw)], [0, 1, 0], [math.sin(yaw), 0, math.cos(yaw)]]
        up = [
            [1, 0, 0],
            [0, math.cos(pitch), math.sin(pitch)],
            [0, -math.sin(pitch), math.cos(pitch)],
        ]
        return np.asarray(up) @ np.asarray(across)


@dataclass(frozen=True)
class Key(Pose):
    """The pose that the camera has reached at time ``at`` (0..1) of the clip.

    What is left out is as in the first frame. ``easing`` is that of the way to this key.
    """

    at: float = 1.0
    easing: str = "linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        number("camera key at", self.at, 0.0, 1.0)
        one_of("camera key easing", self.easing, tuple(EASINGS))
