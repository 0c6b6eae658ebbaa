"""Cut a length into nearly equal parts."""

from __future__ import annotations


def cuts(length: int, slices: int) -> list[int]:
    """Return the sizes of ``slices`` nearly equal parts of ``length``, larger ones first."""
    size, more = divmod(length, slices)
    return [size + (j < more) for j in range(slices)]


def rows(height: int, strips: int, halo: int) -> list[tuple[int, int, int, int]]:
    """Return the rows of each strip, in order: first, end, and both again with the halo.

    Args:
        height: Rows of the picture.
        strips: Number of strips.
        halo: Rows that a strip sees beyond its own, on each side; they stop at the picture's edge.

    Returns:
        One tuple (start, stop, start with halo, stop with halo) per strip; a stop is exclusive.
    """
    found, at = [], 0
    for size in cuts(height, strips):
        stop = at + size
        found.append((at, stop, max(0, at - halo), min(height, stop + halo)))
        at = stop
    return found
