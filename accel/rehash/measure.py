"""Measures a pipeline's steps on a few jobs, and finds schedules that hold on them.

One full run per job gives the outputs' inner products, and from them the similarity map of
Streamlined Inference and the error of any schedule (``accel/rehash/optimise.py``). For every number
of computed steps asked for, the schedules proposed by both are run for real, and the one closest to
the full runs is kept, with what it reached on each job. A schedule with more computed steps that
comes out worse than one with fewer is dropped, so the curve has no cliff.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from accel.config import RehashConfig, from_dict
from accel.frames import call
from accel.patch import patched
from accel.plan import Plan
from accel.quality import psnr
from accel.rehash.apply import order_of
from accel.rehash.optimise import GROWTH, best_keys
from accel.rehash.schedule import FEW, budget, similar_keys_of_count

SPEEDUPS = (1.25, 1.5, 1.9, 2.4, 3.0)
CERTAINTY = 1.2816  # normal quantile of 9 in 10
LOSSLESS = 100.0  # dB that stand for equal frames

Say = Callable[[str], None]


@dataclass(frozen=True)
class Point:
    """A schedule and the PSNR in dB that it reached on each measured job; ``found`` by what."""

    keys: tuple[int, ...]
    psnr: tuple[float, ...]
    found: str

    @property
    def expected(self) -> float:
        """dB that 9 of 10 further jobs should reach: lower prediction bound of the measured."""
        values, n = np.asarray(self.psnr), len(self.psnr)
        spread = float(values.std(ddof=1)) if n > 1 else 3.0
        return float(values.mean()) - CERTAINTY * spread * math.sqrt(1 + 1 / n)


@dataclass(frozen=True)
class Measurement:
    """What ``measure`` found. ``times`` [steps] timesteps, ``gram`` [steps][steps] inner products
    of the outputs over the final latent's, mean of the jobs; ``points`` from most to fewest keys.
    """

    steps: int
    times: tuple[float, ...]
    gram: tuple[tuple[float, ...], ...]
    config: RehashConfig
    order: int
    points: tuple[Point, ...]

    def similarity(self) -> np.ndarray:
        """[steps, steps] cosine similarity of the outputs: the paper's map."""
        return _cosine(np.asarray(self.gram))

    def at_speedup(self, speedup: float) -> RehashConfig:
        """The measured schedule with at most steps / ``speedup`` computed steps that came out best.

        Raises ValueError if none is as fast.
        """
        most = budget(self.steps, speedup)
        fits = [p for p in self.points if len(p.keys) <= most]
        if not fits:
            raise ValueError(
                f"no schedule for {speedup:g}× was measured; the fastest is "
                f"{self.steps / len(self.points[-1].keys):.2f}×"
            )
        return self._with(max(fits, key=lambda p: p.expected))

    def at_quality(self, decibel: float) -> RehashConfig:
        """The fastest measured schedule that 9 of 10 jobs should reach ``decibel`` dB PSNR with;
        one that computes every step if there is none.
        """
        fits = [p for p in self.points if p.expected >= decibel]
        full = Point(tuple(range(self.steps)), (LOSSLESS,), "every step")
        return self._with(min(fits, key=lambda p: len(p.keys), default=full))

    def _with(self, point: Point) -> RehashConfig:
        return replace(
            self.config, keys=point.keys, steps=self.steps, speedup=self.steps / len(point.keys)
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Measurement:
        """Inverse of ``to_dict``. Raises ValueError for something else."""
        data = dict(data)
        data["config"] = from_dict(RehashConfig, data.get("config"), "rehash measurement config")
        points = [from_dict(Point, p, "rehash measurement point") for p in data.get("points", ())]
        data["points"] = tuple(replace(p, keys=tuple(p.keys), psnr=tuple(p.psnr)) for p in points)
        data["times"] = tuple(data.get("times", ()))
        data["gram"] = tuple(map(tuple, data.get("gram", ())))
        found: Measurement = from_dict(cls, data, "rehash measurement")
        return found

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Measurement:
        """Read what ``save`` wrote."""
        return cls.from_dict(json.loads(Path(path).read_text()))


def measure(
    pipe: Any,
    jobs: Sequence[Mapping[str, Any]],
    *,
    config: RehashConfig | None = None,
    plan: Plan | None = None,
    speedups: Sequence[float] = SPEEDUPS,
    say: Say = lambda text: None,
) -> Measurement:
    """Measure on ``jobs``: arguments of the pipeline's call, and ``seed``. All need one number of
    steps. ``config`` gives level, order, tail and store, ``plan`` what else will be patched.

    Costs one run per job, and a part of one per speed-up and proposed schedule (five at most).
    Raises ValueError for no jobs, different numbers of steps, or few-step runs.
    """
    config = config or RehashConfig()
    base = plan or Plan("measured", attention=None)
    order = order_of(config, base.attention)[0]
    if not jobs:
        raise ValueError("measuring step rehash needs at least one job")
    runs = []
    for i, job in enumerate(jobs):
        runs.append(_full_run(pipe, job, base))
        say(f"job {i + 1} of {len(jobs)}: every step")
    times = runs[0].times
    if any(len(run.times) != len(times) for run in runs):
        raise ValueError(
            f"all jobs need one number of steps, got {sorted({len(run.times) for run in runs})}"
        )
    if len(times) <= FEW:
        raise ValueError(f"runs of {FEW} steps or fewer leave nothing to skip, got {len(times)}")
    gram = np.mean([run.gram() for run in runs], axis=0)
    points = []
    for speedup in sorted(set(speedups)):
        proposed = _proposals(gram, times, budget(len(times), speedup), order)
        tried = []
        for keys, found in proposed.items():
            trial = replace(config, keys=tuple(sorted(keys)), steps=len(times))
            reached = [
                _reached(pipe, job, base, trial, run) for job, run in zip(jobs, runs, strict=True)
            ]
            tried.append(Point(trial.keys, tuple(reached), found))
            say(f"{speedup:g}×: {tried[-1].expected:.1f} dB by {found}")
        points.append(max(tried, key=lambda p: p.expected))
    return Measurement(
        len(times), tuple(times), tuple(map(tuple, gram.tolist())), config, order, _curve(points)
    )


def _proposals(
    gram: np.ndarray, times: Sequence[float], count: int, order: int
) -> dict[frozenset[int], str]:
    found = {
        best_keys(gram, times, count, order, g): f"smallest error, growth {g:g}" for g in GROWTH
    }
    paper = similar_keys_of_count(_cosine(gram).tolist(), count)
    if len(paper) == count:
        found.setdefault(paper, "similarity")
    return found


def _cosine(gram: np.ndarray) -> np.ndarray:
    norm = np.sqrt(np.diag(gram))
    return gram / np.outer(norm, norm)


def _curve(points: Sequence[Point]) -> tuple[Point, ...]:
    """From most to fewest keys, without points that are worse than a faster one."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: len(p.keys)):
        if not kept or point.expected > kept[-1].expected:
            kept.append(point)
    return tuple(reversed(kept))


# ------------------------------------------------------------------------------------------- runs


@dataclass
class _Run:
    """A full run: frames uint8 [F, H, W, 3], outputs and timesteps as the scheduler got them, and
    the final latent.
    """

    frames: np.ndarray
    outputs: list[Tensor]
    times: list[float]
    final: Tensor

    def gram(self) -> np.ndarray:
        """[steps, steps] inner products of the outputs over the final latent's own."""
        rows = torch.stack([y.flatten().double() for y in self.outputs])
        return (rows @ rows.T / self.final.double().square().sum()).numpy()


@contextmanager
def _listening(scheduler: Any, outputs: list[Tensor], times: list[float]) -> Iterator[list[Tensor]]:
    """Note what the scheduler is stepped with; yields a list whose last is the newest latent."""
    step = scheduler.step
    latents: list[Tensor] = []
    own = "step" in vars(scheduler)

    def listening(model_output: Tensor, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        outputs.append(model_output.detach().float().cpu())
        times.append(float(timestep))
        result = step(model_output, timestep, *args, **kwargs)
        latents[:] = [
            (result[0] if isinstance(result, tuple) else result.prev_sample).float().cpu()
        ]
        return result

    scheduler.step = listening
    try:
        yield latents
    finally:
        if own:
            scheduler.step = step
        else:
            del scheduler.step


def _full_run(pipe: Any, job: Mapping[str, Any], plan: Plan) -> _Run:
    outputs: list[Tensor] = []
    times: list[float] = []
    with (
        patched(pipe, plan=replace(plan, rehash=None)),
        _listening(pipe.scheduler, outputs, times) as latents,
    ):
        frames = call(pipe, job)
    return _Run(frames, outputs, times, latents[0])


def _reached(
    pipe: Any, job: Mapping[str, Any], plan: Plan, config: RehashConfig, run: _Run
) -> float:
    """PSNR in dB of a run with rehash against the full one."""
    with patched(pipe, plan=replace(plan, rehash=config)):
        return min(LOSSLESS, psnr(run.frames, call(pipe, job)))
