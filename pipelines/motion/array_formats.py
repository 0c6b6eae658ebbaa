"""Reads arrays of every format that a job may name, told apart by content and not by suffix.

.npy, .npz          numbers; of several arrays one is named: flows.npz:forward
.png .tif .jpg …    gray pictures of 8 or 16 bits, or floats
.exr                one channel, float or half; of several one is named: scene.exr:Z
.pfm, .flo          floats; Middlebury flow
"""

from __future__ import annotations

import math
import pickle
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from accel.pipelines.motion.array_file import ArrayFile, choose, existing_file
from accel.pipelines.motion.picture_formats import open_exr, open_picture

_PFM = re.compile(rb"(P[Ff])\s+(\d{1,9})\s+(\d{1,9})\s+([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s")
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def open_array(what: str, path: str) -> ArrayFile:
    """Return the array in a file, of which only the header is read yet.

    Args:
        what: What it is for, such as "flow file"; begins every error.
        path: A file, or file:name for one of several arrays.

    Raises:
        ValueError: No file, a format that is not read, or an array that cannot be had.
    """
    try:
        return _opened(*existing_file(what, path))
    except OSError as error:
        raise ValueError(f"{what} {path} cannot be read: {error.strerror or error}") from error
    except ValueError:
        raise
    except Exception as error:  # what parsers of headers raise where these are damaged
        raise ValueError(f"{what} {path} is damaged at its start: {error}") from error


def _opened(name: str, file: Path, key: str) -> ArrayFile:
    with file.open("rb") as stream:
        head = stream.read(64)
    if not head:
        raise ValueError(f"{name} is empty")
    if head.startswith(b"PK"):
        return _archive(name, file, key)
    if head.startswith(b"v/1\x01"):
        return open_exr(name, file, key)
    if key:
        raise ValueError(f"{name}: only .npz and .exr files hold named arrays; leave :{key} out")
    if head.startswith(np.lib.format.MAGIC_PREFIX):
        return _numpy(name, lambda: file.open("rb"), file.stat().st_size)
    if head.startswith(b"PIEH"):
        return _flo(name, file, head)
    if found := _PFM.match(head):
        return _pfm(name, file, found)
    if (picture := open_picture(name, file, head)) is not None:
        return picture
    raise ValueError(
        f"{name} {_known_other(head)}; what is read: .npy, .npz, .flo, .pfm, .exr and pictures "
        "(PNG, TIFF, JPEG, WebP, BMP, PGM)"
    )


def _known_other(head: bytes) -> str:
    if head[:1] == pickle.PROTO and head[1:2] <= bytes([pickle.HIGHEST_PROTOCOL]):
        return "is pickled data, which is not read since it could run code: use numpy.save"
    for magic, kind in ((b"\x89HDF", "an HDF5 file"), (b"MATLAB", "a MATLAB file")):
        if head.startswith(magic):
            return f"is {kind}: use numpy.save"
    return "is of no known format, or damaged at its start"


def _numpy(
    name: str, stream: Callable[[], AbstractContextManager[IO[bytes]]], size: int
) -> ArrayFile:
    """``stream`` opens the .npy content of ``size`` bytes."""
    try:
        with stream() as file:
            version = np.lib.format.read_magic(file)
            if version not in _HEADERS:
                raise ValueError(f"version {version} is for named fields")
            shape, _, dtype = _HEADERS[version](file)
            start = file.tell()
    except (ValueError, EOFError, OSError, zlib.error, zipfile.BadZipFile) as error:
        raise ValueError(f"{name} has a broken numpy header: {error}") from error
    if dtype.hasobject:
        raise ValueError(
            f"{name} holds Python objects (pickled data), which are not read since they could run "
            "code; save an array of numbers"
        )
    if dtype.kind not in "biuf":
        raise ValueError(f"{name} holds {dtype}, not real numbers; save it as float32")

    def decode() -> np.ndarray:
        with stream() as file:
            return np.lib.format.read_array(file, allow_pickle=False)

    found = ArrayFile(name, "array", tuple(int(n) for n in shape), decode)
    need = dtype.itemsize * math.prod(found.shape)
    if size - start < need:
        raise ValueError(
            f"{name} is cut off: {dtype} {found.shape} takes {need} bytes, {size - start} are there"
        )
    return found


def _archive(name: str, path: Path, key: str) -> ArrayFile:
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ValueError(f"{name} is damaged or cut off: {error}") from error
    arrays = [entry.removesuffix(".npy") for entry in sizes if entry.endswith(".npy")]
    if not arrays:
        torch = any(entry.endswith("data.pkl") for entry in sizes)
        what = "a PyTorch file (pickled data)" if torch else "a zip archive without arrays"
        raise ValueError(f"{name} is {what}; save the array with numpy.save")
    entry = choose(name, key, arrays, "array") + ".npy"

    @contextmanager
    def stream() -> Iterator[IO[bytes]]:
        with zipfile.ZipFile(path) as archive, archive.open(entry) as member:
            yield member

    try:
        return _numpy(name, stream, sizes[entry])
    except (RuntimeError, NotImplementedError) as error:  # a password, an unknown compression
        raise ValueError(f"{name} cannot be read: {error}") from error


def _flo(name: str, path: Path, head: bytes) -> ArrayFile:
    width, height = (int(n) for n in np.frombuffer(head[4:12].ljust(8, b"\0"), "<i4"))

    def decode() -> np.ndarray:
        values = np.fromfile(path, "<f4", count=2 * height * width, offset=12)
        return values.reshape(height, width, 2)

    found = ArrayFile(name, "flo", (height, width, 2), decode)
    _whole(found, path, 12, 8 * width * height)
    return found


def _pfm(name: str, path: Path, head: re.Match[bytes]) -> ArrayFile:
    width, height, channels = int(head[2]), int(head[3]), 3 if head[1] == b"PF" else 1
    order = "<" if head[4].startswith(b"-") else ">"

    def decode() -> np.ndarray:  # the lowest row comes first
        count = height * width * channels
        values = np.fromfile(path, f"{order}f4", count=count, offset=head.end())
        return values.reshape(shape)[::-1]

    shape = (height, width, 3) if channels == 3 else (height, width)
    found = ArrayFile(name, "pfm", shape, decode)
    _whole(found, path, head.end(), 4 * width * height * channels)
    return found


def _whole(file: ArrayFile, path: Path, start: int, need: int) -> None:
    there = path.stat().st_size - start
    if there != need:
        raise ValueError(
            f"{file.name} is cut off or damaged: {file.shape} takes {need} bytes, {there} are there"
        )
