"""Reads pictures as arrays: what Pillow reads, PNG of 16 bits a channel, and OpenEXR.

Pillow rounds 16-bit colors to 8 bits, and reads no EXR. FFmpeg decodes both. (Not through imageio,
which collects all garbage after each picture: half a second where a model is loaded, and a flow has
hundreds.) FFmpeg knows a single EXR channel only by the name Y, so the channel wanted is renamed in
a copy of the header.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, UnidentifiedImageError

from accel.pipelines.motion.array_file import ArrayFile, choose

_PNG = b"\x89PNG\r\n\x1a\n"
_GRAY, _RGB, _RGBA = 0, 2, 6  # color types of a PNG
_FORMATS = ("PNG", "TIFF", "JPEG", "WEBP", "BMP", "PPM")
_MODES = {"1": "L", "L": "L", "LA": "RGBA", "P": "RGBA", "PA": "RGBA", "RGB": "RGB", "RGBA": "RGBA"}
_CHANNELS = {"L": (), "RGB": (3,), "RGBA": (4,)}
_DEEP, _MULTIPART, _TILED = 0x800, 0x1000, 0x200  # flags of an EXR
_FLOATS = {1, 2}  # half and float among the pixel types of an EXR
_LINES = {3: 16, 4: 32, 5: 16, 6: 32, 7: 32, 8: 32, 9: 256}  # of a block, by compression
_WINDOWS = ("dataWindow", "displayWindow")


def open_picture(name: str, path: Path, head: bytes) -> ArrayFile | None:
    """Return a picture that starts with the bytes ``head``; None if it is none.

    Raises ValueError, starting with ``name``, for one that cannot be used.
    """
    if head.startswith(_PNG) and len(head) > 25 and head[24] == 16 and head[25] != _GRAY:
        return _deep_png(name, path, head)
    try:
        with Image.open(path, formats=_FORMATS) as image:
            mode, kind, count = image.mode, image.format, getattr(image, "n_frames", 1)
            width, height = image.size
    except UnidentifiedImageError:
        return None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name}: {error}; scale it down") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"{name} is damaged or cut off: {error}") from error
    if count != 1:
        raise ValueError(f"{name} holds {count} pictures; save one, or an array [F, H, W] as .npy")

    def decode(into: str) -> np.ndarray:
        with Image.open(path, formats=_FORMATS) as image:
            return np.asarray(image if into == image.mode else image.convert(into))

    if mode in _MODES:
        into = _MODES[mode]
        shape = (height, width, *_CHANNELS[into])
        return ArrayFile(name, "picture", shape, lambda: decode(into), 255, into == "RGBA")
    if mode == "F":
        return ArrayFile(name, "picture", (height, width), lambda: decode("F"))
    if mode.startswith("I;16") or (mode == "I" and kind in ("PNG", "PPM")):
        return ArrayFile(name, "picture", (height, width), lambda: decode(mode), 65535)
    raise ValueError(f"{name} is a {kind} of mode {mode}; save it as gray, 8 or 16 bits, or float")


def _deep_png(name: str, path: Path, head: bytes) -> ArrayFile:
    width, height = struct.unpack(">II", head[16:24])
    color = head[25]
    if color not in (_RGB, _RGBA):
        raise ValueError(f"{name} is gray with alpha in 16 bits; save it without alpha")

    def decode() -> np.ndarray:
        return _ffmpeg("png", path.read_bytes()).to_ndarray()

    shape = (height, width, 3 if color == _RGB else 4)
    return ArrayFile(name, "picture", shape, decode, 65535, color == _RGBA)


def _ffmpeg(codec: str, data: bytes) -> av.VideoFrame:
    """Return the picture in ``data``; of an EXR FFmpeg leaves black what is not there."""
    context: Any = av.CodecContext.create(codec, "r")
    frame: av.VideoFrame = context.decode(av.Packet(data))[0]
    return frame


# --------------------------------------------------------------------------------------------- EXR


def open_exr(name: str, path: Path, key: str) -> ArrayFile:
    """Return the one channel of an OpenEXR picture, the one named ``key``, or R, G and B.

    Raises ValueError, starting with ``name``, for one that cannot be used.
    """
    with path.open("rb") as file:
        head = file.read(2**16)
    try:
        flags, entries = _attributes(head)
        begin, size = entries["channels"]
        channels = _channels(head[begin : begin + size])
        box, shown = (struct.unpack_from("<4i", head, entries[n][0]) for n in _WINDOWS)
    except (struct.error, IndexError, ValueError) as error:
        raise ValueError(f"{name} has a broken EXR header: {error}") from error
    if flags & (_DEEP | _MULTIPART):
        raise ValueError(f"{name} is a deep or multipart EXR; save one flat part")
    if box != shown:
        raise ValueError(
            f"{name}: its data window {box} is not its display window {shown}; crop it"
        )
    colors = not key and {"R", "G", "B"} <= set(channels) <= {"R", "G", "B", "A"}
    wanted = ["R", "G", "B"] if colors else [choose(name, key, list(channels), "channel")]
    for channel in wanted:
        if channels[channel] not in _FLOATS:
            raise ValueError(f"{name}: channel {channel} holds whole numbers; save it as float")
    if not colors and flags & _TILED and len(wanted[0]) > 1:
        raise ValueError(f"{name}: channel {wanted[0]} lies in tiles; save it in scan lines")
    hidden = {c: c if colors and c in wanted else "0" * len(c) for c in channels}
    names = hidden if colors else hidden | {wanted[0]: "Y"}
    shape = (box[3] - box[1] + 1, box[2] - box[0] + 1)

    def decode() -> np.ndarray:
        data = path.read_bytes()
        _check_blocks(data, entries, shape, bool(flags & _TILED))
        frame = _ffmpeg("exr", _renamed(data, begin, size, names))
        kind = np.dtype("<f2" if "f16" in frame.format.name else "<f4")
        planes = [
            np.frombuffer(bytes(plane), kind).reshape(frame.height, -1)[:, : frame.width]
            for plane in frame.planes
        ]
        return np.stack(planes, -1) if colors else planes[0]

    return ArrayFile(name, "exr", (*shape, 3) if colors else shape, decode)


def _check_blocks(
    data: bytes, entries: dict[str, tuple[int, int]], shape: tuple[int, int], tiled: bool
) -> None:
    """Raise ValueError unless all blocks of an EXR are there."""
    at, lines = _header_end(entries), _LINES.get(data[entries["compression"][0]], 1)
    count, head = -(-shape[0] // lines), 8
    if tiled:
        wide, high, mode = struct.unpack_from("<2IB", data, entries["tiles"][0])
        if mode & 15 or not wide or not high:
            raise ValueError("it holds tiles of several sizes; save it in scan lines")
        count, head = -(-shape[0] // high) * -(-shape[1] // wide), 20
    if at + 8 * count > len(data):
        raise ValueError(f"it ends within its list of {count} blocks")
    for offset in struct.unpack_from(f"<{count}Q", data, at):
        end = offset + head
        if end > len(data) or end + struct.unpack_from("<I", data, end - 4)[0] > len(data):
            raise ValueError(f"its block at byte {offset} is not there")


def _attributes(head: bytes) -> tuple[int, dict[str, tuple[int, int]]]:
    """Return the flags of an EXR, and start and length of each attribute's value."""
    flags, at, found = struct.unpack_from("<I", head, 4)[0], 8, {}
    while head[at] != 0:
        end = head.index(b"\0", at)
        value = head.index(b"\0", end + 1) + 5
        size = struct.unpack_from("<i", head, value - 4)[0]
        if size < 0 or value + size >= len(head):
            raise ValueError(f"attribute at byte {at} is cut off")
        found[head[at:end].decode("latin-1")] = (value, size)
        at = value + size
    if missing := [name for name in ("channels", "compression", *_WINDOWS) if name not in found]:
        raise ValueError(f"it has no {missing[0]}")
    return flags, found


def _channels(listed: bytes) -> dict[str, int]:
    """Return the names of an EXR's channels and their pixel types, in their order."""
    at, found = 0, {}
    while listed[at] != 0:
        end = listed.index(b"\0", at)
        found[listed[at:end].decode("latin-1")] = struct.unpack_from("<i", listed, end + 1)[0]
        at = end + 17
    return found


def _renamed(data: bytes, begin: int, size: int, names: dict[str, str]) -> bytes:
    """Return an EXR whose channels have other names; ``begin``, ``size``: their list in it."""
    listed, out, at = data[begin : begin + size], b"", 0
    for old, new in names.items():
        end = at + len(old.encode("latin-1"))
        out += new.encode("latin-1") + listed[end : end + 17]
        at = end + 17
    out += b"\0"
    rest = data[begin + size :]
    if len(out) != size:
        end = _header_end(_attributes(data)[1]) - begin - size
        # FFmpeg finds the lines again when the table of their offsets begins with 0.
        rest = rest[:end] + bytes(8) + rest[end + 8 :]
    return data[: begin - 4] + struct.pack("<i", len(out)) + out + rest


def _header_end(entries: dict[str, tuple[int, int]]) -> int:
    """Return the place after an EXR's attributes, where the offsets of its blocks begin."""
    return max(start + size for start, size in entries.values()) + 1
