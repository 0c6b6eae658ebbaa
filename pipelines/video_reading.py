"""Read videos through imageio: only the frames that are used, scaled as they are decoded.

A folder of PNG frames is a video too. Frames come as a player shows them, turned and mirrored as
the file's display matrix says, which is how phones store upright clips. Frames are counted, not
timed: where the rate varies, each frame still counts as one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

import av
import numpy as np
from PIL import Image

from accel.pipelines import video_decoding as decoding
from accel.pipelines.video_decoding import VideoHead, files_of, is_image

T = TypeVar("T")
MOST_BYTES = 2**33  # of the frames that are returned
_SUFFIXES = {".mp4", ".webm", ".gif", ".mkv", ".png"}  # that ``accel render`` writes


def existing(path: str | Path) -> Path:
    """Return ``path`` as a Path.

    Raises ValueError if nothing is there.
    """
    if not Path(path).exists():
        raise ValueError(f"no file {path}")
    return Path(path)


def is_rendered(path: Path) -> bool:
    """Tell whether ``path`` is named as a video that ``accel render`` writes, or is its frames."""
    return path.suffix.lower() in _SUFFIXES or (path.is_dir() and bool(files_of(path)))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what the decoders raise into a ValueError that names the file."""
    if path.is_dir() and not files_of(path):
        raise ValueError(f"{path} cannot be read as a video: the folder holds no .png frame")
    try:
        yield
    except (
        av.error.FFmpegError, Image.DecompressionBombError, OSError, EOFError, IndexError,
        SyntaxError, ValueError,
    ) as error:  # fmt: skip
        raise ValueError(f"{path} cannot be read as a video: {error}") from error


def read_video(path: str | Path, first: int = 0, last: int | None = None) -> np.ndarray:
    """Return frames ``first`` to ``last`` (default all) of a video as uint8 [F, H, W, 3].

    ``path`` may be a folder of PNG frames. Raises ValueError for what is no video, for one without
    these frames, and for frames of more than ``MOST_BYTES``.
    """
    path = Path(path)
    with _reading(path):
        head = decoding.look(path)
        end = head.frames if last is None else min(last + 1, head.frames)
        count = max(end - first, 0)
        _check_bytes(count, head)
        out, found = np.empty((count, head.height, head.width, 3), np.uint8), 0
        for found, frame in enumerate(decoding.frames(path, head, first, last), 1):
            if found > len(out):  # more than there are packets
                _check_bytes(found, head)
                out = np.concatenate([out, np.empty_like(out[: found // 4 + 1])])
            if frame.shape != out.shape[1:]:
                raise ValueError(f"frame {found - 1} is {frame.shape}, the first {out.shape[1:]}")
            out[found - 1] = frame
        _check_range(found, first, last, head.frames)
    return out[:found]


class FewerFramesError(ValueError):
    """A video that ends before its header says; ``frames`` were there."""

    def __init__(self, frames: int) -> None:
        super().__init__("its number of frames changes as it is read")
        self.frames = frames


def read_spread(
    path: str | Path, count: int, size: tuple[int, int], first: int = 0, last: int | None = None
) -> tuple[np.ndarray, VideoHead]:
    """Return ``count`` frames uint8 [count, H, W, 3], evenly spread from ``first`` to ``last``.

    Also returns the video's head, ``frames`` being the number that they were chosen from. Each is
    scaled to cover ``size`` (H, W) and its middle is cut out; no other frame is kept. Raises
    ValueError as ``read_video`` does.
    """
    out = np.empty((count, *size, 3), np.uint8)

    def fill(head: VideoHead) -> None:
        for k, frame in enumerate(stream_spread(path, head, count, size, first, last)):
            out[k] = frame

    _, head = with_head(path, fill)
    return out, replace(head, frames=(head.frames if last is None else last + 1) - first)


def with_head(path: str | Path, use: Callable[[VideoHead], T]) -> tuple[T, VideoHead]:
    """Return what ``use`` makes of a video's head, and the head.

    It is called again, with the number of frames that are there, where it raises FewerFramesError:
    packets may hold several frames or none. Raises ValueError as ``read_video`` does.
    """
    head = look(path)
    try:
        return use(head), head
    except FewerFramesError as error:
        head = replace(head, frames=error.frames)
    try:
        return use(head), head
    except FewerFramesError as error:
        raise ValueError(f"{path} cannot be read as a video: {error}") from error


def stream_spread(
    path: str | Path, head: VideoHead, count: int, size: tuple[int, int], first: int = 0,
    last: int | None = None,
) -> Iterator[np.ndarray]:  # fmt: skip
    """Yield the frames of ``read_spread`` one after the other; ``head`` is what ``look`` said.

    Raises FewerFramesError, saying how many there are, where the head is wrong, and ValueError as
    ``read_video`` does.
    """
    path = Path(path)
    expected = head.frames - first if last is None else last + 1 - first
    with _reading(path):
        _check_range(max(expected, 0), first, last, head.frames)
    index = np.rint(np.linspace(0, expected - 1, count)).astype(int)
    chosen, times = np.unique(index, return_counts=True)
    few, found = 2 * len(chosen) < expected, 0  # then no other frame is even scaled
    order = times if few else np.bincount(index, minlength=expected)
    with _reading(path):
        only = chosen if few else ()
        for found, frame in enumerate(decoding.frames(path, head, first, last, size, only), 1):
            for _ in range(order[found - 1] if found <= len(order) else 0):
                yield _middle(frame, size)
    if found != len(order):
        with _reading(path):
            there = sum(1 for _ in decoding.frames(path, head, first, last, (16, 16)))
            _check_range(there, first, last, first + there)
        raise FewerFramesError(first + there)


def read_first(
    path: str | Path, count: int, size: tuple[int, int] | None = None
) -> Iterator[np.ndarray]:
    """Yield the first ``count`` frames uint8 [H, W, 3], scaled to ``size`` (H, W) as decoded.

    There are fewer where the video ends. Raises ValueError as ``read_video`` does.
    """
    path = Path(path)
    with _reading(path):
        head = decoding.look(path)
        scaled = head if size is None else replace(head, height=size[0], width=size[1])
        _check_bytes(min(count, head.frames), scaled)
        yield from islice(decoding.frames(path, head, 0, count - 1, size=size), count)


def look(path: str | Path) -> VideoHead:
    """Return size and number of frames of a video, of which only the first is decoded.

    Raises ValueError for what is no video, or is larger than the limits.
    """
    path = Path(path)
    with _reading(path):
        return decoding.look(path)


def read_comment(path: str | Path) -> str:
    """Return the ``comment`` tag of a video or of the first frame in a folder, "" without one.

    Raises ValueError for what is no video.
    """
    path = Path(path)
    with _reading(path):
        file = files_of(path)[0]
        if path.is_dir() or is_image(file):
            with Image.open(file) as image:
                comment = image.info.get("comment", "")
            return comment.decode() if isinstance(comment, bytes) else str(comment)
        with decoding.opened(file) as container:
            tags = {key.lower(): value for key, value in container.metadata.items()}
        return tags.get("comment", "")


def _check_bytes(count: int, head: VideoHead) -> None:
    size = count * head.height * head.width * 3
    if size > MOST_BYTES:
        raise ValueError(
            f"{count} frames of {head.width} x {head.height} take {size / 2**30:.1f} GiB, more "
            f"than the limit of {MOST_BYTES / 2**30:g}; cut it or scale it down"
        )


def _check_range(found: int, first: int, last: int | None, frames: int) -> None:
    if found and (last is None or found == last + 1 - first):
        return
    asked = f"from {first} on" if last is None else f"{first} to {last}"
    raise ValueError(f"it has {frames} frames, numbered from 0; there is no {asked}")


def _middle(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    top, left = ((frame.shape[i] - size[i]) // 2 for i in (0, 1))
    return frame[top : top + size[0], left : left + size[1]]
