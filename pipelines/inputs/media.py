"""Pictures and videos that a job gives to its pipeline: read with limits, brought to a size.

A file comes from anywhere. So nothing is decoded before its kind and size are known, only formats
that hold pictures and nothing else are read, and what is wrong is said in one line that names the
key, the file and the way out. A video is decoded as far as it is used, each frame scaled as it is
decoded (``video_decoding.py``).
"""

from __future__ import annotations

import stat
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from accel.pipelines.inputs.hashes import input_hash
from accel.pipelines.inputs.resizing import Size, how_fitted, placed, scaled_size
from accel.pipelines.motion.array_file import MOST_PIXELS
from accel.pipelines.motion.picture_formats import open_picture
from accel.pipelines.video_decoding import VideoHead
from accel.pipelines.video_reading import look, read_first

MOST_BYTES = 2**28  # of a picture's file
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "TIFF", "BMP", "PPM", "GIF")
_PNG, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
_VIDEO_SUFFIXES = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v")


@dataclass(frozen=True)
class Used:
    """What became of one input, for the sidecar.

    ``size``: width and height as they are in the file, upright; ``used``: as the pipeline got them;
    ``frames``: how many of a video were used.
    """

    key: str
    file: str
    sha256: str
    bytes: int
    size: Size
    used: Size
    how: str
    frames: int | None = None


def check_file(key: str, path: str) -> Path:
    """Return the path of a file that can be opened.

    Raises ValueError for one that is missing, or is a device, a pipe or a socket.
    """
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        raise ValueError(f"{key} {path} does not exist") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{key} {path!r:.200} cannot be read: {error}") from error
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ValueError(f"{key} {path} is no regular file; copy its content into one")
    return Path(path)


# ---------------------------------------------------------------------------------------- pictures


def check_files(files: Mapping[str, str]) -> None:
    """Raise ValueError for a picture or video of a job that cannot be used, by its key."""
    for key, path in files.items():
        check_file(key, path)
        if key == "video" or (key in ("mask", "control") and not is_still(path)):
            video_head(key, path)
        else:
            picture_size(key, path)


def picture_size(key: str, path: str) -> Size:
    """Return width and height of a picture, upright, after it was decoded once.

    Raises ValueError for what is no picture that can be used.
    """
    file = _picture_file(key, path)
    info = file.stat()
    return _decoded_size(key, str(file), info.st_size, info.st_mtime_ns)


@lru_cache(maxsize=4096)
def _decoded_size(key: str, path: str, size: int, changed: int) -> Size:
    return read_picture(key, path).size


def _picture_file(key: str, path: str) -> Path:
    file = check_file(key, path)
    if file.is_dir():
        raise ValueError(f"{key} {path} is a folder; give one picture (video takes a folder)")
    if file.stat().st_size > MOST_BYTES:
        raise ValueError(
            f"{key} {path} has {file.stat().st_size >> 20} MiB, more than the limit of "
            f"{MOST_BYTES >> 20}; save it smaller"
        )
    return file


def read_picture(key: str, path: str, mask: bool = False) -> Image.Image:
    """Return a picture as RGB, or a mask as L, upright, in 8 bits.

    What is transparent becomes white, in a mask black. Raises ValueError for what is no picture
    that can be used.
    """
    file, name = _picture_file(key, path), f"{key} {path}"
    if file.suffix.lower() in _VIDEO_SUFFIXES:
        raise ValueError(f"{name} is named as a video; give it as video, or save one frame of it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our limit is lower
            with Image.open(file, formats=formats()) as image:
                _check_head(name, file, image)
                return _flat(_upright(name, file, image), mask)
    except UnidentifiedImageError:
        raise ValueError(
            f"{name} is no picture of a known format ({', '.join(formats())}); save it as PNG"
        ) from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name}: {error}; scale it down") from error
    except Exception as error:  # decoders of files from anywhere raise anything
        if str(error).startswith(name):
            raise
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{name} is damaged or cut off: {why}") from error


@cache
def formats() -> tuple[str, ...]:
    """Return the formats that this Pillow was built with."""
    Image.init()
    return tuple(kind for kind in FORMATS if kind in Image.OPEN)


def _check_head(name: str, file: Path, image: Image.Image) -> None:
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(
            f"{name} has {image.width} x {image.height} pixels, more than the limit of "
            f"{MOST_PIXELS}; scale it down"
        )
    count = getattr(image, "n_frames", 1)
    if count > 1 and image.format != "MPO":  # where the others are previews or another eye's view
        raise ValueError(f"{name} holds {count} pictures; give it as video, or save one of them")
    if extra := _behind(file, image.format or ""):
        raise ValueError(
            f"{name} has {extra} bytes behind the end of the picture, as a file has that is two "
            "things at once; save it again"
        )


def _behind(file: Path, kind: str) -> int:
    """Return how many bytes follow a picture whose format says where it ends."""
    with file.open("rb") as source:
        content = source.read()
    if kind == "PNG":
        return len(content) - _png_end(content)
    if kind == "WEBP":
        (length,) = struct.unpack_from("<I", content, 4)
        return max(len(content) - 8 - length - length % 2, 0)
    if kind == "GIF":
        return len(content) - content.rindex(b";") - 1 if b";" in content else 0
    # Cameras put pictures and clips behind a JPEG; an archive ends with a record of 22 bytes, whose
    # last two are the length of a comment.
    at = content.rfind(b"PK\x05\x06")
    comment = len(content) - at - 22
    ends = at >= 0 <= comment < 2**16 and content[at + 20 : at + 22] == struct.pack("<H", comment)
    return len(content) - at if ends else 0


def _png_end(content: bytes) -> int:
    at = len(_PNG)
    while at + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, at)
        kind, at = content[at + 4 : at + 8], at + 12 + length
        if kind == b"IEND":
            break
    return min(at, len(content))


def _upright(name: str, file: Path, image: Image.Image) -> Image.Image:
    """Return a picture turned as its EXIF data say, in 8 bits a channel."""
    with file.open("rb") as source:
        head = source.read(32) if image.format == "PNG" else b""
    turn = ImageOps.exif_transpose
    if len(head) > 25 and head[24] == 16:  # Pillow would round color, and cut gray off at white
        deep = open_picture(name, file, head)
        assert deep is not None
        array = (deep.raw() >> 8).astype(np.uint8)
        whole = Image.fromarray(array)
        whole.getexif().update(image.getexif())
        return turn(whole)
    image.load()
    if image.mode.startswith("I") or image.mode == "F":
        array = np.asarray(image).astype(np.float64)
        scale = 1 / 256 if image.mode.startswith("I") else 255.0  # floats are levels from 0 to 1
        return turn(Image.fromarray(np.clip(array * scale, 0, 255).astype(np.uint8)))
    return turn(image)


def _flat(image: Image.Image, mask: bool) -> Image.Image:
    into = "L" if mask else "RGB"
    if "transparency" in image.info or image.mode in ("LA", "PA", "RGBA", "La", "RGBa"):
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "black" if mask else "white")
        image = Image.alpha_composite(ground, image)
    out = image.convert(into)
    out.info.clear()
    return out


# ------------------------------------------------------------------------------------------ videos


def is_still(path: str) -> bool:
    """Tell whether a file is one picture rather than a video."""
    file = Path(path)
    if file.is_dir() or file.suffix.lower() in _VIDEO_SUFFIXES:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file, formats=formats()) as image:
                return image.format == "MPO" or getattr(image, "n_frames", 1) == 1
    except Exception:  # whoever reads it says what is wrong with it
        return False


def video_head(key: str, path: str) -> VideoHead:
    """Return size and number of frames of a video, or of a folder of PNG frames.

    Raises ValueError for what is no video.
    """
    file = check_file(key, path)
    if file.is_dir():
        for inner in file.iterdir():
            check_file(f"{key}: frame", str(inner))
    info = file.stat()
    return _looked(key, str(file), info.st_size, info.st_mtime_ns)


@lru_cache(maxsize=4096)
def _looked(key: str, path: str, size: int, changed: int) -> VideoHead:
    try:
        return look(path)
    except ValueError as error:
        raise ValueError(f"{key} {error}") from error


def read_frames(
    key: str, path: str, count: int, target: Size | None, fit: str, mask: bool = False
) -> list[Image.Image]:
    """Return the first ``count`` frames of a video, fewer where it ends.

    Raises ValueError for what is no video.
    """
    head = video_head(key, path)
    size = (head.width, head.height)
    scaled = size if target is None else scaled_size(size, target, fit)
    try:
        frames = read_first(path, count, scaled[::-1])
        images = [Image.fromarray(frame).convert("L" if mask else "RGB") for frame in frames]
    except ValueError as error:
        raise ValueError(f"{key} {error}") from error
    return [image if target is None else placed(image, target) for image in images]


def used(
    key: str,
    path: str,
    size: Size,
    target: Size | None,
    fit: str,
    frames: tuple[int, int] | None = None,
) -> Used:
    """Return what became of an input of ``size``; ``frames``: used, and of how many."""
    file = Path(path)
    count = sum(f.stat().st_size for f in file.iterdir()) if file.is_dir() else file.stat().st_size
    how = how_fitted(size, target, fit)
    if frames is not None:
        how = f"first {frames[0]} of {frames[1]} frames, {how}"
    number = None if frames is None else frames[0]
    return Used(key, path, input_hash(file), count, size, target or size, how, number)
