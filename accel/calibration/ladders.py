"""The ladders of one pipeline on one machine, each rung run alone, and what pairs of rungs promise.

Errors of quantization and of skipped steps do not simply add up, so what is predicted here says
only which pairs to run.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from accel.calibration.plan_runs import PLAIN, Job, Ran, Runs, Say, decibels_of, error_of
from accel.calibration.precision import calibrate
from accel.calibration.rungs import (
    AIMS,
    EVERY,
    FULL,
    PRECISIONS,
    SPEEDUPS,
    Rung,
    bare_plan,
    by_rule,
    calibrated,
    in_steps,
    scheduled,
)
from accel.calibration.step_measurement import Point
from accel.calibration.step_precisions import worth_running
from accel.calibration.steps import measure_steps
from accel.calibration.table import ErrorTable
from accel.plans import Plan
from accel.rehash.schedule import FEW

PROBES = 12  # runs that measure what errors of precision do to the video
WHOLE = (PRECISIONS[1], PRECISIONS[-1])  # those that are tried in single steps of short runs
SCHEDULES = (1.5, 2.0, 2.6)  # speed-ups for which schedules are measured


@dataclass(frozen=True)
class Effort:
    """What a search measures beside the rungs that need no measurement.

    Args:
        rules: Calibrate, and try attention in fewer bits and rules by site and step.
        schedules: Measure step schedules, and try them.
        table: An error table of the pipeline, instead of a calibration.
        seconds: Predicts the seconds of a plan, to order pairs that have not run; without it the
            times of both rungs are multiplied.
    """

    rules: bool = True
    schedules: bool = True
    table: ErrorTable | None = None
    seconds: Callable[[Plan], float] | None = None


@dataclass(frozen=True)
class Pair:
    """A rung of each ladder together: dB that 9 of 10 further jobs keep, and times as fast.

    Both are predicted unless it ``ran``.
    """

    precision: Rung
    speed: Rung
    plan: Plan
    expected: float
    gain: float
    ran: Ran | None = None


class Ladders:
    """Both ladders, from the most exact rung on, after each rung ran alone."""

    def __init__(
        self, pipe: Any, jobs: Sequence[Job], runs: Runs, effort: Effort, say: Say
    ) -> None:
        self._pipe, self._jobs, self._runs, self._say = pipe, jobs, runs, say
        self._effort = effort
        self.precisions = self._that_change(PRECISIONS)
        if len(self.precisions) > 1 or effort.table is not None:
            self.precisions = self._that_change([*self.precisions, *self._calibrated()])
        else:
            say("8 bits change nothing, so none of their kernels pays here: no calibration")
        self.speeds = [EVERY]
        if runs.steps is not None and runs.steps <= FEW:
            say(f"runs of {runs.steps} steps leave nothing to skip: precision is tried by step")
            self.precisions = self._that_change([*self.precisions, *self._by_step(runs.steps)])
            return
        self.speeds += [by_rule(speedup) for speedup in SPEEDUPS]
        for rung in self.speeds[1:]:
            runs.run(bare_plan(FULL, rung))
        self.speeds += self._scheduled()

    def _that_change(self, rungs: Sequence[Rung]) -> list[Rung]:
        """Return the rungs that do something else than those before, after each ran alone.

        Those that keep the same, to the last digit and on all jobs, mostly ran the same kernels; of
        them the fastest is left, or full precision.
        """
        plain = self._runs.plain()
        found = {plain.psnr: (FULL, 1.0)}
        for rung in rungs:
            ran = plain if rung is FULL else self._runs.run(bare_plan(rung, EVERY))
            before, gain = found.get(ran.psnr), ran.gain(plain)
            if before is None or (before[0] is not FULL and gain > before[1]):
                found[ran.psnr] = rung, gain
        return [rung for rung, _ in found.values()]

    def _by_step(self, steps: int) -> list[Rung]:
        """Return precisions in some steps of a short run, after each ran in each step alone."""
        found: dict[str, Rung] = {}
        for rung in self.precisions[1:]:
            if rung not in WHOLE:
                continue
            alone = [
                self._runs.run(bare_plan(in_steps(rung, steps, (step,)), EVERY)).psnr
                for step in range(steps)
            ]
            for aim in AIMS:
                if chosen := next(worth_running(alone, aim), None):
                    some = in_steps(rung, steps, chosen)
                    found[some.name] = some
        return list(found.values())

    def _calibrated(self) -> list[Rung]:
        table = self._effort.table
        if table is None and self._effort.rules:
            try:
                table = calibrate(self._pipe, self._counted(), probe_runs=PROBES, progress=False)
            except ValueError as error:
                self._say(f"no rules by site and step: {error}")
        found = [] if table is None else calibrated(table)
        if table is not None and not found:
            self._say("no rules by site and step, nor fewer bits, pay here")
        return found

    def _scheduled(self) -> list[Rung]:
        """Return measured schedules, run alone, with what unseen jobs would err beyond it."""
        if not self._effort.schedules:
            return []
        try:
            measured = measure_steps(self._pipe, self._counted(), speedups=SCHEDULES, say=self._say)
        except ValueError as error:
            self._say(f"no measured schedules: {error}")
            return []
        found = []
        for rung, unseen in scheduled(measured):
            seen = self._runs.run(bare_plan(FULL, rung))
            pairs = zip(unseen, seen.psnr, strict=True)
            beyond = tuple(max(0.0, error_of(a) - error_of(b)) for a, b in pairs)
            self._runs.correct(seen.plan, beyond)
            found.append(replace(rung, beyond=beyond))
        return found

    def _counted(self) -> list[Job]:
        """Return the jobs as functions whose runs are counted."""
        return [self._runs.counted(i) for i in range(len(self._jobs))]

    def tiles(self) -> None:
        """Run decoding in tiles alone, once, so that pairs with it can be predicted."""
        self._runs.run(bare_plan(FULL, EVERY, tiled=True))

    def _together(self) -> tuple[float, float]:
        """Return what pairs that ran kept less than predicted, in dB, and how much faster they ran.

        Both are medians; 0 and 1 as long as none ran.
        """
        plain, lost, faster = self._runs.plain(), [0.0], [1.0]
        for precision in self.precisions[1:]:
            for speed in self.speeds[1:]:
                ran = self._runs.known(bare_plan(precision, speed))
                alone = self._alone(precision, speed, tiled=False)
                if ran is not None and alone is not None:
                    expected, gain = self._predicted(ran.plan, alone)
                    lost.append(expected - ran.expected)
                    faster.append(ran.gain(plain) / gain)
        return statistics.median(lost[1:] or lost), statistics.median(faster[1:] or faster)

    def pairs(self, *, tiled: bool = False) -> Iterator[Pair]:
        """Yield all pairs, measured or predicted."""
        plain, (lost, faster) = self._runs.plain(), self._together()
        for precision in self.precisions:
            for speed in self.speeds:
                plan = bare_plan(precision, speed, tiled=tiled)
                if (ran := self._runs.known(plan)) is not None:
                    yield Pair(precision, speed, plan, ran.expected, ran.gain(plain), ran)
                elif (alone := self._alone(precision, speed, tiled)) is not None:
                    expected, gain = self._predicted(plan, alone)
                    yield Pair(precision, speed, plan, expected - lost, gain * faster)

    def _alone(self, precision: Rung, speed: Rung, tiled: bool) -> list[Ran] | None:
        """Return what the parts of a pair did, each alone; None if one did not run."""
        plans = [bare_plan(precision, EVERY), bare_plan(FULL, speed)]
        plans += [bare_plan(FULL, EVERY, tiled=True)] if tiled else []
        known = [self._runs.known(plan) for plan in plans]
        found = [one for one in known if one is not None]
        return found if len(found) == len(known) else None

    def _predicted(self, plan: Plan, alone: Sequence[Ran]) -> tuple[float, float]:
        errors = [sum(map(error_of, job)) for job in zip(*(x.psnr for x in alone), strict=True)]
        expected = Point((), tuple(map(decibels_of, errors)), "").expected
        if self._effort.seconds is not None:
            return expected, self._effort.seconds(PLAIN) / self._effort.seconds(plan)
        plain, gain = self._runs.plain().seconds, []
        for i, before in enumerate(plain):
            took = 1.0
            for one in alone:
                took *= one.seconds[i] / before
            gain.append(1 / took)
        return expected, statistics.median(gain)

    def run(self, pair: Pair) -> None:
        """Run a pair on all jobs."""
        self._runs.run(pair.plan, pair.speed.beyond)

    def finer(self, best: Pair, *, faster: bool) -> bool:
        """Run a speed-up between that of ``best`` and the next rung; return whether there is one.

        The next rung is the next faster one, or else the next slower one.
        """
        steps = self._runs.steps
        if steps is None or len(self.speeds) == 1:
            return False
        mine = best.speed.computed(steps)
        counts = {rung.computed(steps) for rung in self.speeds}
        others = [n for n in counts if (n < mine if faster else n > mine)]
        if not others:
            return False
        middle = (mine + (max(others) if faster else min(others))) // 2
        if middle in (mine, *others):
            return False
        rung = by_rule(steps / middle)
        if rung.computed(steps) in counts:
            return False
        tiled = best.plan.slicing is not None
        self._runs.run(bare_plan(best.precision, rung, tiled=tiled))
        self.speeds.append(rung)
        return True
