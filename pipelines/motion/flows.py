"""Flows from a job's ``motion``: pixels from each frame to the next, and back.

    motion: {camera: {pan: [dx, dy], zoom: 1.02, roll: 1.5}}     per frame: pixels, factor, degrees
    motion: {camera: {keys: [{at: 0.5, pan: [30, 0]}, {at: 1, zoom: 1.5, easing: in-out}]}}
    motion: {camera: {orbit: [2, 0], dolly: 0.01, depth: {file: depth.png, kind: disparity}}}
    motion: {drag: [{polygon: [[x, y], ...], by: [dx, dy]}]}     pixels over the whole clip
    motion: {drag: [{polygon: ..., keys: [{at: 0.5, move: [8, 0], scale: 1.2, rotate: 30}]}]}
    motion: {video: {file: clip.mp4}}                            motion taken from a video
    motion: {flow: forward.npy}                                  float [F - 1, 2, H, W] pixels
    motion: {noise: noises.npy}                                  noise made elsewhere

``camera`` says how the picture's content moves, about its center: ``pan: [2, 0]`` moves everything
right by 2 pixels a frame; its ``keys`` are poses of the whole clip. Beside a ``video`` it films the
video as if from a flat wall. Dragged polygons lie on top of the camera's motion or the video's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from accel.core.validate import did_you_mean, from_dict, text, whole
from accel.pipelines.motion.camera import Camera
from accel.pipelines.motion.drawn import Drawn
from accel.pipelines.motion.driving import Driving
from accel.pipelines.motion.files import read_flow
from accel.pipelines.motion.grid import Grid, Moving
from accel.pipelines.motion.layers import Layer
from accel.pipelines.motion.noise_options import NoiseOptions
from accel.pipelines.motion.sources import Filmed, Known

KINDS = ("camera", "drag", "video", "flow")
NEWEST = 2  # version of the noise that a motion comes to


@dataclass(frozen=True)
class Motion:
    """The motion of a job, parsed.

    ``drag`` layers, bottom first, on top of the ``camera``, the ``video``, or the video as the
    camera films it; or a ``flow`` file or folder alone; or a ``noise`` file alone. ``noise``: how
    the noise is made. ``version``: 2, or 1 for the noise of jobs from before there was a second
    one.
    """

    camera: Camera | None = None
    drag: tuple[Layer, ...] = ()
    video: Driving | None = None
    flow: str | None = None
    noise: NoiseOptions = field(default_factory=NoiseOptions)
    version: int = NEWEST

    @classmethod
    def parse(cls, data: Any) -> Motion:
        """Return the motion of a job file's mapping.

        No file that it names is opened.

        Raises:
            ValueError: An unknown kind of motion, kinds that exclude each other, or a bad number.
        """
        if isinstance(data, cls):
            return data
        how: dict[str, Any] = {}
        if isinstance(data, Mapping):
            data = dict(data)
            how["version"] = whole("motion version", data.pop("version", NEWEST), 1, NEWEST)
            how["noise"] = NoiseOptions.parse(data.pop("noise", NoiseOptions()))
            if how["noise"].file is not None:
                if data:
                    raise ValueError("a motion noise file stands alone, without any other motion")
                return cls(**how)
        if not isinstance(data, Mapping) or not data or set(data) - set(KINDS):
            got = sorted(map(str, data)) if isinstance(data, Mapping) else repr(data)
            unknown = [k for k in data if k not in KINDS] if isinstance(data, Mapping) else []
            hint = did_you_mean(str(unknown[0]), KINDS) if unknown else ""
            raise ValueError(f"motion must have camera, drag, video or flow, got {got}{hint}")
        if "flow" in data:
            if len(data) > 1:
                raise ValueError("motion flow stands alone, without camera, drag or video")
            text("motion flow", data["flow"])
            return cls(flow=data["flow"], **how)
        video, camera = data.get("video"), data.get("camera")
        if isinstance(video, str):
            video = {"file": video}
        filming = None if camera is None else from_dict(Camera, camera, "motion camera")
        if video is not None and filming is not None and not filming.flat:
            raise ValueError(
                "a camera films a video as if flat, since a depth map is that of one frame only; "
                "leave camera depth out"
            )
        return cls(
            filming,
            tuple(read_layers(data.get("drag", []))),
            None if video is None else from_dict(Driving, video, "motion video"),
            **how,
        )


def open_motion(motion: Any, *, frames: int, height: int, width: int) -> Moving:
    """Return the source of a clip's flow, ready to be followed on any grid of that picture.

    Files are read and videos looked at now; what follows is computed step by step.

    Args:
        motion: A ``Motion``, or what one is parsed from.
        frames: Number of frames, 2 or more.
        height: Pixels.
        width: Pixels.

    Raises:
        ValueError: A motion that cannot be parsed, a camera that runs into its scene, a video
            without usable motion, or a flow file of the wrong shape.
    """
    motion = Motion.parse(motion)
    if frames < 2:
        raise ValueError(f"motion needs 2 frames or more, got frames {frames}")
    if motion.noise.file is not None:
        raise ValueError(f"noise file {motion.noise.file} says nothing about the flow it has")
    if motion.flow is not None:
        flow = read_flow(motion.flow, (frames - 1, 2, height, width))
        return Known(flow.permute(0, 2, 3, 1).numpy(), None)
    ground: Moving = motion.camera or Camera()
    if motion.camera is not None:
        motion.camera.check(frames, height, width)
    if motion.video is not None:
        scene = Known(*motion.video.flows(frames, height, width))
        ground = scene if motion.camera is None else Filmed(scene, motion.camera)
    return (
        Drawn(ground, motion.drag, motion.noise.rounding, motion.version) if motion.drag else ground
    )


def make_flow(motion: Any, *, frames: int, height: int, width: int) -> tuple[Tensor, Tensor | None]:
    """Return forward and backward flow of a clip, float [frames - 1, 2, height, width] pixels.

    The backward flow of a flow file is None (it is computed by inversion). Arguments and errors are
    those of ``open_motion``.
    """
    moving = open_motion(motion, frames=frames, height=height, width=width)
    steps = list(moving.steps(Grid(height, width), frames))
    forward = _as_flow(np.stack([ahead for ahead, _ in steps]))
    backs = [back for _, back in steps if back is not None]
    return forward, _as_flow(np.stack(backs)) if backs else None


def read_layers(drags: Any) -> list[Layer]:
    """Return the layers of a job's ``drag``, bottom first."""
    if not isinstance(drags, (list, tuple)):
        raise ValueError(f"motion drag must be a list of polygons, got {drags!r}")
    return sorted((from_dict(Layer, d, "motion drag") for d in drags), key=lambda layer: layer.z)


def _as_flow(field: np.ndarray) -> Tensor:
    return torch.from_numpy(field).float().permute(0, 3, 1, 2).contiguous()
