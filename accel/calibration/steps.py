"""Measure a pipeline's steps on a few jobs, and find schedules that hold on them.

One full run per job gives the inner products of the outputs. From them follow the similarity map of
Streamlined Inference, the weights of any schedule (``accel/calibration/step_weights.py``) and its
error. For every requested number of computed steps, the schedules with the smallest error are run,
each under another assumption on how errors grow, and so is the rule that needs no measurement. The
one closest to the full runs is kept, with what it reached on each job; so a measured schedule is
never below the rule on them. A schedule worse than one with fewer computed steps is dropped.

Each job is run with weights fitted to the other jobs, so it reaches what an unseen job would; the
weights that are kept are fitted to all jobs. At level "features", and with samplers whose
arithmetic is not linear, ``accel/calibration/step_search.py`` finds schedules without weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np

from accel.calibration import step_search, step_weights
from accel.calibration.plain_runs import Run, full_run
from accel.calibration.step_measurement import LOSSLESS, Measurement, Point, cosine, curve
from accel.calibration.step_weights import Sampler
from accel.config import RehashConfig
from accel.core.key_steps import Multistep
from accel.core.origin import plan_origin_of
from accel.core.quality import psnr
from accel.core.run_pipeline import Run as Job
from accel.core.run_pipeline import as_run
from accel.patching import patched
from accel.plans import Plan
from accel.rehash.apply import order_of
from accel.rehash.schedule import FEW, budget, head, similar_keys_of_count

SPEEDUPS = (1.25, 1.5, 1.9, 2.4, 3.0)
# An error at timestep t grows by 1 + rise (t / first) ** power until the end: (rise, power) tried.
GROWTH = ((1.0, 2.0), (4.0, 4.0), (13.0, 6.0))
DEPTH = 3  # outputs kept per branch of guidance where weights are fitted
HEAD_SHARE = 0.4  # largest share of the computed steps that the first fifth of a run may take

Say = Callable[[str], None]


def measure_steps(
    pipe: Any,
    jobs: Sequence[Mapping[str, Any] | Job],
    *,
    config: RehashConfig | None = None,
    plan: Plan | None = None,
    speedups: Sequence[float] = SPEEDUPS,
    depth: int = DEPTH,
    say: Say = lambda text: None,
) -> Measurement:
    """Measure which denoising steps of a pipeline can be skipped, on a few jobs.

    It costs one run per job, and for each speed-up a part of a run per job and proposed schedule
    (six at most, the rule's among them).

    Args:
        pipe: A diffusers pipeline.
        jobs: Arguments of the pipeline's call, and ``seed``; or functions that take the pipeline
            and return its frames, uint8 [F, H, W, 3]. All need the same number of steps.
        config: Gives level, tail and store, and the order where no weights can be fitted.
        plan: What else will be patched.
        speedups: Denoising steps per computed one to find schedules for.
        depth: Outputs kept per branch of guidance, 1 to 4.
        say: Called with one line of text after each part of the measurement.

    Returns:
        The measured schedules; its ``at_quality`` and ``at_speedup`` give a configuration.

    Raises:
        ValueError: No jobs, jobs with different numbers of steps, runs of 8 steps or fewer, or a
            depth that is not allowed.

    Example::

        jobs = [{"prompt": "a red ball", "seed": 1}, {"prompt": "a blue cube", "seed": 2}]
        measured = accel.measure_steps(pipe, jobs)
        accel.patch(pipe, plan=accel.Plan(rehash=measured.at_quality(36)))
    """
    made = plan_origin_of(pipe, "measure_steps")
    config = replace(config or RehashConfig(), origin=made.measured)
    base = plan or Plan("measured", attention=None)
    if not jobs:
        raise ValueError("measuring step rehash needs at least one job")
    if not 1 <= depth <= 4:
        raise ValueError(f"measuring step rehash needs a depth from 1 to 4 outputs, got {depth}")
    runs = []
    for i, job in enumerate(jobs):
        runs.append(full_run(pipe, job, base))
        say(f"job {i + 1} of {len(jobs)}: every step")
    steps = _steps(runs)
    why = "features are reused" if config.level == "features" else _why_not_linear(runs)
    if why and config.level == "output":
        say(f"no weights are fitted: {why}")
    propose = _plain(config, base, runs) if why else _fitted(config, runs, depth)
    trial = _Trial(pipe, jobs, runs, base, say)
    points = [trial.best(s, propose(s), config) for s in sorted(set(speedups))]
    gram = np.mean([run.gram() for run in runs], axis=0)
    made = made.measured_on(steps, runs[0].inputs, runs[0].frames)
    return Measurement(
        steps, tuple(runs[0].times), tuple(map(tuple, gram.tolist())), config,
        order_of(config, base.attention)[0], curve(points), why, replace(made, jobs=len(runs)),
    )  # fmt: skip


# A proposal for a speed-up: its name, the config to keep, and one config for each job.
Proposal = tuple[str, RehashConfig, list[RehashConfig]]
Proposals = Callable[[float], Iterator[Proposal]]


@dataclass(frozen=True)
class _Trial:
    """Real runs of the proposals, on the jobs that were measured."""

    pipe: Any
    jobs: Sequence[Mapping[str, Any] | Job]
    runs: Sequence[Run]
    plan: Plan
    say: Say

    def best(self, speedup: float, proposals: Iterator[Proposal], config: RehashConfig) -> Point:
        """Return what has the most expected dB: a proposal, or the rule where that is better."""
        tried = []
        for found, whole, each in proposals:
            reached = tuple(
                self.reached(job, one, run)[0]
                for job, one, run in zip(self.jobs, each, self.runs, strict=True)
            )
            tried.append(Point(whole.keys, reached, found, whole.multistep))
            self._tell(speedup, tried[-1])
        best = max(tried, key=lambda p: p.expected)
        rule = self._rule(speedup, config)
        if len(rule.keys) > len(best.keys):
            self.say(f"{speedup:g}×: the rule computes up to {len(rule.keys)} steps, not compared")
            return best
        if rule.expected > best.expected:
            self.say(f"{speedup:g}×: the rule keeps more than the measured schedules and is taken")
            return rule
        return best

    def _rule(self, speedup: float, config: RehashConfig) -> Point:
        """Return what the rule without a measurement reaches."""
        one = replace(config, keys=(), steps=0, speedup=speedup, multistep=None, origin=None)
        pairs = zip(self.jobs, self.runs, strict=True)
        reached, keys = zip(*(self.reached(job, one, run) for job, run in pairs), strict=True)
        point = Point(max(keys, key=len), reached, "the rule without a measurement", rule=True)
        self._tell(speedup, point)
        return point

    def _tell(self, speedup: float, point: Point) -> None:
        mean, worst = np.mean(point.psnr), min(point.psnr)
        self.say(f"{speedup:g}×: {mean:.1f} dB, worst {worst:.1f}, by {point.found}")

    def reached(
        self, job: Mapping[str, Any] | Job, config: RehashConfig, run: Run
    ) -> tuple[float, tuple[int, ...]]:
        """Return the PSNR in dB of a run with rehash against the full one, and computed steps."""
        with patched(self.pipe, plan=replace(self.plan, rehash=config)) as handle:
            decibel = min(LOSSLESS, psnr(run.frames, as_run(job)(self.pipe)))
            report = handle.report().rehash
        return decibel, () if report is None else tuple(report.keys)


def _fitted(config: RehashConfig, runs: Sequence[Run], depth: int) -> Proposals:
    """Propose schedules with weights; those for a job are fitted to the other jobs."""
    groups = tuple(i for i, (_, g) in enumerate(groupby(runs[0].names)) for _ in g)
    response = runs[0].response
    assert isinstance(response, np.ndarray)
    times, steps = np.array(runs[0].times), len(runs[0].times)
    grams = np.array([run.gram() for run in runs])

    def sampler(leave_out: int | None) -> Sampler:
        kept = [g for i, g in enumerate(grams) if i != leave_out or len(grams) == 1]
        return Sampler(np.mean(kept, axis=0), response[:, :-1], times, groups)

    def propose(speedup: float) -> Iterator[Proposal]:
        count, seen = budget(steps, speedup), set()
        first = min(head(steps), max(2, round(HEAD_SHARE * count)))
        starts = [j for j in range(steps) if j == 0 or groups[j] != groups[j - 1]]
        must = frozenset((*range(first), *starts, steps - 1))

        def fit(keys: frozenset[int], growth: tuple[float, float], out: int | None) -> RehashConfig:
            s = sampler(out)
            rows = step_weights.fit(s, keys, depth, s.growth(*growth)).weights
            fitted = Multistep(rows, tuple(runs[0].times), runs[0].sampler)
            return replace(
                config, keys=tuple(sorted(keys)), steps=steps, multistep=fitted,
                speedup=steps / len(keys), order=None,
            )  # fmt: skip

        for growth in GROWTH:
            s = sampler(None)
            keys = step_weights.best_keys(s, must, count, depth, s.growth(*growth))
            if keys not in seen:
                seen.add(keys)
                each = [fit(keys, growth, i) for i in range(len(runs))]
                yield f"smallest error, growth {growth}", fit(keys, growth, None), each

    return propose


def _plain(config: RehashConfig, base: Plan, runs: Sequence[Run]) -> Proposals:
    """Propose schedules without weights, those of the paper among them."""
    order, times = order_of(config, base.attention)[0], runs[0].times
    gram = np.mean([run.gram() for run in runs], axis=0)

    def propose(speedup: float) -> Iterator[Proposal]:
        count = budget(len(times), speedup)
        found = {
            step_search.best_keys(gram, times, count, order, g): f"smallest error, growth {g:g}"
            for g in step_search.GROWTH
        }
        paper = similar_keys_of_count(cosine(gram).tolist(), count)
        if len(paper) == count:
            found.setdefault(paper, "similarity")
        for keys, name in found.items():
            one = replace(config, keys=tuple(sorted(keys)), steps=len(times))
            yield name, one, [one] * len(runs)

    return propose


def _steps(runs: Sequence[Run]) -> int:
    """Return the number of steps of all runs.

    Raises ValueError where they differ or are few.
    """
    lengths = sorted({len(run.times) for run in runs})
    if len(lengths) > 1:
        raise ValueError(f"all jobs need the same number of steps, got {lengths}")
    if lengths[0] <= FEW:
        raise ValueError(f"runs of {FEW} steps or fewer leave nothing to skip, got {lengths[0]}")
    return lengths[0]


def _why_not_linear(runs: Sequence[Run]) -> str:
    """Return why no weights can be fitted to the runs, or "" if they can."""
    for run in runs:
        if why := run.why_not_linear():
            return why
        if not np.allclose(run.times, runs[0].times) or run.names != runs[0].names:
            return "the jobs' timesteps differ"
    return ""
