"""Motions that are known as arrays, and a camera that films them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from accel.core.optical_flow import OUT, opencv
from accel.pipelines.motion.camera import Camera, follow
from accel.pipelines.motion.grid import Grid, Step


@dataclass(frozen=True)
class Known:
    """Flows that were read or estimated: [frames - 1, H, W, 2] pixels of the picture."""

    forward: np.ndarray
    backward: np.ndarray | None

    def steps(self, grid: Grid, frames: int) -> Iterator[Step]:
        """Yield forward and backward flow [rows, columns, 2] in noise pixels, frames - 1 times."""
        for k in range(frames - 1):
            back = None if self.backward is None else grid.refine(self.backward[k])
            yield grid.refine(self.forward[k]), back


@dataclass(frozen=True)
class Filmed:
    """A picture that moves as ``scene`` does, filmed flat from the wall by a moving ``camera``.

    A place q of the scene is seen at H(k) q in frame k, so the flow from p is
    H(k + 1) (q + v(q)) - p with q = H(k)^-1 p and the scene's own flow v. Beyond its edge the scene
    moves as at its edge.
    """

    scene: Known
    camera: Camera

    def steps(self, grid: Grid, frames: int) -> Iterator[Step]:
        """Yield forward and backward flow [rows, columns, 2] in noise pixels, frames - 1 times."""
        assert self.scene.backward is not None
        for k, (now, then) in enumerate(pairwise(self.camera.homographies(grid, frames))):
            yield (
                _filmed(self.scene.forward[k], now, then, grid),
                _filmed(self.scene.backward[k], then, now, grid),
            )


def _filmed(flow: np.ndarray, now: np.ndarray, then: np.ndarray, grid: Grid) -> np.ndarray:
    place, seen = follow(np.linalg.inv(now), grid.points)
    gone = np.abs(flow[..., 0]) >= OUT / 2
    cv2, where = opencv(), (place[..., 0].astype(np.float32), place[..., 1].astype(np.float32))
    values = np.concatenate(
        [np.where(gone[..., None], np.float32(0), flow), gone[..., None]], -1, dtype=np.float32
    )
    there = cv2.remap(values, *where, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    end, inside = follow(then, place + there[..., :2])
    kept = (there[..., 2] < 0.5) & seen & inside
    moved = np.where(kept[..., None], (end - grid.points) * grid.scale, OUT)
    return moved.astype(np.float32)
