"""Sizes in bytes as text.

The unit of printed sizes is GiB (2^30 bytes).
"""

from __future__ import annotations

GIB = 2**30
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
          "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}  # fmt: skip


def parse_bytes(text: str | int) -> int:
    """Return the bytes of "8GiB", "500 MB" or a number.

    Raises ValueError for anything else.
    """
    if isinstance(text, int):
        return text
    digits = text.strip().rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
    unit = text.strip()[len(digits) :].strip().upper()
    try:
        return int(float(digits) * _UNITS[unit])
    except (ValueError, KeyError):
        raise ValueError(f"memory must look like '8GiB' or '500MB', got {text!r}") from None


def gib(size: int | float, digits: int = 2) -> str:
    """Return a size in bytes as text, such as "1.50 GiB"."""
    return f"{size / GIB:.{digits}f} GiB"
