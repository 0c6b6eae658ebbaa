"""Which rows of a picture each part of a decoder needs for one strip of its result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from accel import families
from accel.families.family import Strip


@dataclass(frozen=True)
class Unit:
    """A part after the middle block: rows that it sees beyond a strip, and rows made of each."""

    halo: int
    scale: int


def spans(height: int, start: int, stop: int, units: Sequence[Unit]) -> list[tuple[int, int]]:
    """Return the rows that each unit is given, and last those of the result, for one strip.

    ``start`` and ``stop`` are its rows of ``height`` before the first unit; stops are exclusive.
    """
    heights = [height]
    for unit in units:
        heights.append(heights[-1] * unit.scale)
    scale = heights[-1] // height
    found = [(start * scale, stop * scale)]
    for unit, most in zip(reversed(units), reversed(heights[:-1]), strict=True):
        low, high = found[0]
        first, end = low // unit.scale - unit.halo, -(-high // unit.scale) + unit.halo
        found.insert(0, (max(0, first), min(most, end)))
    return found


def parts_of(decoder: Any) -> list[tuple[nn.Module, Strip]]:
    """Return the parts of a decoder's upsampling blocks, or [] if some part is not known."""
    known, found, inside = families.strips(), list[tuple[nn.Module, Strip]](), ""
    blocks = getattr(decoder, "up_blocks", nn.ModuleList())
    for path, part in blocks.named_modules():
        if inside and path.startswith(inside):
            continue
        strip = known.get(type(part).__name__)
        if strip is not None:
            found.append((part, families.sized(part, strip)))
            inside = f"{path}."
        elif any(True for _ in part.parameters(recurse=False)):
            return []
    return found
