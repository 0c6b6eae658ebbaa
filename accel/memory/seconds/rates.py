"""Seconds of operators from tables of measured times, interpolated between sizes.

A table holds seconds by sizes on a grid. Between its points logarithms of seconds are linear in
logarithms of sizes, so each point is reproduced and a power law between two of them is exact.
Beyond the largest size of an axis time grows with the work; below the smallest it stays, because a
call has a cost of its own. Points that would have taken too long are not measured: the next smaller
one on the first axis stands for them, times the work.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from accel.memory.seconds.operator_kinds import OTHER
from accel.memory.seconds.operators import Operator, Sizes

Points = Mapping[Sizes, float]


def axes_of(points: Points) -> list[list[int]]:
    """Return the sizes of each axis of a grid, ascending."""
    return [sorted(set(axis)) for axis in zip(*points, strict=True)]


def corner(points: Points, axes: list[list[int]], place: Sizes) -> float:
    """Return seconds at the grid's ``place`` (an index of each axis), measured or scaled up."""
    sizes = tuple(axis[i] for axis, i in zip(axes, place, strict=True))
    if sizes in points:
        return points[sizes]
    axis = next((a for a, i in enumerate(place) if i > 0), None)
    if axis is None:
        raise ValueError(f"a table of times without its smallest sizes {sizes}")
    lower = tuple(i - (a == axis) for a, i in enumerate(place))
    before = axes[axis][place[axis] - 1]
    return corner(points, axes, lower) * sizes[axis] / before


def interpolate(points: Points, sizes: Sizes) -> float:
    """Return seconds at ``sizes``."""
    axes = axes_of(points)
    ways: list[list[tuple[int, float]]] = []
    beyond = 1.0
    for axis, size in zip(axes, sizes, strict=True):
        at = min(max(size, axis[0]), axis[-1])
        beyond *= max(1.0, size / axis[-1])
        low = min(bisect_right(axis, at) - 1, max(0, len(axis) - 2))
        if len(axis) == 1 or at == axis[low]:
            ways.append([(low, 1.0)])
            continue
        share = math.log(at / axis[low]) / math.log(axis[low + 1] / axis[low])
        ways.append([(low, 1.0 - share), (low + 1, share)])
    log = 0.0
    for chosen in itertools.product(*ways):
        weight = math.prod(w for _, w in chosen)
        log += weight * math.log(corner(points, axes, tuple(i for i, _ in chosen)))
    return math.exp(log) * beyond


@dataclass
class Rates:
    """Tables of seconds by kind and dtype.

    ``own``: seconds of operators that were measured in their own sizes, by key. ``measure`` is
    asked for a table that is not there, and returns None for one that it cannot measure.
    ``missing`` collects kinds without a table, whose operators count as reading and writing memory.
    """

    tables: dict[str, Points] = field(default_factory=dict)
    own: dict[str, float] = field(default_factory=dict)
    measure: Callable[[str], Points | None] = lambda name: None
    missing: set[str] = field(default_factory=set)
    _known: dict[tuple[str, Sizes], float] = field(default_factory=dict)

    def table(self, name: str) -> Points | None:
        """Return a table, measured if it has to be; None without one."""
        if name not in self.tables:
            found = self.measure(name)
            if found is None:
                return None
            self.tables[name] = found
        return self.tables[name]

    def seconds(self, operator: Operator) -> float:
        """Return the seconds of one call of an operator."""
        if (own := self.own.get(operator.key)) is not None:
            return own
        found = self._at(operator.table, operator.sizes)
        if found is None:
            self.missing.add(operator.name if operator.kind == OTHER else operator.table)
            found = self._at(f"pointwise {operator.dtype}", (operator.nbytes,))
            found = self._at("pointwise float32", (operator.nbytes,)) if found is None else found
        if found is None:
            raise ValueError(f"no times for {operator.table!r}, nor for pointwise operators")
        return found

    def _at(self, name: str, sizes: Sizes) -> float | None:
        key = name, sizes
        if key not in self._known:
            points = self.table(name)
            if points is None:
                return None
            self._known[key] = interpolate(points, sizes)
        return self._known[key]
