"""Budgets, candidates, and which candidate is best: pure functions over numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from accel.calibration.ladders import Pair
from accel.core.units import gib
from accel.plans import Plan

SLACK = 1.0  # dB: a plan that is predicted to miss the quality by less is tried
SLOWER = 0.97  # and one that is predicted to reach this part of the speed
MOST_SPEED = 1000.0
BUDGETS = ("memory", "quality", "speed")


@dataclass(frozen=True)
class Wishes:
    """Budgets of a plan, each None if there is none.

    Args:
        memory: Bytes that a job may take in any of its phases.
        quality: dB PSNR to the pipeline's own output that 9 of 10 further jobs should keep.
        speed: Least times as fast as the plain pipeline.

    Raises:
        ValueError: No budget at all, or one that is no positive number, or a speed below 1.
    """

    memory: int | None = None
    quality: float | None = None
    speed: float | None = None

    def __post_init__(self) -> None:
        if self.memory is None and self.quality is None and self.speed is None:
            raise ValueError(
                "give a budget: memory='8GiB', quality=36.0 (dB PSNR), speed=2.0 (times as fast), "
                "or several"
            )
        if self.quality is not None and not (math.isfinite(self.quality) and self.quality > 0):
            raise ValueError(f"quality must be a positive number of dB, got {self.quality}")
        if self.speed is not None and not 1 <= self.speed <= MOST_SPEED:
            raise ValueError(
                f"speed must be from 1 to {MOST_SPEED:g} times as fast, got {self.speed}; 1 asks "
                "for nothing"
            )

    def __str__(self) -> str:
        words = [] if self.quality is None else [f"{self.quality:g} dB in 9 of 10 jobs"]
        words += [] if self.speed is None else [f"{self.speed:g}x as fast"]
        words += [] if self.memory is None else [f"within {gib(self.memory)}"]
        return ", ".join(words)

    def name(self) -> str:
        """Return the budgets of quality and speed as the start of a plan's name."""
        words = [] if self.quality is None else [f"{self.quality:g} dB"]
        return ", ".join(words + ([] if self.speed is None else [f"{self.speed:g}x"]))

    def short(self, one: Candidate) -> dict[str, float]:
        """Return by how much a candidate misses each budget that it misses.

        In bytes, dB, and times as fast. One that did not run yet is given some slack.
        """
        slack, part = (0.0, 1.0) if one.pair.ran is not None else (SLACK, SLOWER)
        missed = {
            "memory": 0 if self.memory is None else one.peak - self.memory,
            "quality": 0 if self.quality is None else self.quality - slack - one.expected,
            "speed": 0 if self.speed is None else self.speed * part - one.gain,
        }
        return {name: by for name, by in missed.items() if by > 0}

    def rank(self, one: Candidate) -> tuple[float, float]:
        """Return what sorts the better candidate first.

        The fastest is best, or with a speed to reach the one that keeps most.
        """
        key = (-one.gain, -one.expected)
        return key if self.speed is None else (key[1], key[0])


@dataclass(frozen=True)
class Candidate:
    """A pair of rungs with slices, and what is known of it.

    ``plan`` has the fewest slices that fit, or those with which it needs least. ``expected`` in dB
    and ``gain``, times as fast, are the pair's, or worse where slices were seen to make them so.
    ``peak`` in bytes is simulated unless it was ``measured``; 0 where no memory was asked about.
    """

    pair: Pair
    plan: Plan
    expected: float
    gain: float
    peak: int = 0
    measured: bool = False

    def __str__(self) -> str:
        slices = 1 if self.plan.slicing is None else self.plan.slicing.slices
        sliced = f" in {slices} slices" if slices > 1 else ""
        counted = "measured" if self.measured else "simulated"
        peak = f", {gib(self.peak)} {counted}" if self.peak else ""
        return f"{self.pair.plan.name}{sliced}: {self.gain:.2f}x, {self.expected:.1f} dB{peak}"


def best_first(wishes: Wishes, candidates: Iterable[Candidate]) -> list[Candidate]:
    """Return the candidates that keep all budgets, or seem to, the best first."""
    return sorted((one for one in candidates if not wishes.short(one)), key=wishes.rank)


@dataclass(frozen=True)
class Nearest:
    """The candidate that misses one budget least, of those that keep the others.

    ``budget``: "memory", "quality" or "speed"; ``short``: by how much, in bytes, dB or times.
    """

    budget: str
    one: Candidate
    short: float

    def __str__(self) -> str:
        return f"{self._value()} by {self.one}"

    def _value(self) -> str:
        if self.budget == "memory":
            return f"the lowest peak is {gib(self.one.peak)} ({gib(self.short)} too much)"
        if self.budget == "quality":
            return f"the best quality is {self.one.expected:.1f} dB ({self.short:.1f} too little)"
        return f"the highest speed is {self.one.gain:.2f}x ({self.short:.2f} too little)"


def nearest(wishes: Wishes, candidates: Iterable[Candidate]) -> tuple[Nearest, ...]:
    """Return for each budget the candidate that misses it least and keeps all others.

    Where none keeps all others, there is none for that budget.
    """
    missed = [(wishes.short(one), one) for one in candidates]
    found = []
    for budget in BUDGETS:
        only = [(short[budget], one) for short, one in missed if {*short} == {budget}]
        if only:
            short, one = min(only, key=lambda row: (row[0], *wishes.rank(row[1])))
            found.append(Nearest(budget, one, short))
    return tuple(found)


class NoPlan(ValueError):
    """No plan keeps all budgets.

    ``wishes`` are the budgets, ``nearest`` the plans that miss one of them least.
    """

    def __init__(self, wishes: Wishes, found: tuple[Nearest, ...] = (), why: str = "") -> None:
        self.wishes, self.nearest = wishes, found
        super().__init__(why or _no_plan(wishes, found))


def _no_plan(wishes: Wishes, found: tuple[Nearest, ...]) -> str:
    """Say which budgets fail, by how much, and what would do."""
    start = f"no plan that ran keeps {wishes}"
    if not found:
        return f"{start}, nor all of it but one budget: ask for less of two"
    ends = []
    for one in found:
        others = {name: getattr(wishes, name) for name in BUDGETS if name != one.budget}
        given = any(value is not None for value in others.values())
        ends.append(f"{Wishes(**others)}: {one}" if given else str(one))
    return f"{start}. Nearest: {'; '.join(ends)}"


def not_run(wishes: Wishes, candidates: Sequence[Candidate]) -> Candidate | None:
    """Return what is nearest to a budget and has not run; None where all ran that is nearest."""
    return next((x.one for x in nearest(wishes, candidates) if x.one.pair.ran is None), None)
