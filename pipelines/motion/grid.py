"""The pixel grid on which noise is warped, which may be finer than the picture's.

A picture pixel is ``scale`` by ``scale`` noise pixels. Motions are given in picture pixels, whose
centers are whole numbers; the center of noise pixel i is at (i + 1/2) / scale - 1/2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch.nn.functional import interpolate

from accel.core.optical_flow import OUT

Step = tuple[np.ndarray, np.ndarray | None]


@dataclass(frozen=True)
class Grid:
    """A picture of ``height`` x ``width`` pixels, each of ``scale`` x ``scale`` noise pixels."""

    height: int
    width: int
    scale: int = 1

    @property
    def shape(self) -> tuple[int, int]:
        """Noise pixels, (rows, columns)."""
        return self.height * self.scale, self.width * self.scale

    @cached_property
    def points(self) -> np.ndarray:
        """Centers [rows, columns, 2] of the noise pixels as (x, y) in picture pixels, float64."""
        rows, columns = self.shape
        y, x = np.mgrid[0:rows, 0:columns].astype(np.float64)
        return (np.stack([x, y], -1) + 0.5) / self.scale - 0.5

    def finer(self, points: np.ndarray) -> np.ndarray:
        """Return places (x, y) of picture pixels in noise pixels."""
        return (points + 0.5) * self.scale - 0.5

    def refine(self, flow: np.ndarray) -> np.ndarray:
        """Return a flow [height, width, 2] of picture pixels as one of noise pixels, float32.

        What leaves the picture (``OUT``) leaves it in all noise pixels of its pixel, and does not
        reach into its neighbors.
        """
        flow = flow.astype(np.float32)
        if self.scale == 1:
            return flow
        gone = np.abs(flow).max(-1) >= OUT / 2
        known = (~gone).astype(np.float32)[..., None]
        both = self._spread(np.concatenate([flow * known, known], -1))
        fine = both[..., :2] / np.maximum(both[..., 2:], np.float32(1e-6)) * np.float32(self.scale)
        fine[gone.repeat(self.scale, 0).repeat(self.scale, 1)] = OUT
        return fine

    def _spread(self, values: np.ndarray) -> np.ndarray:
        """Return values [height, width, C] between whose centers is interpolated linearly."""
        planes = torch.from_numpy(values.transpose(2, 0, 1)[None])
        fine = interpolate(planes, self.shape, mode="bilinear", align_corners=False)
        return np.ascontiguousarray(fine[0].numpy().transpose(1, 2, 0))


class Moving(Protocol):
    """A source of motion that gives the flow of a clip step by step."""

    def steps(self, grid: Grid, frames: int) -> Iterator[Step]:
        """Yield forward and backward flow [rows, columns, 2] in noise pixels, frames - 1 times.

        A backward flow that is not known is None.
        """
