"""One search for many budgets: plans of precision and step rehash as they ran, and where they fit.

A plan is promised only as it ran. First each rung of both ladders runs alone on the jobs
(``calibration/ladders.py``). Then the best pairs that seem to keep the budgets run, until one
does; between it and the next rung further speed-ups are tried. Memory is simulated, as the most of
all phases, and the plan that is taken runs once more to confirm it. What fails gives way to the
next best.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from accel.calibration.ladders import Effort, Ladders, Pair
from accel.calibration.plan_runs import PLAIN, Checked, Job, Peak, Ran, Runs, Say
from accel.calibration.rungs import EVERY, FULL
from accel.calibration.step_measurement import LOSSLESS
from accel.config import SlicingConfig
from accel.core.units import gib, parse_bytes
from accel.memory.fit import Needs
from accel.memory.run_peak import run_peak
from accel.planning.wishes import (
    SLACK,
    Candidate,
    Nearest,
    NoPlan,
    Wishes,
    best_first,
    nearest,
    not_run,
)
from accel.plans import Plan

TRIES = 5  # pairs that run for one question
FINER = 2  # speed-ups between rungs that run for one question
CHECKS = 6  # plans whose memory is confirmed for one question
BUSY = 1.25  # change of plain runs' times from which others are doubtful


@dataclass(frozen=True)
class Found:
    """The plan for some budgets, and what was measured.

    ``plan`` is the fastest that keeps ``wishes``, or with a speed among them the one that keeps
    most. ``chosen`` is what was measured of it on all jobs, ``ran`` are all plans that ran, the
    plain pipeline first, and ``runs`` is the number of the pipeline's runs so far. ``checked`` is
    the run that confirmed its memory, None where none was asked about.
    """

    wishes: Wishes
    plan: Plan
    chosen: Ran
    ran: tuple[Ran, ...]
    runs: int
    checked: Checked | None = None

    def speedup(self, one: Ran) -> float:
        """Return how many times as fast as the plain pipeline a plan was; the jobs' median."""
        return one.gain(self.ran[0])

    def __str__(self) -> str:
        jobs = len(self.ran[0].psnr)
        lines = [f"for {self.wishes}, {jobs} jobs measured in {self.runs} runs:"]
        for one in self.ran[1:]:
            mark = "->" if one is self.chosen else "  "
            mean, worst = statistics.fmean(one.psnr), min(one.psnr)
            lines.append(
                f"{mark} {one.plan.name}: {self.speedup(one):.2f}x, mean {mean:.1f} dB, worst "
                f"{worst:.1f}, expected {one.expected:.1f}"
            )
        drift = [one.drift for one in self.ran]
        if max(drift) > BUSY * min(drift):
            change = f"{min(drift):.2f} to {max(drift):.2f} times as long as at first"
            lines.append(f"times are doubtful, the machine was busy: plain runs took {change}")
        if self.chosen is self.ran[0]:
            lines.append("-> the plain pipeline: nothing faster keeps it")
        if self.checked is not None:
            lines.append(
                f"in {_slices(self.plan)} slices it held {self.checked.peak:,} of "
                f"{self.wishes.memory:,} bytes and was {self.checked.gain:.2f}x as fast as plain"
            )
        return "\n".join(lines)


class PlanSearch:
    """Plans that run on a few jobs, and what they answer about budgets.

    Runs are kept: the first question measures, later ones run only what they need besides. For n
    jobs each plan costs n + 2 runs: one to warm up, and a plain one beside it, which shows how fast
    the machine is then. There are 7 rungs beside the plain pipeline; rules by site and step add up
    to 5 (and n + 12 runs that calibrate), measured schedules up to 3 (and at most 19 n runs, most
    of them shorter than a plain one). Runs of 8 steps or fewer skip none: there two precisions run
    in each step alone, and in up to 6 sets of steps. A question runs up to ``TRIES`` + ``FINER``
    further plans, and with a memory three runs for each of up to ``CHECKS``.

    Args:
        pipe: A diffusers pipeline, not patched.
        jobs: Arguments of the pipeline's call, and ``seed``; or functions that take the pipeline
            and return its frames, uint8 [F, H, W, 3]. Two or more, unlike each other.
        needs: Returns what a job needs; it is called once, when a memory is asked about.
        largest: The job whose memory is confirmed, by its place among ``jobs``.
        effort: What is measured beside the rungs that need no measurement; None for all of it.
        peak: Runs a function and returns bytes as ``needs`` counts them; by default all tensors.
        say: Called with one line of text after each plan.

    Raises:
        ValueError: Fewer than two jobs.

    Example::

        search = accel.PlanSearch(pipe, jobs)
        fast, good = search.within(quality=30.0), search.within(quality=40.0)
    """

    def __init__(
        self,
        pipe: Any,
        jobs: Sequence[Job],
        *,
        needs: Callable[[], Needs] | None = None,
        largest: int = 0,
        effort: Effort | None = None,
        peak: Peak | None = None,
        say: Say = lambda text: None,
    ) -> None:
        if len(jobs) < 2:
            raise ValueError(f"a plan by quality or speed needs two jobs or more, got {len(jobs)}")
        self._runs, self._say = Runs(pipe, jobs, peak or run_peak, say), say
        self._ladders: Ladders | None = None
        self._make = lambda: Ladders(pipe, jobs, self._runs, effort or Effort(), say)
        self._asked, self._known, self._largest = needs, list[Needs](), largest

    def measure(self) -> Ladders:
        """Run each rung alone, if that was not done; the first question does it otherwise."""
        self._ladders = self._ladders or self._make()
        return self._ladders

    def within(
        self,
        *,
        memory: str | int | None = None,
        quality: float | None = None,
        speed: float | None = None,
    ) -> Found:
        """Return the fastest plan that keeps the budgets; with a speed, the one that keeps most.

        Args:
            memory: Bytes that a job may take in any of its phases, or text such as "8GiB".
            quality: dB PSNR to the pipeline's own output that 9 of 10 further jobs should keep.
            speed: Least times as fast as the plain pipeline.

        Raises:
            NoPlan: No plan keeps them; it has the plans that miss one budget least.
            ValueError: A budget that is none, or a memory for a search without ``needs``.
        """
        wishes = Wishes(None if memory is None else parse_bytes(memory), quality, speed)
        self._refuse_too_little(wishes)
        ladders, left = self.measure(), _Left()
        while True:
            best = _best(wishes, self._candidates(ladders, wishes), left)
            if best.pair.ran is None:
                ladders.run(best.pair)
                left.tries -= 1
            elif (
                left.finer
                and not wishes.short(best)
                and ladders.finer(best.pair, faster=speed is None)
            ):
                left.finer -= 1
            elif _unchecked(best):
                checked = self._runs.check(best.plan, self._largest)
                self._say(f"{best}: held {checked.peak:,} bytes, {checked.gain:.2f}x as fast")
                left.checks -= 1
            else:
                return self._found(wishes, best)

    def _found(self, wishes: Wishes, best: Candidate) -> Found:
        assert best.pair.ran is not None
        runs = self._runs
        checked = runs.checked(best.plan) if best.peak else None
        made = replace(best.plan, origin=runs.origin(best.pair.ran))
        return Found(wishes, made, best.pair.ran, runs.ran, runs.count, checked)

    @property
    def ran(self) -> tuple[Ran, ...]:
        """All plans that ran on all jobs, the plain pipeline first."""
        return self._runs.ran

    def _needs(self) -> Needs:
        if not self._known:
            if self._asked is None:
                raise ValueError(
                    "this search cannot answer about memory: it was made without needs"
                )
            self._known.append(self._asked())
        return self._known[0]

    def _refuse_too_little(self, wishes: Wishes) -> None:
        """Raise NoPlan, before anything runs, for a memory in which nothing can fit."""
        if wishes.memory is None:
            return
        needs = self._needs()
        slices = min(needs.denoise, key=lambda n: needs.peak(n, tiled=True))
        phases = needs.phases(slices, tiled=True)
        phase, least = max(phases.items(), key=lambda item: item[1])
        if least > wishes.memory:
            pair = Pair(FULL, EVERY, PLAIN, LOSSLESS, 1.0)
            one = Candidate(pair, _sliced(PLAIN, slices), LOSSLESS, 1.0, least)
            raise NoPlan(
                wishes, (Nearest("memory", one, least - wishes.memory),),
                f"nothing fits in {gib(wishes.memory, 3)}: the {phase} phase needs at least "
                f"{gib(least, 3)}, weights included, by simulation; choose a smaller size or fewer "
                "frames, or place weights elsewhere: accel.load(model, memory=...)",
            )  # fmt: skip

    def _candidates(self, ladders: Ladders, wishes: Wishes) -> list[Candidate]:
        """Return all pairs with their slices; decoded in tiles where none fits without."""
        if wishes.memory is None:
            return [Candidate(x, x.plan, x.expected, x.gain) for x in ladders.pairs()]
        rows = [self._fitted(pair, wishes.memory) for pair in ladders.pairs()]
        if self._needs().tiled is not None and all(one.peak > wishes.memory for one in rows):
            ladders.tiles()
            rows += [self._fitted(pair, wishes.memory) for pair in ladders.pairs(tiled=True)]
        return rows

    def _fitted(self, pair: Pair, memory: int) -> Candidate:
        """Return a pair with the fewest slices that fit, else with those that need least."""
        bare, sized = pair.plan, []
        for slices in sorted(self._needs().denoise):
            tiled = bare.slicing is not None
            peak = self._needs().peak(slices, bare.rehash, bare.linear, tiled=tiled)
            sized.append(self._seen(pair, _sliced(bare, slices), peak))
            if sized[-1].peak <= memory:
                return sized[-1]
        return min(sized, key=lambda one: one.peak)

    def _seen(self, pair: Pair, plan: Plan, peak: int) -> Candidate:
        """Return a plan with a simulated peak, or with what its check measured."""
        checked = self._runs.checked(plan)
        if checked is None:
            return Candidate(pair, plan, pair.expected, pair.gain, peak)
        expected, gain = pair.expected, checked.gain if _slices(plan) > 1 else pair.gain
        if pair.ran is not None and (lost := pair.ran.psnr[self._largest] - checked.psnr) > SLACK:
            expected -= lost  # slices should change nothing
        return Candidate(pair, plan, expected, gain, checked.peak, True)


@dataclass
class _Left:
    """What one question may still run."""

    tries: int = TRIES
    finer: int = FINER
    checks: int = CHECKS


def _best(wishes: Wishes, rows: Sequence[Candidate], left: _Left) -> Candidate:
    """Return the best candidate, or one to run or check first.

    Raises NoPlan where none keeps the budgets, once what is nearest to them ran and was checked.
    """

    def may(one: Candidate) -> bool:
        ran = one.pair.ran is not None
        return (ran or left.tries > 0) and (not _unchecked(one) or left.checks > 0)

    def may_be_near(one: Candidate) -> bool:
        fits = left.checks > 0 or not _unchecked(one) or "memory" in wishes.short(one)
        return one.pair.ran is not None and fits

    good = best_first(wishes, filter(may, rows))
    best = good[0] if good else not_run(wishes, rows) if left.tries else None
    if best is None:
        near = nearest(wishes, filter(may_be_near, rows))
        open_ = (x.one for x in near if x.budget != "memory" and _unchecked(x.one))
        best = next(open_, None)
        if best is None:
            raise NoPlan(wishes, near)
    return best


def _unchecked(one: Candidate) -> bool:
    return bool(one.peak) and not one.measured


def _slices(plan: Plan) -> int:
    return 1 if plan.slicing is None else plan.slicing.slices


def _sliced(bare: Plan, slices: int) -> Plan:
    """Return a plan in so many slices, with its tiles."""
    if bare.slicing is not None:
        return replace(bare, slicing=replace(bare.slicing, slices=slices))
    return replace(bare, slicing=SlicingConfig(slices, 1)) if slices > 1 else bare
