"""How a length is cut into nearly equal parts."""

from __future__ import annotations


def cuts(length: int, slices: int) -> list[int]:
    """Sizes of ``slices`` nearly equal parts of a stream, larger ones first."""
    size, more = divmod(length, slices)
    return [size + (j < more) for j in range(slices)]


def rows(height: int, strips: int, halo: int) -> list[tuple[int, int, int, int]]:
    """First and last row of each strip, without and with its halo."""
    found, at = [], 0
    for size in cuts(height, strips):
        stop = at + size
        found.append((at, stop, max(0, at - halo), min(height, stop + halo)))
        at = stop
    return found
