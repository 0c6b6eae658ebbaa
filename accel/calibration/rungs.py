"""The two ladders of a search for a plan: precisions, and speed-ups of step rehash.

Each ladder has rungs that need no measurement, and rungs that one measurement gives: precisions by
site and step out of an error table, and step schedules.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

import numpy as np

from accel.calibration import choose
from accel.calibration.step_measurement import Measurement
from accel.calibration.step_precisions import full_but
from accel.calibration.table import ErrorTable
from accel.config import AttentionConfig, LinearConfig, RehashConfig, Rule, SlicingConfig
from accel.plans import Plan
from accel.rehash.schedule import budget

LATE = (Rule("full", end=0.5),)
PAYS = 0.97  # of the time of a more exact rung, above which a rung is not worth a run
AIMS = (42.0, 36.0, 30.0)  # dB for which an error table gives a rung each


@dataclass(frozen=True)
class Rung:
    """What one technique does, as fields of a plan.

    ``beyond``: mean squared error, relative to the range squared, that each job would have on top
    if it had not been measured with. Schedules fitted to the jobs have it.
    """

    name: str
    attention: AttentionConfig | None = None
    linear: LinearConfig | None = None
    rehash: RehashConfig | None = None
    beyond: tuple[float, ...] = ()

    def computed(self, steps: int) -> int:
        """Return how many of ``steps`` denoising steps a run computes."""
        if self.rehash is None:
            return steps
        return len(self.rehash.keys) or budget(steps, self.rehash.speedup)


FULL = Rung("full precision")
EVERY = Rung("every step")
PRECISIONS = (
    FULL,
    Rung("INT8 attention", AttentionConfig("int8")),
    Rung("INT8 attention, late 8-bit layers", AttentionConfig("int8"), LinearConfig(rules=LATE)),
    Rung("INT8 attention, 8-bit layers", AttentionConfig("int8"), LinearConfig()),
)
SPEEDUPS = (1.5, 1.9, 2.3, 2.8)  # steps per computed one


def by_rule(speedup: float) -> Rung:
    """Return step rehash by its own rule."""
    return Rung(f"step rehash {speedup:.3g}x", rehash=RehashConfig(speedup=speedup))


def in_steps(rung: Rung, steps: int, quantized: Collection[int]) -> Rung:
    """Return a precision in some of a run's steps, the others at full precision."""
    rules = full_but(steps, quantized)
    some = ", ".join(str(step + 1) for step in sorted(quantized))
    return replace(
        rung,
        name=f"{rung.name} in steps {some} of {steps}" if rules else rung.name,
        attention=None if rung.attention is None else replace(rung.attention, rules=rules),
        linear=None if rung.linear is None else replace(rung.linear, rules=rules),
    )


def bare_plan(precision: Rung, speed: Rung, *, tiled: bool = False) -> Plan:
    """Return the plan of a rung of each ladder, without slices; ``tiled``: decoded in tiles."""
    names = [precision.name, *([speed.name] if speed.rehash else []), *(["tiles"] if tiled else [])]
    return Plan(
        "plain" if names == [FULL.name] else ", ".join(names),
        precision.attention,
        SlicingConfig(1, 1, tiling=True) if tiled else None,
        speed.rehash,
        precision.linear,
    )


def calibrated(table: ErrorTable) -> list[Rung]:
    """Return the rungs that an error table gives: fewer bits, and rules by site and step.

    Only those are there that pay where the table was measured, in the time of all its sites: INT6
    over INT8 and INT4 over both, and rules over full precision and over more exact rules.
    """
    found: list[Rung] = []
    like = Plan("", AttentionConfig(smooth_q=True), linear=LinearConfig())
    for bits, choices in ((True, _bits(table)), (False, _aims(table))):
        best = 1.0
        if bits and "int8" in table.precisions:
            best = min(best, choose.relative_cost(table, choose.uniform(table, "int8")))
        for name, choice in choices:
            cost = choose.relative_cost(table, choice)
            if cost <= PAYS * best and not (choice == "full").all():
                best = cost
                plan = choose.to_plan(table, choice, name, like=like)
                found.append(Rung(name, plan.attention, plan.linear))
    return found


def _bits(table: ErrorTable) -> Iterator[tuple[str, np.ndarray]]:
    """Yield attention in fewer bits at all sites that have them."""
    for precision in ("int6", "int4"):
        if precision in table.precisions and table.has(precision).any():
            yield f"{precision.upper()} attention", choose.uniform(table, precision)


def _aims(table: ErrorTable) -> Iterator[tuple[str, np.ndarray]]:
    """Yield rules by site and step, if it was measured what errors do to the video."""
    if table.site_weight is not None:
        for decibels in AIMS:
            yield f"by site and step, {decibels:g} dB", choose.by_quality(table, decibels)


def scheduled(measured: Measurement) -> list[tuple[Rung, tuple[float, ...]]]:
    """Return the measured schedules, each with the PSNR in dB of jobs it was not fitted to."""
    found = []
    for point in measured.points:
        if not point.rule and len(point.keys) < measured.steps:
            speedup = measured.steps / len(point.keys)
            rehash = measured.at_speedup(speedup)
            found.append((Rung(f"measured schedule {speedup:.3g}x", rehash=rehash), point.psnr))
    return found
