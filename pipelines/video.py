"""Write video and frames.

No rescaling, BT.709, settings in the ``comment`` tag, equal bytes for equal input, atomic.

    format    file         content
    mp4       name.mp4     H.264, 4:2:0
    webm      name.webm    VP9, 4:2:0
    gif       name.gif     256 colors per frame; equal neighbors become one longer frame
    png       name/        one 00000.png per frame, exact
    lossless  name.mkv     FFV1 in RGB, exact

Reading takes any of them: a folder of frames is a video too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import av
import imageio.v3 as iio
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image, PngImagePlugin

from accel.core.atomic_write import part_of

_BT709 = 1  # ITU-T H.273 code for primaries, transfer and matrix
_RGB = 0

T = TypeVar("T")


@dataclass(frozen=True)
class _Codec:
    """How one container is written.

    More than one thread would make the bytes depend on timing.
    """

    container: str
    codec: str
    options: dict[str, str]
    muxer: dict[str, str] = field(default_factory=dict)
    rgb: bool = False


_CODECS = {
    "mp4": _Codec(
        "mp4",
        "libx264",
        # x264's macroblock tree gives now and then other bytes for the same small frames.
        {"crf": "12", "preset": "slow", "x264-params": "mbtree=0"},
        {"movflags": "faststart"},
    ),
    "webm": _Codec(
        "webm",
        "libvpx-vp9",
        {"crf": "18", "b": "0", "deadline": "good", "cpu-used": "2", "row-mt": "0"},
        {"fflags": "+bitexact"},  # otherwise the file carries a random number
    ),
    "lossless": _Codec(
        "matroska", "ffv1", {"level": "3", "slicecrc": "1"}, {"fflags": "+bitexact"}, rgb=True
    ),
}
SUFFIX = {"mp4": ".mp4", "webm": ".webm", "gif": ".gif", "png": "", "lossless": ".mkv"}
SUFFIXES = {suffix: name for name, suffix in SUFFIX.items() if suffix} | {".png": "png"}
_FRAME = re.compile(r"\d{5,}\.png")  # the names that ``_encode_png`` gives


def write_video(
    path: str | Path, frames: np.ndarray, *, fps: float, comment: str = "", format: str = ""
) -> None:
    """Write ``frames`` uint8 [F, H, W, 3] at ``fps`` frames per second.

    ``format`` defaults to the one of the suffix. The file appears under its name only when it is
    complete. Equal input gives an equal file. In 4:2:0 an odd width or height gets its last column
    or row repeated. Raises ValueError for other shapes or dtypes or an unknown suffix, OSError if
    the file cannot be written.
    """
    path = Path(path)
    format = format or SUFFIXES.get(path.suffix.lower(), "")
    if format not in SUFFIX:
        raise ValueError(f"{path.name}: no video format; known suffixes: {sorted(SUFFIXES)}")
    part = part_of(path)
    try:
        encode(part, frames, fps=fps, comment=comment, format=format)
        replace(part, path)
    finally:
        remove(part)


def encode(path: Path, frames: np.ndarray, *, fps: float, comment: str, format: str) -> None:
    """Write to ``path`` itself, through to the disk.

    Raises as ``write_video`` does.
    """
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not frames.size:
        raise ValueError(
            f"frames must be uint8 [F, H, W, 3], got {frames.dtype} {tuple(frames.shape)}"
        )
    remove(path)
    if format == "png":
        _encode_png(path, frames, comment)
    elif format == "gif":
        _encode_gif(path, frames, fps, comment)
    else:
        rate = Fraction(fps).limit_denominator(1001)
        _encode(path, frames, rate, comment, _CODECS[format])
    for file in files_of(path):
        sync(file)


def _encode(path: Path, frames: np.ndarray, rate: Fraction, comment: str, codec: _Codec) -> None:
    if not codec.rgb:
        odd = [(0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)]
        frames = np.pad(frames, odd, mode="edge")
    url = os.path.abspath(path)  # "run:1/a.mp4" would be a protocol
    with av.open(url, "w", format=codec.container, options=codec.muxer) as container:
        container.metadata["comment"] = comment
        stream: Any = container.add_stream(codec.codec, rate=rate, options=codec.options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "bgr0" if codec.rgb else "yuv420p"
        context = stream.codec_context
        context.thread_count = 1
        context.color_primaries = context.color_trc = _BT709
        context.colorspace = _RGB if codec.rgb else _BT709
        context.color_range = ColorRange.JPEG if codec.rgb else ColorRange.MPEG
        for image in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            container.mux(stream.encode(frame if codec.rgb else _yuv(frame)))
        container.mux(stream.encode())
    _check_count(path, len(frames))


def _yuv(frame: av.VideoFrame) -> av.VideoFrame:
    return frame.reformat(
        format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
    )


def _check_count(path: Path, frames: int) -> None:
    """Raise OSError unless the file holds as many frames as went in: nothing is cut off unseen."""
    with path.open("rb") as file, av.open(file, "r") as container:
        found = sum(1 for packet in container.demux(video=0) if packet.size)
    if found != frames:
        raise OSError(f"{path} holds {found} of {frames} frames; is the disk full?")


def _encode_png(path: Path, frames: np.ndarray, comment: str) -> None:
    path.mkdir()
    text = PngImagePlugin.PngInfo()
    text.add_itxt("comment", comment)
    for number, image in enumerate(frames):
        Image.fromarray(image).save(path / f"{number:05}.png", format="PNG", pnginfo=text)


def _encode_gif(path: Path, frames: np.ndarray, fps: float, comment: str) -> None:
    images = [Image.fromarray(image).quantize(256) for image in frames]
    times = np.diff(np.round(np.arange(len(frames) + 1) * 100 / fps)) * 10  # ms, in steps of 10
    images[0].save(
        path,
        format="GIF",
        save_all=True,
        append_images=images[1:],
        duration=[max(10, int(t)) for t in times],
        loop=0,
        comment=comment.encode(),
    )


# ----------------------------------------------------------------------------------------- reading


def existing(path: str | Path) -> Path:
    """Return ``path`` as a Path.

    Raises ValueError if nothing is there.
    """
    if not Path(path).exists():
        raise ValueError(f"no file {path}")
    return Path(path)


def is_rendered(path: Path) -> bool:
    """Tell whether ``path`` is named as a video that ``accel render`` writes, or is its frames."""
    return path.suffix.lower() in SUFFIXES or (path.is_dir() and bool(files_of(path)))


def files_of(path: Path) -> list[Path]:
    """Return the file of a video, or the frames in a folder in their order.

    What else lies in the folder, such as a file manager's notes, is no part of the video.
    """
    if not path.is_dir():
        return [path]
    return sorted(path.glob("*.png"), key=lambda file: (len(file.name), file.name))


def read_video(path: str | Path) -> np.ndarray:
    """Return frames of a video, or of a folder of PNG frames, as uint8 [F, H, W, 3].

    Raises ValueError for what is no video.
    """
    path = Path(path)
    return _reading(path, lambda: _frames(path))


def read_comment(path: str | Path) -> str:
    """Return the ``comment`` tag of a video or of the first frame in a folder, "" without one.

    Raises ValueError for what is no video.
    """
    path = Path(path)
    return _reading(path, lambda: _comment(files_of(path)[0]))


def _reading(path: Path, read: Callable[[], T]) -> T:
    if path.is_dir() and not files_of(path):
        raise ValueError(f"{path} cannot be read as a video: the folder holds no .png frame")
    try:
        return read()
    except (
        av.error.FFmpegError, Image.DecompressionBombError, OSError, EOFError, IndexError,
        SyntaxError, ValueError,
    ) as error:  # fmt: skip
        raise ValueError(f"{path} cannot be read as a video: {error}") from error


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in (".gif", ".png")


def _frames(path: Path) -> np.ndarray:
    if path.is_dir():
        return np.concatenate([_frames(file) for file in files_of(path)])
    how: Any = {"plugin": "pillow", "mode": "RGB"} if _is_image(path) else {"plugin": "pyav"}
    with path.open("rb") as file:  # imageio takes a name such as "run:1" for an address
        frames = iio.imread(file, **how)
    return frames if frames.ndim == 4 else frames[None]


def _comment(path: Path) -> str:
    if _is_image(path):
        with Image.open(path) as image:
            comment = image.info.get("comment", "")
        return comment.decode() if isinstance(comment, bytes) else str(comment)
    with path.open("rb") as file, av.open(file, "r") as container:
        tags = {key.lower(): value for key, value in container.metadata.items()}
    return tags.get("comment", "")


# ------------------------------------------------------------------------------------------- files


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(part: Path, path: Path) -> None:
    """Give a complete file or folder its final name.

    Raises OSError, with the old one untouched, for a folder in place of a file or the other way
    round, and for a folder that holds more than frames.
    """
    if path.is_dir() and part.is_dir():
        if others := strangers(path):
            raise FileExistsError(f"{path} also holds {others[0].name}; move it away")
        remove(path)  # a folder cannot be replaced in one step
    part.replace(path)
    sync(path.parent)


def strangers(path: Path) -> list[Path]:
    """Return what lies in a folder of frames and is not ours."""
    return [file for file in path.iterdir() if not _FRAME.fullmatch(file.name)]


def remove(path: Path) -> None:
    """Delete a file if it is there; of a folder our frames, and the folder if it is empty then."""
    if path.is_dir() and not path.is_symlink():
        for file in path.iterdir():
            if _FRAME.fullmatch(file.name):
                file.unlink()
        with suppress(OSError):
            path.rmdir()
    else:
        path.unlink(missing_ok=True)
