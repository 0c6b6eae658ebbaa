"""A crude animation: a picture whose layers are cut out, dragged and filmed by a camera.

What a layer leaves behind is painted over from around it (Telea, 2004, as OpenCV has it). It shows
where everything shall be, not how it shall look; dual-clock denoising (``clocks.py``) follows it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from accel.core.optical_flow import opencv
from accel.pipelines.motion.camera import Camera
from accel.pipelines.motion.flows import Motion
from accel.pipelines.motion.grid import Grid
from accel.pipelines.motion.layers import Layer

RADIUS = 5.0  # pixels that painting over looks at
NO_PICTURE = (
    "motion {what} says how pixels move, not what is seen, so no animation can be made of a "
    "picture; use drag or camera, or follow: noise"
)


@dataclass(frozen=True)
class Crude:
    """A crude animation, and where it is to be followed closely.

    ``frames`` uint8 [F, H, W, 3]; ``led`` boolean [F, H, W]: dragged layers, and with a moving
    camera all that the picture shows.
    """

    frames: np.ndarray
    led: np.ndarray


def check_animates(motion: Motion) -> None:
    """Raise ValueError for a motion that cannot move a picture."""
    given = {"video": motion.video, "flow": motion.flow, "noise": motion.noise.file}
    for what, value in given.items():
        if value is not None:
            raise ValueError(NO_PICTURE.format(what=what))


def animate(picture: np.ndarray, motion: Motion, frames: int) -> Crude:
    """Return ``picture`` uint8 [H, W, 3] moved by drags and a camera.

    Raises ValueError for a motion that cannot move a picture, a camera that runs into its scene, or
    where OpenCV is missing.
    """
    check_animates(motion)
    grid = Grid(*picture.shape[:2])
    camera = motion.camera or Camera()
    ground = _uncovered(picture, motion.drag, grid)
    cut = [_cut_out(layer, grid) for layer in motion.drag]
    films = motion.camera is not None and motion.camera != Camera(depth=motion.camera.depth)
    out, led = [], []
    for k, (frame, shown) in enumerate(camera.film(ground, frames)):
        t, where = k / max(frames - 1, 1), shown if films else np.zeros(grid.shape, bool)
        for layer, alpha in zip(motion.drag, cut, strict=True):
            frame, over = _pasted(frame, picture, alpha, layer, t)
            where = where | over
        out.append(frame)
        led.append(where)
    return Crude(np.stack(out), np.stack(led))


def _uncovered(picture: np.ndarray, layers: tuple[Layer, ...], grid: Grid) -> np.ndarray:
    """Return the picture with what moves painted over."""
    hidden = np.zeros(grid.shape, bool)
    for layer in layers:
        if _moves(layer):
            hidden |= layer.mask(0.0, grid)
    if not hidden.any():
        return picture
    cv2 = opencv()
    wide = cv2.dilate(hidden.astype(np.uint8), np.ones((3, 3), np.uint8))
    painted: np.ndarray = cv2.inpaint(picture, wide, RADIUS, cv2.INPAINT_TELEA)
    return painted


def _moves(layer: Layer) -> bool:
    first = layer.keys[0]
    return any(replace(key, at=first.at, easing=first.easing) != first for key in layer.keys)


def _cut_out(layer: Layer, grid: Grid) -> np.ndarray:
    """Return the layer's coverage [H, W] at time 0, from 0 to 1, smooth at its edge."""
    mask = layer.mask(0.0, grid).astype(np.float32)
    edged: np.ndarray = opencv().GaussianBlur(mask, (3, 3), 0)
    return np.minimum(mask, edged)


def _pasted(
    frame: np.ndarray, picture: np.ndarray, alpha: np.ndarray, layer: Layer, t: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return ``frame`` with the layer where it is at time ``t``, and boolean: its place there."""
    cv2, (matrix, move) = opencv(), layer.pose(t)
    start, begun = layer.pose(0.0)
    pivot = np.asarray(layer.pivot)
    turn = matrix @ np.linalg.inv(start)
    shift = pivot + move - turn @ (pivot + begun)
    affine, size = np.concatenate([turn, shift[:, None]], 1), frame.shape[1::-1]
    moved = cv2.warpAffine(picture, affine, size, borderMode=cv2.BORDER_REPLICATE)
    over = cv2.warpAffine(alpha, affine, size)[..., None]
    mixed = frame * (1 - over) + moved * over
    return mixed.round().astype(np.uint8), over[..., 0] > 0.5
