"""Drawn layers over the motion of the ground: who owns which pixel, and what leaves.

Every pixel belongs to one layer or to the ground, and noise never passes from one owner to another:
what a layer covers is sent out of the picture, and what it uncovers gets fresh noise. Owners move
with the same rounded flow as the noise itself (``rounding_offset``), so a layer keeps its pixels at
any speed; its polygon says where it may grow and bounds where it may be.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from accel.core.optical_flow import OUT
from accel.kernels.warp import Mode, rounding_offset
from accel.pipelines.motion.grid import Grid, Moving, Step
from accel.pipelines.motion.layers import Layer

GROUND = -1


@dataclass(frozen=True)
class Drawn:
    """``layers``, bottom first, on top of a moving ``ground``.

    ``rounding``: the warp's, "dither" or "round". ``version`` 1 is how layers moved in the first
    jobs: their noise mixes with the ground's.
    """

    ground: Moving
    layers: tuple[Layer, ...]
    rounding: Mode
    version: int

    def steps(self, grid: Grid, frames: int) -> Iterator[Step]:
        """Yield forward and backward flow [rows, columns, 2] in noise pixels, frames - 1 times."""
        steps = self.ground.steps(grid, frames)
        if self.version == 1:
            return draw_over(self.layers, steps, grid, frames)
        return draw_layers(self.layers, steps, grid, frames, self.rounding)


def draw_over(
    layers: Sequence[Layer], ground: Iterable[Step], grid: Grid, frames: int
) -> Iterator[Step]:
    """Yield the steps of ``ground`` with the flow of ``layers`` in place of what lies under them.

    What they cover flows into them.
    """
    for k, (forward, backward) in enumerate(ground):
        assert backward is not None, "layers lie on motions that are known both ways"
        now, then = k / (frames - 1), (k + 1) / (frames - 1)
        both = forward.copy(), backward.copy()
        for layer in layers:
            for flow, t, other in ((both[0], now, then), (both[1], then, now)):
                inside = layer.mask(t, grid)
                flow[inside] = layer.displacement(grid.points[inside], t, other) * grid.scale
        yield both


def draw_layers(
    layers: Sequence[Layer], ground: Iterable[Step], grid: Grid, frames: int, rounding: Mode
) -> Iterator[Step]:
    """Yield the steps of ``ground`` with ``layers`` (bottom first) moving on top of it."""
    count = frames - 1
    owner = _owners([layer.mask(0.0, grid) for layer in layers], grid)
    for k, (forward, backward) in enumerate(ground):
        assert backward is not None, "layers lie on motions that are known both ways"
        now, then = k / count, (k + 1) / count
        offset = np.asarray(rounding_offset(k + 1, rounding), np.float32)
        forward, backward = np.array(forward, np.float32), np.array(backward, np.float32)
        for i, layer in enumerate(layers):
            inside = owner == i
            moved = layer.displacement(grid.points[inside], now, then)
            forward[inside] = moved * grid.scale
        target, arrives = _ends(forward, offset)
        following = np.full(grid.shape, GROUND, owner.dtype)
        for i, layer in enumerate(layers):
            mine = _next(i, layer, owner, target, arrives, grid, (now, then), offset)
            following[mine] = i
            back = layer.displacement(grid.points[mine], then, now)
            backward[mine] = back * grid.scale
        source, comes = _ends(backward, offset, back=True)
        forward[arrives & (following.ravel()[target] != owner)] = OUT
        backward[comes & (owner.ravel()[source] != following)] = OUT
        owner = following
        yield forward, backward


def _owners(masks: Sequence[np.ndarray], grid: Grid) -> np.ndarray:
    """Return the number of the topmost layer at every pixel, or ``GROUND``."""
    owner = np.full(grid.shape, GROUND, np.int16)
    for i, mask in enumerate(masks):
        owner[mask] = i
    return owner


def _next(
    i: int, layer: Layer, owner: np.ndarray, target: np.ndarray, arrives: np.ndarray, grid: Grid,
    times: tuple[float, float], offset: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Return boolean: the pixels of layer ``i`` in the next frame, whatever lies above it.

    They are those where its pixels arrive, within a pixel of its polygon, and those of its polygon
    where it grows, comes out from behind another layer or enters the picture.
    """
    now, then = times
    polygon = layer.mask(then, grid)
    landed = np.zeros(owner.size, bool)
    landed[target[(owner == i) & arrives]] = True
    mine = landed.reshape(owner.shape) & _dilated(polygon)
    y, x = np.nonzero(polygon & ~mine)
    if len(y):
        back = layer.displacement(grid.points[y, x], then, now) * grid.scale
        move = _rounded_back(back, offset).astype(np.int64)
        column, row = x + move[:, 0], y + move[:, 1]
        inside = (column >= 0) & (row >= 0) & (column < owner.shape[1]) & (row < owner.shape[0])
        grows = ~inside
        grows[inside] = owner[row[inside], column[inside]] >= i
        mine[y[grows], x[grows]] = True
    return mine


def _ends(
    flow: np.ndarray, offset: np.ndarray, *, back: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return where every pixel's rounded flow leads, as a flat index, and whether it is inside.

    Rounded as the warp does it: floor(f + u), and -floor(-f + u) for a flow ``back``.
    """
    rows, columns = flow.shape[:2]
    x, y = (
        (_rounded_back(flow[..., i], u) if back else np.floor(flow[..., i] + u)).astype(np.int32)
        for i, u in enumerate(offset)
    )
    x += np.arange(columns, dtype=np.int32)
    y += np.arange(rows, dtype=np.int32)[:, None]
    inside = (x.view(np.uint32) < columns) & (y.view(np.uint32) < rows)  # negative ones are large
    y *= columns
    y += x
    return np.where(inside, y, 0), inside


def _dilated(mask: np.ndarray) -> np.ndarray:
    """Return ``mask`` grown by a pixel on every side and over corners."""
    tall = mask.copy()
    tall[1:] |= mask[:-1]
    tall[:-1] |= mask[1:]
    wide = tall.copy()
    wide[:, 1:] |= tall[:, :-1]
    wide[:, :-1] |= tall[:, 1:]
    return wide


def _rounded_back(flow: np.ndarray, offset: np.ndarray | np.floating) -> np.ndarray:
    rounded: np.ndarray = -np.floor(offset - flow.astype(np.float32, copy=False))
    return rounded
