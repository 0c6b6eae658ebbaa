"""Camera motion: exact in the picture plane, and over a depth map by reprojection.

``pan``, ``zoom`` and ``roll`` move the whole picture. ``orbit`` and ``dolly`` move a pinhole camera
(focal length ``focal`` widths) round a scene whose depth at the first frame is ``depth``. The
points of the first frame are projected into every frame; the flow at a pixel is that of the nearest
point there, and gaps between points are filled from their surroundings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from accel.core.validate import number, pair
from accel.pipelines.motion.array_file import ArrayFile
from accel.pipelines.motion.array_formats import open_array

DARK = 0.2  # a 16-bit picture whose brightest pixel is darker holds distances, not nearness


@dataclass(frozen=True)
class Camera:
    """Constant motion per frame.

    ``pan`` pixels, ``zoom`` a factor, ``roll`` degrees clockwise: of the picture's content, about
    its center. ``orbit`` degrees (to the right, up) of the camera round the middle of the scene;
    ``dolly`` forward, as a fraction of the median depth. ``depth``: the distance of every pixel (in
    any unit) as .npy, .npz, .exr, .pfm or float TIFF, or a gray picture of 8 or 16 bits (white is
    near); without one the scene is a plane.
    """

    pan: tuple[float, float] = (0.0, 0.0)
    zoom: float = 1.0
    roll: float = 0.0
    orbit: tuple[float, float] = (0.0, 0.0)
    dolly: float = 0.0
    depth: str | None = None
    focal: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "pan", pair("camera pan", self.pan))
        object.__setattr__(self, "orbit", pair("camera orbit", self.orbit))
        number("camera roll", self.roll)
        number("camera dolly", self.dolly, -0.5, 0.5)
        number("camera focal length in widths", self.focal, 0.1, 20.0)
        number("camera zoom", self.zoom)
        if not 0.5 <= self.zoom <= 2.0:
            raise ValueError(f"camera zoom is a factor per frame, 0.5 to 2, got {self.zoom!r}")
        if self.depth is not None and not isinstance(self.depth, str):
            raise ValueError(f"camera depth must be a file, got {self.depth!r}")

    @property
    def in_plane(self) -> bool:
        """Whether only the picture plane moves."""
        return self.orbit == (0.0, 0.0) and self.dolly == 0.0

    def displacement(self, points: np.ndarray, center: np.ndarray, sign: int) -> np.ndarray:
        """Return the flow of pan, zoom and roll at ``points [..., 2]``.

        To the next frame (``sign`` 1) or to the previous one (-1).
        """
        angle = math.radians(self.roll)
        turn = self.zoom * np.array(
            [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        )
        pan = np.asarray(self.pan)
        if sign > 0:
            return (points - center) @ turn.T + center + pan - points
        return (points - pan - center) @ np.linalg.inv(turn).T + center - points

    def flows(self, frames: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Return forward and backward flow, [frames - 1, H, W, 2] pixels."""
        y, x = np.mgrid[0:height, 0:width].astype(np.float64)
        points, center = np.stack([x, y], -1), np.array([(width - 1) / 2, (height - 1) / 2])
        if self.in_plane:
            steps = [self.displacement(points, center, sign) for sign in (1, -1)]
            both = np.repeat(np.stack(steps)[:, None], frames - 1, 1)
            return both[0], both[1]
        depth = read_depth(self.depth, height, width)
        places, distances = [], []
        for k in range(frames):
            place, distance = self.project(points, depth, center, k)
            for _ in range(k):
                place = place + self.displacement(place, center, 1)
            places.append(place)
            distances.append(distance)
        forward = [
            splat(places[k + 1] - places[k], places[k], distances[k]) for k in range(frames - 1)
        ]
        backward = [
            splat(places[k] - places[k + 1], places[k + 1], distances[k + 1])
            for k in range(frames - 1)
        ]
        return np.stack(forward), np.stack(backward)

    def project(
        self, points: np.ndarray, depth: np.ndarray, center: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Pixel positions [H, W, 2] and distances [H, W] of the first frame's points at frame k."""
        focal, middle = self.focal * points.shape[1], float(np.median(depth))
        world = np.concatenate([(points - center) / focal * depth[..., None], depth[..., None]], -1)
        yaw, pitch = (math.radians(-k * angle) for angle in self.orbit)
        across = np.array(
            [[math.cos(yaw), 0, -math.sin(yaw)], [0, 1, 0], [math.sin(yaw), 0, math.cos(yaw)]]
        )
        up = np.array(
            [
                [1, 0, 0],
                [0, math.cos(pitch), math.sin(pitch)],
                [0, -math.sin(pitch), math.cos(pitch)],
            ]
        )
        pivot = np.array([0.0, 0.0, middle])
        seen = (world - pivot) @ (up @ across).T + pivot
        seen[..., 2] -= k * self.dolly * middle
        nearest = float(seen[..., 2].min())
        if nearest <= 0.02 * middle:
            raise ValueError(
                f"the camera runs into the scene at frame {k}: the nearest point would be at "
                f"{nearest:.3g} (median depth {middle:.3g}); use less dolly or orbit"
            )
        return seen[..., :2] / seen[..., 2:] * focal + center, seen[..., 2]


def read_depth(path: str | None, height: int, width: int) -> np.ndarray:
    """Return depth [H, W], positive; ones without a file.

    Raises ValueError naming the file.
    """
    if path is None:
        return np.ones((height, width))
    file = open_array("depth file", path)
    if file.kind == "flo":
        raise ValueError(f"depth file {path} holds a flow, not depth")
    if file.kind == "array" and len(file.shape) != 2:
        raise ValueError(f"depth file {path} must be [H, W], got shape {file.shape}")
    depth = file.numbers() if file.kind == "array" else file.gray()
    if file.white:  # white is near: inverse depth from 1/5 to 1
        _check_range(file, depth)
        depth = 1 / (0.2 + 0.8 * depth)
    if depth.min() <= 0:
        raise ValueError(
            f"depth file {path} must hold positive distances, has {depth.min():g} in "
            f"{int((depth <= 0).sum())} of {depth.size} places; replace them by what is around them"
        )
    picture = Image.fromarray(depth.astype(np.float32))
    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR)).astype(float)


def _check_range(file: ArrayFile, near: np.ndarray) -> None:
    """Raise ValueError for a 16-bit picture that is nearly black, as one of millimeters is."""
    if file.white > 255 and near.max() < DARK:
        raise ValueError(
            f"{file.name} has no value above {near.max() * file.white:.0f} of {file.white}, but "
            "in a picture white is near; save distances as .npy, .exr or float TIFF, and nearness "
            "stretched to white"
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
