"""Step rehash against fewer steps and the caches people use, on the embedded model or a small one.

    python tests/bench/bench_rehash.py [--model wan] [--jobs 30] [--sweep 4] [--timed 5]

Every method runs the same jobs with the same seeds and is compared with the pipeline's own output.
``computed``: multiply-adds of the denoiser's linear layers and 2-D convolutions, full run over this
one; ``state``: bytes of tensors alive after a step beyond those of a full run, the most of three.
Schedules are measured on jobs that are not among those. Every setting is swept on the first jobs
(``--sweep``); the rest run ours, fewer steps, and of each other method the two best settings that
compute at least 1.85× less. The last lines are the best setting of each method among those, with
``seconds`` of the whole call, full over this one, in turn and fresh on each start; how many jobs
reach the decibels that were asked of a measured schedule; and whether our curve is monotone.

Results are kept per setting and job in ``build/rehash``: after an interruption the same command
goes on, and with more ``--jobs`` only the new ones run. Those of another model count for nothing.

cache-dit is only needed here (``pip install -e '.[bench]'``); without it, its rows say so.
"""

from __future__ import annotations

import argparse
import gc
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rehash_caches import Contender, nothing, of, ours, theirs
from rehash_models import MODELS, Job, denoiser_of
from rehash_results import (
    ASKED_FOR,
    LIMIT,
    UNITS,
    Result,
    Results,
    Row,
    best,
    digest,
    figures,
    finalists,
    monotone,
    promises,
)
from rows import append, flat, weights_of
from torch import nn

from accel.calibration.step_measurement import Measurement
from accel.calibration.steps import measure_steps
from accel.config import RehashConfig
from accel.core.quality import psnr, ssim
from accel.core.run_pipeline import call
from accel.kernels import linear as kernels

LEVELS = ("output", "features")
MEASURED_ON, ASKED = 8, (24.0, 28.0, 32.0, 36.0, 40.0)


def alive() -> int:
    """Bytes of all tensors that Python knows."""
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, nn.Parameter) and thing.device.type == "cpu":
            storage = thing.untyped_storage()
            storages[storage._cdata] = storage.nbytes()
    return sum(storages.values())


class Meter:
    """Counts the denoiser's work and, if ``weigh``, the tensors alive after each step."""

    def __init__(self, pipe: Any) -> None:
        self.work, self.weigh = 0, False
        self.weights: dict[int, int] = {}
        self.steps = 0
        for part in denoiser_of(pipe).modules():
            part.counted = isinstance(part, (nn.Linear, nn.Conv2d))  # and so are those of copies
        plain = nn.Linear.forward  # a hook on each would tell rehash that somebody looks inside
        convolve = nn.Conv2d.forward

        def forward(module: nn.Linear, x: torch.Tensor) -> torch.Tensor:
            output = plain(module, x)
            if getattr(module, "counted", False):
                self.work += output.numel() * module.in_features
            return output

        def convolved(module: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
            output = convolve(module, x)
            if getattr(module, "counted", False):
                self.work += output.numel() * module.weight[0].numel()
            return output

        ours = kernels.run

        def eight_bits(x: torch.Tensor, packed: Any, *rest: Any) -> torch.Tensor:
            self.work += x.numel() * packed.shape[0]  # as much as a layer's own call
            return ours(x, packed, *rest)

        nn.Linear.forward = forward  # type: ignore[method-assign]
        nn.Conv2d.forward = convolved  # type: ignore[method-assign]
        kernels.run = eight_bits

    def step_done(self, pipe: Any, step: int, t: Any, tensors: Any) -> Any:
        """diffusers' callback at the end of a step."""
        if self.weigh and step in (self.steps // 2, self.steps // 2 + 1, self.steps - 3):
            self.weights[step] = alive()
        return tensors

    def run(
        self, pipe: Any, job: Job, weigh: bool
    ) -> tuple[np.ndarray, int, float, dict[int, int]]:
        """Frames, work, seconds and weights of one job; denoising only, plus what is around it."""
        self.work, self.weigh, self.weights = 0, weigh, {}
        self.steps = job["num_inference_steps"]
        start = time.perf_counter()
        frames = call(pipe, {**job, "callback_on_step_end": self.step_done})
        return frames, self.work, time.perf_counter() - start, self.weights


def compare(pipe: Any, meter: Meter, job: Job, contender: Contender, full: Full) -> Result:
    """Run one job with a contender."""
    try:
        with contender.on(pipe):
            frames, work, _, weights = meter.run(pipe, contender.change(job), full.weigh)
    except Exception as error:  # somebody else's code: whatever it raises is its result
        return Result(failed=f"{type(error).__name__}: {str(error).splitlines()[0][:90]}")
    base, found = full.weights, weights.keys()
    weighed = full.weigh and found == base.keys()
    return Result(
        full.work / work,
        min(100.0, psnr(full.frames, frames)),
        ssim(full.frames, frames),
        max(0, *(weights[k] - base[k] for k in base)) if weighed else None,
    )


@dataclass
class Full:
    """The plain run of a job; ``weights`` bytes alive after some steps, if ``weigh``."""

    frames: np.ndarray
    work: int
    weigh: bool
    weights: dict[int, int]

    @classmethod
    def of(cls, pipe: Any, meter: Meter, job: Job, weigh: bool, file: Path) -> Full:
        """From ``file`` unless it is to be weighed; else made, and written there."""
        if file.is_file() and not weigh:
            with np.load(file) as known:
                return cls(known["frames"], int(known["work"]), False, {})
        with nothing(pipe):
            frames, work, _, weights = meter.run(pipe, job, weigh)
        np.savez(file, frames=frames, work=work)
        return cls(frames, work, weigh, weights)


def run_all(
    pipe: Any, jobs: Sequence[Job], contenders: Sequence[Contender], results: Results, sweep: int
) -> list[Row]:
    """What is missing, job by job; the first is weighed. After ``sweep`` only finalists run."""
    meter = Meter(pipe)
    rows = [Row(c, []) for c in contenders]
    running = rows
    for i, job in enumerate(jobs):
        full: Full | None = None
        running = finalists(rows) if i == sweep else running
        by_plan: dict[str, Result] = {}  # the same plan may stand under several names
        for row in running:
            detail = row.contender.detail
            identity = [row.method, row.setting, detail]
            known = results.get(identity, job) or (detail and by_plan.get(digest(detail)))
            if not known:
                full = full or Full.of(pipe, meter, job, i == 0, results.full(job))
                known = compare(pipe, meter, job, row.contender, full)
                results.add(identity, job, known)
            by_plan[digest(detail)] = known
            row.results.append(known)
        print(f"job {i + 1} of {len(jobs)} done", flush=True)
    return rows


def time_all(pipe: Any, jobs: Sequence[Job], rows: Sequence[Row]) -> None:
    """Seconds of plain runs over those of each row, taking turns; nothing is kept for later."""
    meter = Meter(pipe)
    for job in jobs:
        for row in rows:
            plain = meter.run(pipe, job, False)[2]
            with row.contender.on(pipe):
                row.seconds.append(plain / meter.run(pipe, row.contender.change(job), False)[2])


HEAD = (
    f"{'method':<26}{'setting':<34}{'computed':>7}{'seconds':>8}{'PSNR':>8}{'worst':>8}{'SSIM':>8}"
    f"{'state KiB':>10}{'jobs':>5}"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=tuple(MODELS), default="wan")
    parser.add_argument("--jobs", type=int, default=30)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--measured-on", type=int, default=MEASURED_ON)
    parser.add_argument("--sweep", type=int, default=4, help="jobs that run every setting")
    parser.add_argument("--timed", type=int, default=5, help="jobs whose seconds are compared")
    parser.add_argument("--group", choices=("all", "ours", "theirs"), default="all")
    parser.add_argument("--folder", type=Path, default=Path("build/rehash"), help="results")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model = MODELS[args.model]
    pipe = model.load()
    results = Results(args.folder, weights_of(model.source)["hash"])
    training = model.jobs(args.measured_on, args.steps, 5000)
    contenders = []
    if args.group != "theirs":
        maps = measured(pipe, training, args.folder, results.model)
        contenders += [*ours(*maps), *asked_for(maps[0])]
    contenders += [] if args.group == "ours" else theirs(model, pipe, training[0], args.steps)
    jobs = model.jobs(args.jobs, args.steps, 9000)
    rows = run_all(pipe, jobs, contenders, results, args.sweep)
    print("\n" + "\n".join([HEAD, *map(str, rows)]))
    fast = best(rows)
    time_all(pipe, jobs[: args.timed], fast)
    print(f"\nbest setting of each method with at least {LIMIT}× less computed, {args.jobs} jobs")
    print("\n".join([HEAD, *map(str, fast)]))
    lines = [*promises(rows), monotone(rows)] if args.group != "theirs" else []
    print("\n" + "\n".join(lines))
    if args.json:
        found = flat(figures(rows, fast), "rehash", UNITS)
        append(args.json, found, weights=weights_of(model.source))


def asked_for(measured: Measurement) -> list[Contender]:
    """Schedules that a number of decibels was asked of: round ones, and the most each promises."""
    most = {math.floor(10 * point.expected) / 10 for point in measured.points}
    configs = {wanted: measured.at_quality(wanted) for wanted in sorted({*ASKED, *most})}
    return [of(ASKED_FOR, f"{wanted:g} dB", config) for wanted, config in configs.items()]


def measured(
    pipe: Any, jobs: Sequence[Job], folder: Path, name: str, levels: Sequence[str] = LEVELS
) -> list[Measurement]:
    """Measurements of some levels of the model whose digest is ``name``, kept in ``folder``."""
    found = []
    for level in levels:
        file = folder / f"map-{digest([name, jobs])}-{level}.json"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            config = RehashConfig(level=level)
            if level == "output":
                measure_steps(pipe, jobs, config=config, say=print).save(file)
            else:  # far behind at any schedule: a few jobs are enough
                measure_steps(pipe, jobs[:3], config=config, speedups=(1.5, 1.9), say=print).save(
                    file
                )
        found.append(Measurement.load(file))
    return found


if __name__ == "__main__":
    main()
