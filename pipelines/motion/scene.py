"""A scene seen by a moving camera: the points of a depth map, projected into every frame.

The flow at a pixel is that of the nearest point there; gaps between points are filled from their
surroundings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from accel.core.run_log import logger
from accel.core.validate import from_dict, number, one_of, text
from accel.pipelines.motion.array_file import ArrayFile
from accel.pipelines.motion.array_formats import open_array

DARK = 0.2  # a 16-bit picture whose brightest pixel is darker holds distances, not nearness
KINDS = ("auto", "depth", "disparity", "inverse", "near")


@dataclass(frozen=True)
class Depth:
    """``file``: what says how far every pixel is; ``kind``: in which way.

    "depth" are distances in any unit, "disparity" and "inverse" are one over them, "near" is from 0
    (far) to 1 (near) as pictures of depth are drawn: distances from 5 to 1. "auto" takes "near" for
    gray pictures of whole numbers and "depth" for others. ``scale`` multiplies the values first.
    """

    file: str
    kind: str = "auto"
    scale: float = 1.0

    def __post_init__(self) -> None:
        text("camera depth file", self.file)
        one_of("camera depth kind", self.kind, KINDS)
        number("camera depth scale", self.scale, 1e-12, 1e12)

    @classmethod
    def parse(cls, data: Any) -> Depth:
        """Return the depth of a job file: a path, or a mapping with ``file``.

        Raises:
            ValueError: Anything else, or a bad value in it.
        """
        if isinstance(data, str):
            return cls(data)
        return from_dict(cls, data, "camera depth")

    def distances(self, height: int, width: int) -> np.ndarray:
        """Return the distance [height, width] of every pixel, positive.

        Raises ValueError naming the file.
        """
        file = open_array("depth file", self.file)
        if file.kind == "flo":
            raise ValueError(f"depth file {self.file} holds a flow, not depth")
        if file.kind == "array" and len(file.shape) != 2:
            raise ValueError(f"depth file {self.file} must be [H, W], got shape {file.shape}")
        kind = self.kind if self.kind != "auto" else "near" if file.white else "depth"
        values = file.numbers() if file.kind == "array" else file.gray()
        if kind == "near":
            _check_range(file, values)
            depth = 1 / (0.2 + 0.8 * values * self.scale)
        else:
            depth = self._positive(values * (file.white or 1) * self.scale, kind)
        logger.info(
            "%s: read as %s; distances from %.4g to %.4g, half of them below %.4g",
            file.name, kind, depth.min(), depth.max(), np.median(depth),
        )  # fmt: skip
        picture = Image.fromarray(depth.astype(np.float32))
        return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR)).astype(float)

    def _positive(self, values: np.ndarray, kind: str) -> np.ndarray:
        if values.min() <= 0:
            raise ValueError(
                f"depth file {self.file} must hold positive values of {kind}, has "
                f"{values.min():g} in {int((values <= 0).sum())} of {values.size} places; replace "
                "them by what is around them"
            )
        return values if kind == "depth" else 1 / values


def _check_range(file: ArrayFile, near: np.ndarray) -> None:
    """Raise ValueError for values that cannot be nearness from 0 to 1.

    A 16-bit picture that is nearly black holds millimeters.
    """
    if file.white > 255 and near.max() < DARK:
        raise ValueError(
            f"{file.name} has no value above {near.max() * file.white:.0f} of {file.white}, but "
            "in a picture white is near; if it holds distances, say kind: depth, else save "
            "nearness stretched to white"
        )
    if near.min() < 0 or near.max() > 1:
        raise ValueError(
            f"{file.name} holds {near.min():g} to {near.max():g}; nearness is from 0 to 1, so say "
            "kind: depth, disparity or inverse"
        )


def splat(values: np.ndarray, places: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Put values [H, W, C] at pixel positions ``places [H, W, 2]`` on the pixel grid.

    The nearest point wins; pixels without one are filled from around them.
    """
    height, width = distance.shape
    target = np.rint(places).astype(np.int64).reshape(-1, 2)
    inside = ((target >= 0) & (target < [width, height])).all(1)
    order = np.flatnonzero(inside)
    order = order[np.argsort(-distance.ravel()[order], kind="stable")]  # far first, near last
    index = target[order, 1] * width + target[order, 0]
    out, known = np.zeros((height * width, values.shape[-1])), np.zeros(height * width, bool)
    out[index] = values.reshape(-1, values.shape[-1])[order]
    known[index] = True
    return fill_gaps(out.reshape(values.shape), known.reshape(height, width))


def fill_gaps(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """``values [H, W, C]`` with unknown pixels taken from means over ever larger blocks."""
    if known.all() or not known.any():
        return values
    height, width = known.shape
    pad = ((0, height % 2), (0, width % 2))
    weight = np.pad(known.astype(float), pad)
    sums = np.pad(values * known[..., None], (*pad, (0, 0)))
    blocks = (weight.shape[0] // 2, 2, weight.shape[1] // 2, 2)
    count = weight.reshape(blocks).sum((1, 3))
    mean = sums.reshape(*blocks, -1).sum((1, 3)) / np.maximum(count, 1)[..., None]
    coarse = fill_gaps(mean, count > 0)
    around = coarse.repeat(2, 0).repeat(2, 1)[:height, :width]
    return np.where(known[..., None], values, around)
