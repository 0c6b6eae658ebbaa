"""Reads and writes MP4: no rescaling, BT.709, settings in the ``comment`` tag, atomic."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import imageio.v3 as iio
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

_BT709 = 1  # ITU-T H.273 code for primaries, transfer and matrix


def write_video(path: str | Path, frames: np.ndarray, *, fps: float, comment: str = "") -> None:
    """Write ``frames`` uint8 [F, H, W, 3] as H.264.

    The file appears under its name only when it is complete. Equal input gives an equal file. An
    odd width or height gets its last column or row repeated, which 4:2:0 colour needs. Raises
    ValueError for other shapes or dtypes, OSError if the folder cannot be written.
    """
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not frames.size:
        raise ValueError(
            f"frames must be uint8 [F, H, W, 3], got {frames.dtype} {tuple(frames.shape)}"
        )
    odd = [(0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)]
    frames = np.pad(frames, odd, mode="edge")
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    try:
        _encode(part, frames, Fraction(fps).limit_denominator(1001), comment)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _encode(path: Path, frames: np.ndarray, rate: Fraction, comment: str) -> None:
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        container.metadata["comment"] = comment
        stream = container.add_stream("libx264", rate=rate, options={"crf": "12", "preset": "slow"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.thread_count = 1  # more threads make the bytes depend on timing
        context.color_range = ColorRange.MPEG
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        for image in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame = frame.reformat(
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def read_video(path: str | Path) -> np.ndarray:
    """Frames of a video as uint8 [F, H, W, 3]. Raises ValueError for a file that is no
    video.
    """
    try:
        return np.asarray(iio.imread(path, plugin="pyav"))
    except (av.error.FFmpegError, OSError, IndexError) as error:
        raise ValueError(f"{path} cannot be read as a video: {error}") from error


def read_comment(path: str | Path) -> str:
    """The ``comment`` tag of a video, "" if it has none. Raises ValueError for a file that is no
    video.
    """
    try:
        with av.open(str(path)) as container:
            return container.metadata.get("comment", "")
    except av.error.FFmpegError as error:
        raise ValueError(f"{path} cannot be read as a video: {error}") from error
