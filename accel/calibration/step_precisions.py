"""Which steps of a short run may be quantized: pure functions over measured decibels.

Runs of few steps cannot skip any, so what is left to choose is each step's precision. All steps
take the same time, so the fastest plan is the one with the most quantized steps. Each step is
measured alone, and mean squared errors of steps are added, which orders what is worth running.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from accel.calibration.plan_runs import decibels_of, error_of
from accel.calibration.step_measurement import Point
from accel.config import Rule


def full_but(steps: int, quantized: Collection[int]) -> tuple[Rule, ...]:
    """Return rules that keep every step at full precision but the ``quantized`` ones."""
    rules, start = [], None
    for step in range(steps + 1):
        full = step < steps and step not in quantized
        if full and start is None:
            start = step
        elif not full and start is not None:
            rules.append(Rule("full", start=start / steps, end=step / steps))
            start = None
    return tuple(rules)


def worth_running(alone: Sequence[Sequence[float]], quality: float) -> Iterator[tuple[int, ...]]:
    """Yield sets of steps that should keep ``quality`` dB when they are quantized together.

    Those of most steps come first, and of each number the set with the least error.

    Args:
        alone: PSNR in dB of each step quantized alone, [steps][jobs].
        quality: dB that 9 of 10 further jobs should keep.
    """
    total = [sum(map(error_of, jobs)) for jobs in alone]
    order = sorted(range(len(alone)), key=lambda step: total[step])
    for count in range(len(alone) - 1, 1, -1):
        chosen = tuple(sorted(order[:count]))
        by_job = zip(*(alone[step] for step in chosen), strict=True)
        together = tuple(decibels_of(sum(map(error_of, job))) for job in by_job)
        if Point((), together, "").expected >= quality:
            yield chosen
