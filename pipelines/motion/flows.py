"""Flows from a job's ``motion``: pixels from each frame to the next, and back.

    motion: {camera: {pan: [dx, dy], zoom: 1.02, roll: 1.5}}     per frame: pixels, factor, degrees
    motion: {camera: {orbit: [2, 0], dolly: 0.01, depth: depth.npy}}
    motion: {drag: [{polygon: [[x, y], ...], by: [dx, dy]}]}     pixels over the whole clip
    motion: {drag: [{polygon: ..., keys: [{at: 0.5, move: [8, 0], scale: 1.2, rotate: 30}]}]}
    motion: {video: {file: clip.mp4}}                            motion taken from a video
    motion: {flow: forward.npy}                                  float [F - 1, 2, H, W] pixels

``camera`` says how the picture's content moves, about its centre: ``pan: [2, 0]`` moves everything
right by 2 pixels a frame. Dragged polygons lie on top of the camera's motion or the video's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from accel.core.validate import from_dict
from accel.pipelines.motion.camera import Camera
from accel.pipelines.motion.driving import Driving
from accel.pipelines.motion.files import read_flow
from accel.pipelines.motion.layers import Layer

KINDS = ("camera", "drag", "video", "flow")


def make_flow(
    motion: Mapping[str, Any], *, frames: int, height: int, width: int
) -> tuple[Tensor, Tensor | None]:
    """Forward and backward flow of a clip, float [frames - 1, 2, height, width] pixels.

    The backward flow of a flow file is None (it is computed by inversion). Raises ValueError for an
    unknown kind of motion, a bad number, a video without usable motion, or a flow file of the wrong
    shape.
    """
    unknown = set(motion) - set(KINDS)
    if unknown or not motion:
        raise ValueError(
            f"motion must have camera, drag, video or flow, got {sorted(map(str, motion))}"
        )
    if frames < 2:
        raise ValueError(f"motion needs 2 frames or more, got frames {frames}")
    if "flow" in motion:
        if len(motion) > 1:
            raise ValueError("motion flow stands alone, without camera, drag or video")
        return read_flow(str(motion["flow"]), (frames - 1, 2, height, width)), None
    if "video" in motion and "camera" in motion:
        raise ValueError("motion has either a camera or a video, not both")
    layers = read_layers(motion.get("drag", []))
    if "video" in motion:
        data = motion["video"]
        driving = from_dict(Driving, {"file": data} if isinstance(data, str) else data, "video")
        forward, backward = driving.flows(frames, height, width)
    else:
        camera = from_dict(Camera, motion.get("camera", {}), "motion camera")
        forward, backward = camera.flows(frames, height, width)
    draw(layers, forward, backward)
    return _as_flow(forward), _as_flow(backward)


def read_layers(drags: Any) -> list[Layer]:
    """Layers of a job's ``drag``, bottom first."""
    if not isinstance(drags, (list, tuple)):
        raise ValueError(f"motion drag must be a list of polygons, got {drags!r}")
    return sorted((from_dict(Layer, d, "motion drag") for d in drags), key=lambda layer: layer.z)


def draw(layers: list[Layer], forward: np.ndarray, backward: np.ndarray) -> None:
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
