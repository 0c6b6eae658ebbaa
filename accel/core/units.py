"""Sizes in bytes as text.

The unit of printed sizes is GiB (2^30 bytes).
"""

from __future__ import annotations

import re

from accel.core.plain_values import shown

GIB = 2**30
_LEAST = 2**20  # bytes; nobody means fewer, and a number alone may mean them from here on
_SIZE = re.compile(r"([0-9]{1,20}(?:\.[0-9]{0,20})?) ?([A-Za-z]*)")
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
          "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}  # fmt: skip


def parse_bytes(text: str | int) -> int:
    """Return the bytes of "8GiB", "500 MB", or a number of bytes.

    Raises ValueError for anything else, and for text such as "40", whose unit was left out.
    """
    shape = "memory must look like '8GiB' or '500MB'"
    if isinstance(text, int) and not isinstance(text, bool) and text >= 0:
        return text
    digits, unit = _split(text) if isinstance(text, str) else ("", "")
    if not digits:
        raise ValueError(f"{shape}, got {shown(text)}")
    if not unit and float(digits) < _LEAST:
        raise ValueError(f"{shape}, got {shown(text)} without a unit; did you mean '{digits}GiB'?")
    if unit not in _UNITS:
        raise ValueError(f"{shape}, got {shown(text)}; units: {', '.join(filter(None, _UNITS))}")
    return int(float(digits) * _UNITS[unit])


def _split(text: str) -> tuple[str, str]:
    """Return number and unit of a size; two empty texts for what is none."""
    found = _SIZE.fullmatch(text.strip())
    return (found[1], found[2].upper()) if found else ("", "")


def gib(size: int | float, digits: int = 2) -> str:
    """Return a size in bytes as text, such as "1.50 GiB"."""
    return f"{size / GIB:.{digits}f} GiB"


def count(number: int, name: str) -> str:
    """Return a number of things, such as "3 calls"."""
    return f"{number} {name}" + ("" if number == 1 else "s")
