"""Plans as they ran: their quality and time on a few jobs, and their peak on one of them.

A plan runs once, however often it is asked for. Beside each plan the first job runs plain again, so
a machine that gets slower meanwhile changes no ratio.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from accel.calibration.step_measurement import LOSSLESS, Point
from accel.core.origin import plan_origin_of
from accel.core.plan_origin import PlanOrigin
from accel.core.quality import psnr
from accel.core.run_pipeline import Run, as_run
from accel.patching import patched
from accel.plans import Plan

Job = Mapping[str, Any] | Run
Say = Callable[[str], None]
Peak = Callable[[Any, Callable[[], object]], int]  # runs a function and returns bytes
PLAIN = Plan("plain", attention=None)


@dataclass(frozen=True)
class Ran:
    """A plan that ran on all jobs: PSNR in dB to the plain output, and seconds, of each job.

    ``drift``: what a plain run of the first job took just before, over what it took at the
    beginning. Seconds are divided by it.
    """

    plan: Plan
    psnr: tuple[float, ...]
    seconds: tuple[float, ...]
    drift: float = 1.0

    @property
    def expected(self) -> float:
        """PSNR in dB that 9 of 10 further jobs should reach, by the rule of ``Point``."""
        return Point((), self.psnr, "").expected

    def gain(self, plain: Ran) -> float:
        """Return how many times as fast as the plain pipeline it was; the jobs' median."""
        pairs = zip(plain.seconds, self.seconds, strict=True)
        return statistics.median(before / mine for before, mine in pairs)


@dataclass(frozen=True)
class Checked:
    """A plan as it ran on one job: peak in bytes, PSNR in dB, times as fast as a plain run."""

    peak: int
    psnr: float
    gain: float


class Runs:
    """Runs plans on all jobs, and keeps what was measured.

    ``count``: runs of the pipeline so far. ``steps``: those of the last patched run, None if
    unknown. ``peak`` measures the memory of a run.
    """

    def __init__(self, pipe: Any, jobs: Sequence[Job], peak: Peak, say: Say) -> None:
        self.pipe, self.say, self.count = pipe, say, 0
        self.jobs = [as_run(job) for job in jobs]
        self.steps: int | None = None
        self._peak, self._frames = peak, list[np.ndarray]()
        self._inputs: tuple[int, ...] = ()
        self._ran: dict[Plan, Ran] = {}
        self._checked: dict[Plan, Checked] = {}

    @property
    def ran(self) -> tuple[Ran, ...]:
        """All plans that ran on all jobs, the plain pipeline first."""
        return tuple(self._ran.values())

    def plain(self) -> Ran:
        """Return what the pipeline as it is takes."""
        if (known := self.known(PLAIN)) is not None:
            return known
        timed = [self._timed(i) for i in range(len(self.jobs))]
        self._frames = [frames for _, frames in timed]
        decibels = (LOSSLESS,) * len(timed)
        return self._keep(Ran(PLAIN, decibels, tuple(seconds for seconds, _ in timed)))

    def known(self, plan: Plan) -> Ran | None:
        """Return what was measured of a plan, whatever its name; None if it did not run."""
        return self._ran.get(_unnamed(plan))

    def run(self, plan: Plan, beyond: Sequence[float] = ()) -> Ran:
        """Return what a plan did on all jobs.

        ``beyond``: mean squared error that is added to that of each job.
        """
        plain, known = self.plain(), self.known(plan)
        if known is not None:
            return known
        drift = self._timed(0)[0] / plain.seconds[0]
        added, decibels, seconds = [*beyond] or [0.0] * len(self.jobs), [], []
        with self._patched(plan):
            self._timed(0)  # what is measured or compiled at first costs nobody
            for i, more in enumerate(added):
                took, frames = self._timed(i)
                seconds.append(took / drift)
                decibels.append(decibels_of(error_of(psnr(self._frames[i], frames)) + more))
        self.say(f"{plan.name}: {statistics.fmean(decibels):.1f} dB, {sum(seconds):.1f} s")
        return self._keep(Ran(plan, tuple(decibels), tuple(seconds), drift))

    def correct(self, plan: Plan, beyond: Sequence[float]) -> None:
        """Add mean squared error to that of each job of a plan that ran."""
        one = self._ran[_unnamed(plan)]
        errors = [error_of(x) + more for x, more in zip(one.psnr, beyond, strict=True)]
        self._keep(replace(one, psnr=tuple(map(decibels_of, errors))))

    def counted(self, i: int) -> Run:
        """Return a job as a function of the pipeline whose runs are counted."""

        def run(pipe: Any) -> np.ndarray:
            self.count += 1
            return self.jobs[i](pipe)

        return run

    def checked(self, plan: Plan) -> Checked | None:
        """Return what ``check`` measured of a plan; None if it was not checked."""
        return self._checked.get(_unnamed(plan))

    def check(self, plan: Plan, job: int) -> Checked:
        """Return peak, PSNR and speed of a plan on one job, in three runs."""
        if (known := self.checked(plan)) is not None:
            return known
        self.plain()
        plain, _ = self._timed(job)
        with self._patched(plan):
            peak = self._peak(self.pipe, lambda: self._timed(job))
            seconds, frames = self._timed(job)
        found = Checked(peak, min(psnr(self._frames[job], frames), LOSSLESS), plain / seconds)
        self._checked[_unnamed(plan)] = found
        return found

    def _keep(self, one: Ran) -> Ran:
        self._ran[_unnamed(one.plan)] = one
        return one

    @contextmanager
    def _patched(self, plan: Plan) -> Iterator[None]:
        with patched(self.pipe, plan=plan) as handle:
            yield
            self.steps = handle.steps or self.steps
            self._inputs = handle.origin.inputs or self._inputs

    def origin(self, one: Ran) -> PlanOrigin:
        """Return where a plan comes from, with what was measured of it."""
        made = plan_origin_of(self.pipe, "search")
        made = made.measured_on(self.steps, self._inputs, self._frames[0])
        made, plain = replace(made, jobs=len(one.psnr)), self.plain()
        if one is plain:
            return made
        return replace(
            made, decibels=one.expected, decibels_are="expected in 9 of 10 jobs, measured",
            speedup=one.gain(plain), speedup_is="of whole runs, measured",
        )  # fmt: skip

    def _timed(self, i: int) -> tuple[float, np.ndarray]:
        self.count += 1
        start = time.perf_counter()
        frames = self.jobs[i](self.pipe)
        return time.perf_counter() - start, frames


def _unnamed(plan: Plan) -> Plan:
    return replace(plan, name="")


def error_of(decibels: float) -> float:
    """Return the mean squared error of a PSNR in dB, relative to the range squared."""
    return 10.0 ** (-decibels / 10)


def decibels_of(error: float) -> float:
    """Return the PSNR in dB of a mean squared error, ``LOSSLESS`` at most."""
    return min(-10 * math.log10(max(error, 1e-30)), LOSSLESS)
