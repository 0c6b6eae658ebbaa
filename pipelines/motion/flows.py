"""Flows from a job's ``motion``: pixels from each frame to the next, and back.

    motion: {camera: {pan: [dx, dy], zoom: 1.02, roll: 1.5}}     per frame: pixels, factor, degrees
    motion: {camera: {orbit: [2, 0], dolly: 0.01, depth: depth.npy}}
    motion: {drag: [{polygon: [[x, y], ...], by: [dx, dy]}]}     pixels over the whole clip
    motion: {drag: [{polygon: ..., keys: [{at: 0.5, move: [8, 0], scale: 1.2, rotate: 30}]}]}
    motion: {video: {file: clip.mp4}}                            motion taken from a video
    motion: {flow: forward.npy}                                  float [F - 1, 2, H, W] pixels

``camera`` says how the picture's content moves, about its center: ``pan: [2, 0]`` moves everything
right by 2 pixels a frame. Dragged polygons lie on top of the camera's motion or the video's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from accel.core.validate import did_you_mean, from_dict, text
from accel.pipelines.motion.camera import Camera
from accel.pipelines.motion.driving import Driving
from accel.pipelines.motion.files import read_flow
from accel.pipelines.motion.layers import Layer

KINDS = ("camera", "drag", "video", "flow")


@dataclass(frozen=True)
class Motion:
    """The motion of a job, parsed.

    ``drag`` layers, bottom first, on top of the ``camera`` or the ``video``; or a ``flow`` file or
    folder alone.
    """

    camera: Camera | None = None
    drag: tuple[Layer, ...] = ()
    video: Driving | None = None
    flow: str | None = None

    @classmethod
    def parse(cls, data: Any) -> Motion:
        """Return the motion of a job file's mapping.

        No file that it names is opened.

        Raises:
            ValueError: An unknown kind of motion, kinds that exclude each other, or a bad number.
        """
        if isinstance(data, cls):
            return data
        if not isinstance(data, Mapping) or not data or set(data) - set(KINDS):
            got = sorted(map(str, data)) if isinstance(data, Mapping) else repr(data)
            unknown = [k for k in data if k not in KINDS] if isinstance(data, Mapping) else []
            hint = did_you_mean(str(unknown[0]), KINDS) if unknown else ""
            raise ValueError(f"motion must have camera, drag, video or flow, got {got}{hint}")
        if "flow" in data:
            if len(data) > 1:
                raise ValueError("motion flow stands alone, without camera, drag or video")
            text("motion flow", data["flow"])
            return cls(flow=data["flow"])
        if "video" in data and "camera" in data:
            raise ValueError("motion has either a camera or a video, not both")
        video, camera = data.get("video"), data.get("camera")
        if isinstance(video, str):
            video = {"file": video}
        return cls(
            None if camera is None else from_dict(Camera, camera, "motion camera"),
            tuple(read_layers(data.get("drag", []))),
            None if video is None else from_dict(Driving, video, "motion video"),
        )


def make_flow(motion: Any, *, frames: int, height: int, width: int) -> tuple[Tensor, Tensor | None]:
    """Return forward and backward flow of a clip, float [frames - 1, 2, height, width] pixels.

    The backward flow of a flow file is None (it is computed by inversion).

    Args:
        motion: A ``Motion``, or what one is parsed from.
        frames: Number of frames, 2 or more.
        height: Pixels.
        width: Pixels.

    Raises:
        ValueError: A motion that cannot be parsed, a video without usable motion, or a flow file of
            the wrong shape.
    """
    motion = Motion.parse(motion)
    if frames < 2:
        raise ValueError(f"motion needs 2 frames or more, got frames {frames}")
    if motion.flow is not None:
        return read_flow(motion.flow, (frames - 1, 2, height, width)), None
    source = motion.video or motion.camera or Camera()
    forward, backward = source.flows(frames, height, width)
    draw(motion.drag, forward, backward)
    return _as_flow(forward), _as_flow(backward)


def read_layers(drags: Any) -> list[Layer]:
    """Return the layers of a job's ``drag``, bottom first."""
    if not isinstance(drags, (list, tuple)):
        raise ValueError(f"motion drag must be a list of polygons, got {drags!r}")
    return sorted((from_dict(Layer, d, "motion drag") for d in drags), key=lambda layer: layer.z)


def draw(layers: Sequence[Layer], forward: np.ndarray, backward: np.ndarray) -> None:
    """Write the flow of ``layers`` (bottom first) over the flows [F - 1, H, W, 2]."""
    steps, height, width = forward.shape[:3]
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    points = np.stack([x, y], -1)
    for layer in layers:
        for k in range(steps):
            now, then = k / steps, (k + 1) / steps
            for flow, t, other in ((forward, now, then), (backward, then, now)):
                inside = layer.mask(t, height, width)
                flow[k][inside] = layer.displacement(points[inside], t, other)


def _as_flow(field: np.ndarray) -> Tensor:
    return torch.from_numpy(field).float().permute(0, 3, 1, 2).contiguous()
