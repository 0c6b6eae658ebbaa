"""An array in a file, known by its header before anything of it is decoded.

A strength map, a flow or a depth map comes from anywhere, so nothing large is decoded before its
size is known, nothing that could run code is read, and what is wrong gets one error that names the
file, the value and the way out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

MOST_VALUES = 2**28  # of an array, 1 GiB as float32
MOST_PIXELS = 2**26  # of a picture, 8192 x 8192
SIMILAR = 64  # channels of a gray picture differ by less than this part of white: JPEG rounds

Kind = Literal["array", "flo", "pfm", "picture", "exr"]


@dataclass(frozen=True)
class ArrayFile:
    """What the header of a file says, and how to decode the rest.

    ``name`` says in errors what the file is for and where it is. ``shape``: of an array as it is
    stored, of a picture [H, W] or [H, W, C]. ``white``: the value of white in a picture of whole
    numbers, 0 where the values are numbers themselves.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    decode: Callable[[], np.ndarray]
    white: int = 0
    alpha: bool = False

    def __post_init__(self) -> None:
        most = MOST_VALUES if self.kind == "array" else MOST_PIXELS
        size = self.shape if self.kind == "array" else self.shape[:2]
        if any(length < 1 for length in self.shape):
            raise ValueError(f"{self.name} has shape {self.shape}, which holds no values")
        if math.prod(size) > most:
            raise ValueError(
                f"{self.name} has shape {self.shape}, {math.prod(size)} "
                f"{'values' if size == self.shape else 'pixels'}, more than the limit of {most}; "
                "cut it or scale it down"
            )

    def raw(self) -> np.ndarray:
        """Return the values as they are stored.

        Raises ValueError for a file that is cut off or damaged.
        """
        try:
            values = self.decode()
        except Exception as error:  # each decoder has its own
            why = f"{error}" or type(error).__name__
            raise ValueError(f"{self.name} is damaged or cut off: {why}") from error
        if values.shape != self.shape:
            raise ValueError(f"{self.name} holds {values.shape}, its header says {self.shape}")
        return values

    def numbers(self) -> np.ndarray:
        """Return the values as finite float32.

        Raises ValueError for a damaged file, or naming where NaN or infinity stands.
        """
        with np.errstate(over="ignore"):
            values = self.raw().astype(np.float32)
        return finite(self.name, values)

    def gray(self) -> np.ndarray:
        """Return [H, W] of a picture, from 0 (black) to 1 (white) unless it holds numbers itself.

        Raises ValueError for a damaged file, colors, or transparency.
        """
        values = self.numbers()
        if self.white:
            values = values / np.float32(self.white)
        if values.ndim == 2:
            return values
        if self.alpha:
            if float(values[..., -1].min()) < 1:
                raise ValueError(f"{self.name} is transparent in places; save it without alpha")
            values = values[..., :-1]
        apart = float(np.ptp(values, axis=-1).max())
        white = 1.0 if self.white else float(np.abs(values).max())
        if apart * SIMILAR > white:
            raise ValueError(
                f"{self.name} is a color picture (channels differ by up to {apart:.3g} of "
                f"{white:.3g}), but one number a pixel is needed; save it as gray"
            )
        return np.ascontiguousarray(values[..., 1])


def existing_file(what: str, path: str) -> tuple[str, Path, str]:
    """Return what to call a file in errors, its path, and the name of the array wanted of it.

    ``flows.npz:forward`` is the array ``forward`` of ``flows.npz``, unless a file has just that
    name. Raises ValueError if nothing is there.
    """
    file, key = named_array(path)
    if not file.exists():
        raise ValueError(f"{what} {path} does not exist")
    if not file.is_file():
        raise ValueError(f"{what} {path} is a {_sort(file)}, not a file")
    return f"{what} {path}", file, key


def named_array(path: str) -> tuple[Path, str]:
    """Split ``flows.npz:forward`` into the file and the array's name, "" for a plain path."""
    whole, (file, colon, key) = Path(path), path.rpartition(":")
    if colon and key and file and not whole.exists() and Path(file).is_file():
        return Path(file), key
    return whole, ""


def choose(name: str, key: str, found: list[str], one: str) -> str:
    """Return the one array (``one`` is its word) that is wanted of ``found``.

    Raises ValueError, naming what there is.
    """
    listed = ", ".join(found[:20]) + (f" and {len(found) - 20} more" if len(found) > 20 else "")
    if key:
        if key not in found:
            raise ValueError(f"{name}: there is no {one} {key!r}; there are: {listed}")
        return key
    if len(found) != 1:
        raise ValueError(
            f"{name} holds {len(found)} {one}s: {listed}; add the name of one to the path, such as "
            f":{found[0]}"
        )
    return found[0]


def finite(name: str, values: np.ndarray) -> np.ndarray:
    """Return ``values``; raise ValueError naming the first place of NaN or infinity."""
    good = np.isfinite(values)
    if not good.all():
        place = np.unravel_index(int(good.argmin()), values.shape)
        raise ValueError(
            f"{name} holds {values[place]} at {tuple(map(int, place))} ({int((~good).sum())} of "
            f"{values.size} values are NaN, infinite or too large); replace them, for example by "
            "what is around them"
        )
    return values


def _sort(path: Path) -> str:
    return "folder" if path.is_dir() else "pipe or device"
