"""Decodes the frames of a video, or of a folder of PNG frames, one after the other.

imageio reads and scales them; what it cannot tell is asked of PyAV: how many packets there are, how
long they last, and how a player turns the frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import imageio.v3 as iio
import numpy as np
from PIL import Image

MOST_FRAMES = 36_000  # that are decoded, 20 minutes of 30 a second
MOST_PIXELS = 2**26  # of a frame, 8192 x 8192

_THREADS = 4  # each holds one frame more
_CLOSED = {"protocol_whitelist": "none"}  # a file that names others, as playlists do, opens none
# Filters for the signs (a, b, c, d) of a display matrix: (x, y) is shown at (ax + cy, bx + dy).
_TURNS: dict[tuple[int, ...], tuple[tuple[str, str], ...]] = {
    (1, 0, 0, 1): (),
    (0, 1, -1, 0): (("transpose", "clock"),),
    (0, -1, 1, 0): (("transpose", "cclock"),),
    (-1, 0, 0, -1): (("hflip", ""), ("vflip", "")),
    (-1, 0, 0, 1): (("hflip", ""),),
    (1, 0, 0, -1): (("vflip", ""),),
    (0, 1, 1, 0): (("transpose", "cclock_flip"),),
    (0, -1, -1, 0): (("transpose", "clock_flip"),),
}


@dataclass(frozen=True)
class VideoHead:
    """What is known of a video before its frames are decoded.

    ``frames``: as many as there are packets, nearly always the number of frames. ``height`` and
    ``width`` as it is shown, ``turn`` the filters that turn it so. ``variable``: whether frames
    last unequally long.
    """

    frames: int
    height: int
    width: int
    turn: tuple[tuple[str, str], ...] = ()
    variable: bool = False

    def __post_init__(self) -> None:
        if self.height * self.width > MOST_PIXELS:
            raise ValueError(
                f"frames of {self.width} x {self.height} are larger than the limit of "
                f"{MOST_PIXELS} pixels; scale it down"
            )


def files_of(path: Path) -> list[Path]:
    """Return the file of a video, or the frames in a folder in their order.

    What else lies in the folder, such as a file manager's notes, is no part of the video.
    """
    if not path.is_dir():
        return [path]
    return sorted(path.glob("*.png"), key=lambda file: (len(file.name), file.name))


def is_image(path: Path) -> bool:
    """Tell whether Pillow decodes a file: GIF, PNG and WebP."""
    with path.open("rb") as file:
        head = file.read(12)
    return head.startswith((b"GIF8", b"\x89PNG")) or head[8:] == b"WEBP"


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a video of one file with PyAV."""
    with path.open("rb") as file, av.open(file, "r", options=_CLOSED) as container:
        yield container


def look(path: Path) -> VideoHead:
    """Return size and number of frames of a video, of which only the first is decoded.

    Raises ValueError for what is no video, or is larger than the limits, and the decoders' errors.
    """
    files = files_of(path)
    if path.is_dir() or is_image(files[0]):
        with Image.open(files[0]) as image:
            count = len(files) if path.is_dir() else getattr(image, "n_frames", 1)
            return VideoHead(_few(count), image.height, image.width)
    with opened(path) as container:
        if not container.streams.video:
            raise ValueError("it holds no pictures")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise ValueError("there is no decoder for its pictures")
        VideoHead(1, stream.codec_context.height, stream.codec_context.width)  # within the limits
        frame = next(container.decode(video=0), None)
        if frame is None:
            raise ValueError("it holds no frame")
        turn = _turn({item.type.name: bytes(item) for item in frame.side_data})
        height, width = frame.height, frame.width
    if any(name == "transpose" for name, _ in turn):
        height, width = width, height
    count, variable = _count(path)
    return VideoHead(count, height, width, turn, variable)


def _turn(side: dict[str, bytes]) -> tuple[tuple[str, str], ...]:
    """Return the filters for a frame's display matrix."""
    matrix = np.frombuffer(side.get("DISPLAYMATRIX", b""), "<i4")
    if len(matrix) != 9 or not matrix[[0, 1, 3, 4]].any():
        return ()
    parts = matrix[[0, 1, 3, 4]] / np.abs(matrix[[0, 1, 3, 4]]).max()
    signs = tuple(int(part) for part in np.rint(parts).tolist())
    if signs not in _TURNS or np.abs(parts - signs).max() > 0.01:
        raise ValueError("it is to be shown askew; encode it upright")
    return _TURNS[signs]


def _count(path: Path) -> tuple[int, bool]:
    """Return the number of packets, nothing decoded, and whether they last unequally long."""
    times: list[int] = []
    count = there = 0
    with opened(path) as container:
        listed = container.streams.video[0].frames if "mp4" in container.format.name else 0
        for packet in container.demux(video=0):
            there += packet.dts is not None  # the one after the last has no time
            if packet.size and not packet.is_discard:
                count = _few(count + 1)
                if packet.pts is not None:
                    times.append(packet.pts)
    if there < listed:
        raise ValueError(f"it is cut off: {there} of {listed} frames are there; copy it again")
    lengths = np.diff(np.unique(times))
    return count, len(lengths) > 1 and bool(lengths.max() > 1.5 * np.median(lengths))


def _few(count: int) -> int:
    if count > MOST_FRAMES:
        raise ValueError(f"it has more than {MOST_FRAMES} frames; cut it")
    return count


def frames(
    path: Path,
    head: VideoHead,
    first: int = 0,
    last: int | None = None,
    cover: tuple[int, int] | None = None,
    only: Iterable[int] = (),
    size: tuple[int, int] | None = None,
) -> Iterator[np.ndarray]:
    """Yield frames ``first`` to ``last``, scaled to just ``cover`` (H, W) or as they are.

    ``size`` (H, W) scales them to exactly that instead. Of ``only`` some, counted from ``first``
    and rising, and all after the last of them.
    """
    size, only = size if cover is None else _covering(head, cover), list(only)
    if path.is_dir() or is_image(path):
        yield from _images(path, head, first, last, size, only)
        return
    end = "" if last is None else f":end_frame={last + 1}"
    filters: list[tuple[str, str]] = []
    if first or end:
        filters.append(("trim", f"start_frame={first}{end}"))
    if only:
        filters.append(("select", "+".join([f"eq(n,{n})" for n in only] + [f"gt(n,{only[-1]})"])))
    filters += head.turn
    if size is not None and size != (head.height, head.width):
        flags = "area" if size[0] < head.height else "bicubic"
        flags += "+accurate_rnd+full_chroma_int+bitexact"  # the same on every processor
        filters += [("scale", f"{size[1]}:{size[0]}:flags={flags}"), ("format", "rgb24")]
    with path.open("rb") as file:  # imageio takes a name such as "run:1" for an address
        how: Any = {"plugin": "pyav", "options": _CLOSED}
        reader: Any = iio.imopen(file, "r", **how)
        with reader as video:
            for frame in video.iter(
                filter_sequence=filters or None, thread_type="FRAME", thread_count=_THREADS
            ):
                yield np.array(frame)


def _images(
    path: Path,
    head: VideoHead,
    first: int,
    last: int | None,
    size: tuple[int, int] | None,
    only: list[int],
) -> Iterator[np.ndarray]:
    end = MOST_FRAMES if last is None else last
    wanted = {first + n for n in only}

    def used(number: int) -> bool:
        return first <= number <= end and (not only or number in wanted or number > max(wanted))

    def scaled(frame: np.ndarray) -> np.ndarray:
        if size is None or size == frame.shape[:2]:
            return frame
        how = Image.Resampling.BOX if size[0] < head.height else Image.Resampling.BICUBIC
        return np.asarray(Image.fromarray(frame).resize(size[::-1], how))

    if path.is_dir():
        for number, file in enumerate(files_of(path)):
            if used(number):
                yield scaled(next(_decoded(file, head)))
        return
    for number, frame in enumerate(_decoded(path, head)):
        if number > end:
            return
        if used(number):
            yield scaled(frame)


def _decoded(file: Path, head: VideoHead) -> Iterator[np.ndarray]:
    with file.open("rb") as stream, Image.open(file) as image:
        if image.size != (head.width, head.height):
            raise ValueError(
                f"{file.name} is {image.width} x {image.height}, the first frame {head.width} x "
                f"{head.height}"
            )
        deep = image.mode.startswith("I")  # 16 bits, which Pillow would cut off at white
        reader: Any = iio.imopen(stream, "r", plugin="pillow")
        with reader as pictures:
            for frame in pictures.iter(mode=None if deep else "RGB"):
                yield np.stack([(frame >> 8).astype(np.uint8)] * 3, -1) if deep else frame


def _covering(head: VideoHead, cover: tuple[int, int]) -> tuple[int, int]:
    """Return the least size (H, W) of the frame's shape that covers ``cover``."""
    scale = max(cover[0] / head.height, cover[1] / head.width)
    height, width = (round(head.height * scale), round(head.width * scale))
    size = max(height, cover[0]), max(width, cover[1])
    if size[0] * size[1] > MOST_PIXELS:
        raise ValueError(
            f"a frame of {head.width} x {head.height} cannot cover {cover[1]} x {cover[0]}; crop it"
        )
    return size
