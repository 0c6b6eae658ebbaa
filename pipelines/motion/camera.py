"""Camera motion: exact for a flat scene, and over a depth map by reprojection.

``pan``, ``zoom`` and ``roll`` move the whole picture. ``orbit`` and ``dolly`` move a pinhole camera
(focal length ``focal`` widths) round a scene whose depth at the first frame is ``depth``. Without a
depth the scene is a plane: frame k is then the first frame under a homography H(k), and the flow
from frame k to frame k + 1 is H(k + 1) H(k)^-1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np

from accel.core.optical_flow import OUT, opencv
from accel.core.validate import from_dict, number
from accel.pipelines.motion.camera_pose import Key, Pose
from accel.pipelines.motion.grid import Grid, Step
from accel.pipelines.motion.layers import around, from_start
from accel.pipelines.motion.scene import Depth, splat

NEAREST = 0.02  # of the median depth: nearer than this, nothing is seen
EDGE_ON = 0.05  # cosine between the line of sight and the scene's normal


@dataclass(frozen=True)
class Camera(Pose):
    """The same motion in every frame, or ``keys`` with poses of the whole clip.

    ``pan``, ``zoom``, ``roll``, ``orbit`` and ``dolly`` are per frame. ``keys``: poses that are
    reached at given times, and that the camera stays in after the last one. ``depth``: the distance
    of every pixel (in any unit) as .npy, .npz, .exr, .pfm or float TIFF, or a gray picture of 8 or
    16 bits (white is near), or a mapping with ``file``, ``kind`` and ``scale``; without one the
    scene is a plane. ``focal``: focal length in widths of the picture.
    """

    depth: str | Mapping[str, Any] | None = None
    focal: float = 1.0
    keys: tuple[Key, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        number("camera dolly", self.dolly, -0.5, 0.5)
        number("camera focal length in widths", self.focal, 0.1, 20.0)
        if not 0.5 <= self.zoom <= 2.0:
            raise ValueError(f"camera zoom is a factor per frame, 0.5 to 2, got {self.zoom!r}")
        if not isinstance(self.depth, (str, Mapping, type(None))):
            raise ValueError(f"camera depth must be a file, got {self.depth!r}")
        _ = self.scene
        object.__setattr__(self, "keys", self._all_keys())

    def _all_keys(self) -> tuple[Key, ...]:
        if not isinstance(self.keys, (list, tuple)):
            raise ValueError(f"camera keys must be a list, got {self.keys!r}")
        keys = [from_dict(Key, key, "camera key") for key in self.keys]
        if not keys:
            return ()
        still = Pose()
        for name in (field.name for field in fields(Pose)):
            if getattr(self, name) != getattr(still, name):
                raise ValueError(
                    f"a camera has either {name} per frame or keys, not both; put {name} of the "
                    "whole clip into a key"
                )
        return from_start("camera keys", keys, Key(at=0.0))

    @property
    def scene(self) -> Depth | None:
        """``depth``, parsed."""
        return None if self.depth is None else Depth.parse(self.depth)

    @property
    def flat(self) -> bool:
        """Whether no depth map is looked at."""
        poses = self.keys or (self,)
        still = all(pose.orbit == (0.0, 0.0) and pose.dolly == 0.0 for pose in poses)
        return self.depth is None or still

    def pose(self, k: int, frames: int) -> tuple[np.ndarray, Pose]:
        """Return the matrix [3, 3] of pan, zoom and roll at frame ``k``, and the orbit and dolly.

        Motions per frame are repeated k times: orbit and dolly add up.
        """
        if not self.keys:
            orbit = (k * self.orbit[0], k * self.orbit[1])
            matrix = np.linalg.matrix_power(self.matrix, k)
            return matrix, Pose(orbit=orbit, dolly=k * self.dolly)
        a, b, x = around(self.keys, k / max(frames - 1, 1))

        def between(p: float, q: float) -> float:
            return (1 - x) * p + x * q

        pose = Pose(
            pan=(between(a.pan[0], b.pan[0]), between(a.pan[1], b.pan[1])),
            zoom=math.exp(between(math.log(a.zoom), math.log(b.zoom))),
            roll=between(a.roll, b.roll),
            orbit=(between(a.orbit[0], b.orbit[0]), between(a.orbit[1], b.orbit[1])),
            dolly=between(a.dolly, b.dolly),
        )
        return pose.matrix, pose

    def homographies(self, grid: Grid, frames: int) -> Iterator[np.ndarray]:
        """Yield H(k) [3, 3] from places of the first frame of a plane to those of frame k.

        Places are (x, y, 1) in pixels. Raises ValueError where the camera looks at the plane from
        behind or runs into it.
        """
        center, lens = _middle(grid), np.diag([self.focal * grid.width] * 2 + [1.0])
        sight = np.linalg.inv(center @ lens)  # from pixels to points (x, y, 1) of the plane
        corners = np.array([[x, y, 1.0] for x in (0, grid.width - 1) for y in (0, grid.height - 1)])
        for k in range(frames):
            matrix, pose = self.pose(k, frames)
            world = _turn(pose, k)  # turned about the point (0, 0, 1), then brought nearer
            world[:, 2] = 0.0, 0.0, 1.0 - pose.dolly
            _check_nearest(float((corners @ (world @ sight)[2]).min()), 1.0, k)
            yield center @ matrix @ lens @ world @ sight

    def check(self, frames: int, height: int, width: int) -> None:
        """Raise ValueError if the motion cannot be followed over a clip of that size."""
        grid = Grid(height, width)
        if self.flat:
            list(self.homographies(grid, frames))
            return
        depth = self._distances(grid)
        for k in range(frames):
            self._project(depth, k, frames, grid)

    def steps(self, grid: Grid, frames: int) -> Iterator[Step]:
        """Yield forward and backward flow [rows, columns, 2] in noise pixels, frames - 1 times.

        Raises ValueError naming the depth file, or where the camera runs into the scene.
        """
        if not self.flat:
            yield from self._over_depth(grid, frames)
            return
        if not self.keys and self.orbit == (0.0, 0.0) and self.dolly == 0.0:
            center = _middle(grid)
            step = center @ self.matrix @ np.linalg.inv(center)
            both = _flow(step, grid), _flow(np.linalg.inv(step), grid)
            for _ in range(frames - 1):
                yield both
            return
        for now, then in pairwise(self.homographies(grid, frames)):
            step = then @ np.linalg.inv(now)
            yield _flow(step, grid), _flow(np.linalg.inv(step), grid)

    def film(self, picture: np.ndarray, frames: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield every frame of ``picture`` uint8 [H, W, 3] as the camera sees it.

        With boolean [H, W]: where the picture is seen. Beyond its edge, and behind what a depth map
        hides, is what lies beside. Raises ValueError as ``steps`` does.
        """
        grid = Grid(*picture.shape[:2])
        if self.flat:
            cv2, size = opencv(), picture.shape[1::-1]
            seen = np.ones(grid.shape, np.uint8)
            for step in self.homographies(grid, frames):
                frame = cv2.warpPerspective(picture, step, size, borderMode=cv2.BORDER_REPLICATE)
                yield frame, cv2.warpPerspective(seen, step, size, flags=cv2.INTER_NEAREST) > 0
            return
        depth = self._distances(grid)
        for k in range(frames):
            place, distance = self._project(depth, k, frames, grid)
            frame = splat(picture.astype(float), place, distance).round().astype(np.uint8)
            yield frame, np.ones(grid.shape, bool)

    def _over_depth(self, grid: Grid, frames: int) -> Iterator[Step]:
        depth, picture = self._distances(grid), Grid(grid.height, grid.width)
        projected = (self._project(depth, k, frames, picture) for k in range(frames))
        for (now, near), (then, nearer) in pairwise(projected):
            yield (
                grid.refine(splat(then - now, now, near)),
                grid.refine(splat(now - then, then, nearer)),
            )

    def _distances(self, grid: Grid) -> np.ndarray:
        assert self.scene is not None
        return self.scene.distances(grid.height, grid.width)

    def _project(
        self, depth: np.ndarray, k: int, frames: int, grid: Grid
    ) -> tuple[np.ndarray, np.ndarray]:
        """Pixel positions [H, W, 2] and distances [H, W] of the first frame's points at frame k."""
        focal, middle = self.focal * grid.width, float(np.median(depth))
        matrix, pose = self.pose(k, frames)
        center = _middle(grid)[:2, 2]
        flat = (grid.points - center) / focal * depth[..., None]
        pivot = np.array([0.0, 0.0, middle])
        seen = (np.concatenate([flat, depth[..., None]], -1) - pivot) @ _turn(pose, k).T + pivot
        seen[..., 2] -= pose.dolly * middle
        _check_nearest(float(seen[..., 2].min()), middle, k)
        place = seen[..., :2] / seen[..., 2:] * focal
        return place @ matrix[:2, :2].T + matrix[:2, 2] + center, seen[..., 2]


def follow(step: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where a homography takes ``points [..., 2]``, and whether that is before the camera.

    Points that are not stay where they were.
    """
    there = points @ step[:2, :2].T + step[:2, 2]
    if not (step[2, 0] or step[2, 1] or step[2, 2] != 1.0):
        return there, np.ones(points.shape[:-1], bool)
    depth = points @ step[2, :2] + step[2, 2]
    seen = depth > 1e-9
    return np.where(seen[..., None], there / np.where(seen, depth, 1.0)[..., None], points), seen


def _flow(step: np.ndarray, grid: Grid) -> np.ndarray:
    """Return the flow [rows, columns, 2] in noise pixels of a homography of picture pixels.

    What it takes behind the camera leaves the picture.
    """
    there, seen = follow(step, grid.points)
    return np.where(seen[..., None], (there - grid.points) * grid.scale, OUT).astype(np.float32)


def _middle(grid: Grid) -> np.ndarray:
    """Return the matrix [3, 3] that moves the origin to the picture's center."""
    return np.array([[1, 0, (grid.width - 1) / 2], [0, 1, (grid.height - 1) / 2], [0, 0, 1.0]])


def _turn(pose: Pose, k: int) -> np.ndarray:
    turn = pose.turn
    if turn[2, 2] < EDGE_ON:
        raise ValueError(
            f"at frame {k} the camera has gone {pose.orbit[0]:g} and {pose.orbit[1]:g} degrees "
            "round the scene and sees it from the side or from behind; a picture has no back, so "
            "use less orbit"
        )
    return turn


def _check_nearest(nearest: float, middle: float, k: int) -> None:
    if nearest <= NEAREST * middle:
        raise ValueError(
            f"the camera runs into the scene at frame {k}: the nearest point would be at "
            f"{nearest:.3g} (median depth {middle:.3g}); use less dolly or orbit"
        )
