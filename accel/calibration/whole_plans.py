"""The fastest plan that keeps a quality, found by running it: precision and step rehash together.

Errors of quantization and of skipped steps do not simply add up, so a plan is promised only as it
ran. First each precision and each speed-up runs alone on the jobs. Their mean squared errors, added
per job, order all pairs of both by what they are expected to keep and to take; then the fastest
pairs that should keep the quality run on all jobs, until one does by the rule of
``Point.expected``: 9 of 10 further jobs. At most ``TRIES`` pairs run, and a plan that ran alone
stands in where none of them keeps it. Runs of few steps skip none, so there precision is searched
by step (``accel/calibration/step_precisions.py``).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np

from accel.calibration.step_measurement import LOSSLESS, Point
from accel.calibration.step_precisions import decibels, error, full_but, worth_running
from accel.config import AttentionConfig, LinearConfig, RehashConfig, Rule
from accel.core.origin import plan_origin_of
from accel.core.plan_origin import PlanOrigin
from accel.core.quality import psnr
from accel.core.run_pipeline import Run, as_run
from accel.core.run_state import RunState
from accel.patching import patched
from accel.plans import Plan
from accel.rehash.schedule import FEW, OFF

Job = Mapping[str, Any] | Run
Say = Callable[[str], None]

LATE = (Rule("full", end=0.5),)
# From the most exact on: attention and linear layers; None for full precision.
PRECISIONS: dict[str, tuple[AttentionConfig | None, LinearConfig | None]] = {
    "full precision": (None, None),
    "INT8 attention": (AttentionConfig("int8"), None),
    "INT8 attention, late 8-bit layers": (AttentionConfig("int8"), LinearConfig(rules=LATE)),
    "INT8 attention, 8-bit layers": (AttentionConfig("int8"), LinearConfig()),
}
FOR_FEW = ("INT8 attention", "INT8 attention, 8-bit layers")  # by step, in runs of few steps
SPEEDUPS = (1.0, 1.5, 1.9, 2.3, 2.8)  # steps per computed one
TRIES = 5
BUSY = 1.25  # change of plain runs' times from which others are doubtful
SLACK = 1.0  # dB: a pair that is predicted to miss the quality by less is tried


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


@dataclass(frozen=True)
class PlanSearch:
    """What ``search_plan`` found.

    ``plan`` is the fastest that should keep ``quality`` dB in 9 of 10 jobs. ``ran`` are all plans
    that ran, the plain pipeline first.
    """

    quality: float
    plan: Plan
    ran: tuple[Ran, ...] = field(default_factory=tuple)

    @property
    def chosen(self) -> Ran:
        """What was measured of ``plan``."""
        return next(one for one in self.ran if one.plan == self.plan)

    def speedup(self, one: Ran) -> float:
        """Return how many times as fast as the plain pipeline a plan was; the jobs' median."""
        pairs = zip(self.ran[0].seconds, one.seconds, strict=True)
        return statistics.median(plain / mine for plain, mine in pairs)

    def __str__(self) -> str:
        lines = [f"for {self.quality:g} dB in 9 of 10 jobs, {len(self.ran[0].psnr)} jobs measured:"]
        for one in self.ran[1:]:
            mark = "->" if one.plan == self.plan else "  "
            mean, worst = statistics.fmean(one.psnr), min(one.psnr)
            lines.append(
                f"{mark} {one.plan.name}: {self.speedup(one):.2f}x, mean {mean:.1f} dB, worst "
                f"{worst:.1f}, expected {one.expected:.1f}"
            )
        drift = [one.drift for one in self.ran]
        if max(drift) > BUSY * min(drift):
            change = f"{min(drift):.2f} to {max(drift):.2f} times as long as at first"
            lines.append(f"times are doubtful, the machine was busy: plain runs took {change}")
        if self.plan == self.ran[0].plan:
            lines.append("-> the plain pipeline: nothing faster keeps it")
        return "\n".join(lines)


def search_plan(
    pipe: Any, jobs: Sequence[Job], quality: float, *, say: Say = lambda text: None
) -> PlanSearch:
    """Return the fastest plan that keeps ``quality`` dB PSNR, as measured on a few jobs.

    It costs a run per job for the plain pipeline, for each of ``PRECISIONS`` and ``SPEEDUPS``, and
    for up to ``TRIES`` pairs of them, and two runs more per plan: one to warm up, and a plain one
    beside it, which shows how fast the machine is then. In runs of 8 steps or fewer it costs a run
    per job for each precision, and where that keeps less, for each step alone and up to ``TRIES``
    sets of steps.

    Args:
        pipe: A diffusers pipeline, not patched.
        jobs: Arguments of the pipeline's call, and ``seed``; or functions that take the pipeline
            and return its frames, uint8 [F, H, W, 3]. Two or more, unlike each other.
        quality: dB PSNR to the pipeline's own output that 9 of 10 further jobs should keep.
        say: Called with one line of text after each plan.

    Raises:
        ValueError: Fewer than two jobs, or a quality that is no positive number.
    """
    if len(jobs) < 2:
        raise ValueError(f"a plan by quality needs two jobs or more, got {len(jobs)}")
    if not (math.isfinite(quality) and quality > 0):
        raise ValueError(f"quality must be a positive number of dB, got {quality}")
    bench = _Bench(pipe, jobs, say)
    plain = bench.run(Plan("plain", attention=None), None)
    steps = _steps_of(pipe)
    if 0 < steps <= FEW:
        say(f"step reuse is {OFF}: precision is searched by step")
    ran = (
        _by_step(bench, plain, steps, quality) if 0 < steps <= FEW else _both(bench, plain, quality)
    )
    keep = [one for one in ran if one.expected >= quality]
    search = PlanSearch(quality, plain.plan, tuple(ran))
    best = max(keep, key=search.speedup, default=plain)
    fastest = best if search.speedup(best) > 1.0 else plain
    return replace(search, plan=replace(fastest.plan, origin=_origin(bench, search, fastest)))


def _steps_of(pipe: Any) -> int:
    """Return how many steps the last run of a pipeline had, 0 where that is unknown."""
    state = RunState(pipe)
    state.refresh()
    return len(state.span)


def _origin(bench: _Bench, search: PlanSearch, found: Ran) -> PlanOrigin:
    """Return the origin of what was found, with what was measured of it."""
    made = replace(bench.origin, jobs=len(found.psnr))
    if found is search.ran[0]:
        return made
    return replace(
        made, decibels=found.expected, decibels_are="expected in 9 of 10 jobs, measured",
        speedup=search.speedup(found), speedup_is="of whole runs, measured",
    )  # fmt: skip


def _by_step(bench: _Bench, plain: Ran, steps: int, quality: float) -> list[Ran]:
    """Run each precision in all steps, and where that keeps too little in some of them."""
    ran = [plain]

    def run(precision: str, quantized: Sequence[int]) -> Ran:
        ran.append(bench.run(_in_steps(precision, steps, quantized), plain))
        return ran[-1]

    for precision in FOR_FEW:
        if run(precision, range(steps)).expected >= quality:
            continue
        alone = [run(precision, (step,)).psnr for step in range(steps)]
        for chosen in islice(worth_running(alone, quality - SLACK), TRIES):
            if run(precision, chosen).expected >= quality:
                break
    return ran


def _in_steps(precision: str, steps: int, quantized: Sequence[int]) -> Plan:
    """Return the plan of a precision in some of a run's steps."""
    rules = full_but(steps, quantized)
    name = precision
    if rules:
        name += f" in steps {', '.join(str(step + 1) for step in quantized)} of {steps}"
    attention, linear = PRECISIONS[precision]
    return Plan(
        name,
        None if attention is None else replace(attention, rules=rules),
        linear=None if linear is None else replace(linear, rules=rules),
    )


def _both(bench: _Bench, plain: Ran, quality: float) -> list[Ran]:
    """Run each precision and each speed-up alone, then pairs until one keeps the quality."""
    alone: dict[tuple[str, float], Ran] = {}
    for precision in PRECISIONS:
        for speedup in SPEEDUPS:
            first, second = precision == next(iter(PRECISIONS)), speedup == SPEEDUPS[0]
            if first != second:  # one of both is as usual
                plan = _plan(precision, speedup)
                alone[precision, speedup] = bench.run(plan, plain)
    ran = [plain, *alone.values()]
    for plan in _pairs(alone, plain, quality):
        ran.append(bench.run(plan, plain))
        if ran[-1].expected >= quality:
            break
    return ran


def _plan(precision: str, speedup: float) -> Plan:
    attention, linear = PRECISIONS[precision]
    rehash = RehashConfig(speedup=speedup) if speedup > 1 else None
    name = precision if rehash is None else f"{precision}, step rehash {speedup:g}x"
    return Plan(name, attention, linear=linear, rehash=rehash)


def _pairs(alone: Mapping[tuple[str, float], Ran], plain: Ran, quality: float) -> Iterator[Plan]:
    """Yield pairs that should keep the quality, the fastest by prediction first."""
    exact = next(iter(PRECISIONS))
    found = []
    for precision in list(PRECISIONS)[1:]:
        for speedup in SPEEDUPS[1:]:
            a, b = alone[precision, SPEEDUPS[0]], alone[exact, speedup]
            errors = (error(x) + error(y) for x, y in zip(a.psnr, b.psnr, strict=True))
            kept = Point((), tuple(decibels(e) for e in errors), "").expected
            times = zip(a.seconds, b.seconds, plain.seconds, strict=True)
            took = statistics.median(x * y / (z * z) for x, y, z in times)
            if kept >= quality - SLACK:
                found.append((took, precision, speedup))
    alone_best = min(
        (statistics.median(m / p for m, p in zip(one.seconds, plain.seconds, strict=True))
         for one in alone.values() if one.expected >= quality), default=1.0
    )  # fmt: skip
    for took, precision, speedup in sorted(found)[:TRIES]:
        if took < alone_best:
            yield _plan(precision, speedup)


class _Bench:
    """Runs plans on all jobs."""

    def __init__(self, pipe: Any, jobs: Sequence[Job], say: Say) -> None:
        self.pipe, self.say = pipe, say
        self.jobs = [as_run(job) for job in jobs]
        self.frames: list[np.ndarray] = []
        self.origin = plan_origin_of(pipe, "search")

    def run(self, plan: Plan, plain: Ran | None) -> Ran:
        """Return what a plan did; ``plain`` None for the pipeline as it is."""
        found, seconds = [], []
        drift = 1.0 if plain is None else self._seconds(0)[0] / plain.seconds[0]
        with nullcontext() if plain is None else patched(self.pipe, plan=plan) as handle:
            self.jobs[0](self.pipe)  # what is measured or compiled at first costs nobody
            for i in range(len(self.jobs)):
                took, frames = self._seconds(i)
                seconds.append(took / drift)
                if plain is None:
                    self.frames.append(frames)
                found.append(min(psnr(self.frames[i], frames), LOSSLESS))
            if handle is not None:
                steps, inputs = handle.steps, handle.origin.inputs
                self.origin = self.origin.measured_on(steps, inputs, self.frames[0])
        self.say(f"{plan.name}: {statistics.fmean(found):.1f} dB, {sum(seconds):.1f} s")
        return Ran(plan, tuple(found), tuple(seconds), drift)

    def _seconds(self, i: int) -> tuple[float, np.ndarray]:
        start = time.perf_counter()
        frames = self.jobs[i](self.pipe)
        return time.perf_counter() - start, frames
