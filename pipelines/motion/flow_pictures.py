"""Pictures of a flow: the color wheel, and arrows over frames."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from accel.pipelines.job import Job
from accel.pipelines.motion.flows import make_flow
from accel.pipelines.video import read_comment, read_video, write_video

DRAWN = "drawn by accel motion"  # in the comment of its videos
GRAY = 40  # level of pixels whose flow leaves the picture (occluded)


def color_wheel(flow: Tensor | np.ndarray, *, full: float | None = None) -> np.ndarray:
    """Draw ``flow [F, 2, H, W]`` as uint8 [F, H, W, 3] in colors.

    Hue is direction (right is red, down is yellow-green, clockwise), saturation is speed, up to
    ``full`` pixels (default: the fastest hundredth). No motion is white; what leaves the
    picture in one step is dark gray.
    """
    flow = np.asarray(flow, np.float32)
    speed, gone = _speed(flow)
    if full is None:
        full = float(np.percentile(speed[~gone], 99)) if not gone.all() else 1.0
    saturation = np.clip(speed / max(full, 1e-6), 0, 1)
    hue = np.arctan2(flow[:, 1], flow[:, 0]) / (2 * math.pi) % 1.0
    # HSV at full value: each channel is 1 minus saturation times its distance on the wheel.
    around = np.abs((hue[..., None] * 6 - np.array([0.0, 2.0, 4.0]) + 3) % 6 - 3)
    rgb = 1 - saturation[..., None] * np.clip(around - 1, 0, 1)
    picture = (rgb * 255).round().astype(np.uint8)
    picture[gone] = GRAY
    return picture


def arrows(
    frames: np.ndarray, flow: Tensor | np.ndarray, *, spacing: int = 16, enlarge: int = 4
) -> np.ndarray:
    """Draw the flow [F - 1, 2, H, W] as arrows over enlarged ``frames`` uint8 [F, H, W, 3].

    Every ``spacing``-th pixel (enlarged) has an arrow of its true length. The last frame shows the
    last flow.
    """
    flow = np.asarray(flow, np.float32)
    _, gone = _speed(flow)
    out = []
    for k, frame in enumerate(frames):
        image = Image.fromarray(frame).resize(
            (frame.shape[1] * enlarge, frame.shape[0] * enlarge), Image.Resampling.BICUBIC
        )
        pen, step = ImageDraw.Draw(image), min(k, len(flow) - 1)
        for y in range(spacing // 2, image.height, spacing):
            for x in range(spacing // 2, image.width, spacing):
                here = (step, y // enlarge, x // enlarge)
                if not gone[here]:
                    dx, dy = flow[here[0], :, here[1], here[2]] * enlarge
                    _arrow(pen, x, y, float(dx), float(dy))
        out.append(np.asarray(image))
    return np.stack(out)


def draw_job(job: Job, folder: Path, animation: np.ndarray | None = None) -> list[Path]:
    """Write pictures of a job's flow into ``folder`` and return their paths.

    NAME-flow.mp4 is a color wheel, NAME-arrows.mp4 lies over the rendered NAME.mp4 if it is there,
    NAME-animation.mp4 is the crude ``animation`` uint8 [F, H, W, 3] that leads the run, if one
    does; a job without motion has none. Raises ValueError for a job without frames, height and
    width or with a motion that cannot be had, and where a file of somebody else stands.
    """
    if job.movement is None or job.movement.noise.file is not None:
        return []
    if job.frames is None or job.height is None or job.width is None:
        raise ValueError(f"job {job.file_name!r}: motion needs frames, height and width")
    flow, _ = make_flow(job.movement, frames=job.frames, height=job.height, width=job.width)
    rate, written = job.fps or 16.0, [folder / f"{job.file_name}-flow.mp4"]
    _write(written[0], color_wheel(flow), rate)
    if animation is not None:
        written.append(folder / f"{job.file_name}-animation.mp4")
        _write(written[-1], animation, rate)
    rendered = folder / f"{job.file_name}.mp4"
    if rendered.is_file():
        frames = read_video(rendered)[:, : job.height, : job.width]
        written.append(folder / f"{job.file_name}-arrows.mp4")
        _write(written[-1], arrows(frames, flow), rate)
    return written


def _write(path: Path, frames: np.ndarray, rate: float) -> None:
    """Write a video that says in its comment where it is from, over nothing but such a one."""
    if os.path.lexists(path):
        try:
            comment = read_comment(path) if path.is_file() else ""
        except ValueError:
            comment = ""
        if comment != DRAWN:
            raise ValueError(f"{path} is not from accel motion; move it or rename the job")
    write_video(path, frames, fps=rate, comment=DRAWN)


def _arrow(pen: ImageDraw.ImageDraw, x: float, y: float, dx: float, dy: float) -> None:
    tip = (x + dx, y + dy)
    for color, width in (("black", 3), ("white", 1)):
        pen.line([(x, y), tip], fill=color, width=width)
        if math.hypot(dx, dy) >= 3:
            for turn in (2.6, -2.6):
                c, s = 0.35 * math.cos(turn), 0.35 * math.sin(turn)
                barb = (tip[0] + c * dx - s * dy, tip[1] + s * dx + c * dy)
                pen.line([tip, barb], fill=color, width=width)


def _speed(flow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels per frame [F, H, W], and where that leaves the picture whatever the place."""
    speed = np.hypot(flow[:, 0], flow[:, 1])
    return speed, speed > sum(flow.shape[2:])
