"""Flows from a job's ``motion``: pixels from each frame to the next, and back.

    motion: {camera: {pan: [dx, dy], zoom: 1.02, roll: 1.5}}     per frame: pixels, factor, degrees
    motion: {drag: [{polygon: [[x, y], ...], by: [dx, dy]}]}     pixels over the whole clip
    motion: {flow: forward.npy}                                  float [F - 1, 2, H, W] pixels

``camera`` says how the picture's content moves, about its centre: ``pan: [2, 0]`` moves everything
right by 2 pixels a frame. Dragged polygons lie on top of the camera's motion, later ones above
earlier ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from accel.config import from_dict


@dataclass(frozen=True)
class Camera:
    """Constant motion of the whole picture, per frame: pixels, factor, degrees (clockwise)."""

    pan: tuple[float, float] = (0.0, 0.0)
    zoom: float = 1.0
    roll: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "pan", _pair("camera pan", self.pan))
        if not 0.5 <= self.zoom <= 2.0:
            raise ValueError(f"camera zoom is a factor per frame, 0.5 to 2, got {self.zoom!r}")

    def displacement(self, points: np.ndarray, centre: np.ndarray, sign: int) -> np.ndarray:
        """Flow at ``points [..., 2]`` to the next frame (``sign`` 1) or the previous one (-1)."""
        angle = math.radians(self.roll)
        turn = self.zoom * np.array(
            [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        )
        pan = np.asarray(self.pan)
        if sign > 0:
            return (points - centre) @ turn.T + centre + pan - points
        return (points - pan - centre) @ np.linalg.inv(turn).T + centre - points


@dataclass(frozen=True)
class Drag:
    """A polygon that is dragged in a straight line over the whole clip; ``by`` in pixels."""

    polygon: tuple[tuple[float, float], ...]
    by: tuple[float, float]

    def __post_init__(self) -> None:
        corners = tuple(_pair("drag polygon corner", c) for c in self.polygon)
        if len(corners) < 3:
            raise ValueError(f"a drag polygon needs 3 corners or more, got {len(corners)}")
        object.__setattr__(self, "polygon", corners)
        object.__setattr__(self, "by", _pair("drag by", self.by))

    def mask(self, progress: float, height: int, width: int) -> np.ndarray:
        """Boolean [H, W]: where the polygon is after ``progress`` (0..1) of the way."""
        image = Image.new("1", (width, height))
        moved = [(x + progress * self.by[0], y + progress * self.by[1]) for x, y in self.polygon]
        ImageDraw.Draw(image).polygon(moved, fill=1)
        return np.asarray(image)


def make_flow(
    motion: Mapping[str, Any], *, frames: int, height: int, width: int
) -> tuple[Tensor, Tensor | None]:
    """Forward and backward flow of a clip, float [frames - 1, 2, height, width] pixels.

    The backward flow of a flow file is None (it is computed by inversion). Raises ValueError for an
    unknown kind of motion, a bad number, or a flow file of the wrong shape.
    """
    unknown = set(motion) - {"camera", "drag", "flow"}
    if unknown or not motion:
        raise ValueError(f"motion must have camera, drag or flow, got {sorted(map(str, motion))}")
    if "flow" in motion:
        if len(motion) > 1:
            raise ValueError("motion flow stands alone, without camera or drag")
        return _read_flow(str(motion["flow"]), (frames - 1, 2, height, width)), None
    camera = from_dict(Camera, motion.get("camera", {}), "motion camera")
    drags = motion.get("drag", [])
    if not isinstance(drags, (list, tuple)):
        raise ValueError(f"motion drag must be a list of polygons, got {drags!r}")
    drags = [from_dict(Drag, d, "motion drag") for d in drags]
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    points, centre = np.stack([x, y], -1), np.array([(width - 1) / 2, (height - 1) / 2])
    forward = np.empty((frames - 1, height, width, 2))
    backward = np.empty_like(forward)
    for k in range(frames - 1):
        forward[k] = camera.displacement(points, centre, 1)
        backward[k] = camera.displacement(points, centre, -1)
        for drag in drags:
            step = np.asarray(drag.by) / (frames - 1)
            forward[k][drag.mask(k / (frames - 1), height, width)] = step
            backward[k][drag.mask((k + 1) / (frames - 1), height, width)] = -step
    return _as_flow(forward), _as_flow(backward)


def _as_flow(field: np.ndarray) -> Tensor:
    return torch.from_numpy(field).float().permute(0, 3, 1, 2).contiguous()


def _pair(name: str, value: Any) -> tuple[float, float]:
    numbers = list(value) if isinstance(value, (list, tuple)) else []
    if len(numbers) != 2 or not all(
        isinstance(n, (int, float)) and math.isfinite(n) for n in numbers
    ):
        raise ValueError(f"{name} must be two numbers [x, y], got {value!r}")
    return float(numbers[0]), float(numbers[1])


def _read_flow(path: str, shape: tuple[int, int, int, int]) -> Tensor:
    if not Path(path).is_file():
        raise ValueError(f"flow file {path} does not exist")
    try:
        flow = torch.from_numpy(np.load(path, allow_pickle=False)).float()
    except (ValueError, TypeError) as error:
        raise ValueError(f"flow file {path} is not a numpy array of numbers: {error}") from error
    if tuple(flow.shape) != shape:
        raise ValueError(
            f"flow file {path} has shape {tuple(flow.shape)}, the job needs {shape} = "
            "[frames - 1, 2, height, width]"
        )
    return flow
