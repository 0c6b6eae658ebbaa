"""Plans for pairs of memory and quality, held against unseen jobs, random plans and all presets.

    python tests/bench/bench_plan_pairs.py [--pairs 30] [--random 200] [--jobs 4] [--models NAME]

Pairs and random plans are shared out over the models: the embedded one, and a Wan of random weights
that is wide enough for kernels to pay. One search answers all pairs of a model. For each plan: its
peak as measured must be within the memory, one unseen job of its own must keep the quality (9 of 10
should), and no random plan or preset that keeps both budgets on the same jobs may be faster by more
than times vary (``SAME``). A pair that is refused is right if no contender keeps it either.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from bench_plan_search import job as embedded_job

import accel
from accel.calibration.step_measurement import LOSSLESS, Point
from accel.core.quality import psnr
from accel.core.run_pipeline import call
from accel.kernels.dispatch import environment
from accel.memory import fit
from accel.memory.fit import Needs
from accel.memory.meta_models import Video
from accel.memory.run_peak import run_peak
from accel.pipelines.load import load
from accel.planning.plan_search import Found
from accel.plans import PRESETS, Plan

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]
from helpers.tiny_parts import flow, t5, wan_vae, words  # noqa: E402

SAME = 1.05  # times as fast up to which two plans count as equally fast
UNSEEN = 1000  # number of the first unseen job
STEPS = 20


def wide() -> Any:
    """Return a Wan pipeline of random weights, 384 channels wide, always the same."""
    torch.manual_seed(0)
    denoiser = diffusers.WanTransformer3DModel(
        num_attention_heads=3, attention_head_dim=128, in_channels=16, out_channels=16, text_dim=16,
        freq_dim=64, ffn_dim=1536, num_layers=2, rope_max_seq_len=64,
    )  # fmt: skip
    return diffusers.WanPipeline(
        vae=wan_vae(), text_encoder=t5(cls="UMT5"), tokenizer=words(), scheduler=flow(shift=3.0),
        transformer=denoiser,
    )  # fmt: skip


def wide_job(i: int) -> dict[str, Any]:
    """Return the i-th job of the wide model."""
    prompt = embedded_job(i)["prompt"]
    size = {"height": 256, "width": 256, "num_frames": 5}
    return {"prompt": prompt, "seed": i, **size, "num_inference_steps": STEPS}


def short_job(i: int) -> dict[str, Any]:
    """Return the i-th job of the embedded model, in 9 frames."""
    return {**embedded_job(i), "num_frames": 9, "num_inference_steps": STEPS}


MODELS: dict[str, tuple[Callable[[], Any], Callable[[int], dict[str, Any]]]] = {
    "embedded": (lambda: load("tiny"), short_job),
    "wide": (wide, wide_job),
}


Answers = dict[tuple[int, float], Found | accel.NoPlan]  # by memory in bytes and quality in dB


def slower(answer: Found | accel.NoPlan, gain: float) -> bool:
    """Whether a plan ran fewer times as fast; so does no plan at all."""
    return isinstance(answer, accel.NoPlan) or answer.speedup(answer.chosen) < gain


@dataclass
class Contender:
    """A plan that was not searched for: how fast it was, and what it keeps and holds.

    ``gain`` 0 stands for one that cannot beat any plan, seen before all jobs ran.
    """

    plan: Plan
    peak: int
    gain: float = 0.0
    expected: float = 0.0
    measured: bool = False


@dataclass
class Model:
    """A pipeline with its jobs and what they give plain."""

    name: str
    pipe: Any
    job: Callable[[int], dict[str, Any]]
    jobs: int
    needs: Needs
    plain: list[tuple[float, np.ndarray]] = field(default_factory=list)

    @classmethod
    def of(cls, name: str, jobs: int) -> Model:
        """Return a model by name, after a plain run of each of its jobs."""
        make, job = MODELS[name]
        pipe = make()
        pipe.set_progress_bar_config(disable=True)
        size = job(0)
        needs = fit.of_loaded(pipe, Video(size["width"], size["height"], size["num_frames"]))
        found = cls(name, pipe, job, jobs, needs)
        found.run(0)
        found.plain = [found.run(i) for i in range(jobs)]
        return found

    def run(self, i: int) -> tuple[float, np.ndarray]:
        """Return seconds and frames of a job."""
        start = time.perf_counter()
        frames = call(self.pipe, self.job(i))
        return time.perf_counter() - start, frames

    def simulated(self, plan: Plan) -> int:
        """Return a plan's peak in bytes by simulation; it is measured where it matters."""
        slices = 1 if plan.slicing is None else plan.slicing.slices
        known = min((n for n in self.needs.denoise if n >= slices), default=self.needs.slices)
        return self.needs.peak(known, plan.rehash, plan.linear)

    def contend(self, plan: Plan, found: Answers) -> Contender:
        """Run a plan on the jobs, as long as it may still beat the plan found for a pair."""
        one = Contender(plan, self.simulated(plan))
        gains, decibels = [], []
        drift = self.run(0)[0] / self.plain[0][0]
        with accel.patched(self.pipe, plan=plan):
            self.run(0)
            for i, (before, expected) in enumerate(self.plain):
                took, frames = self.run(i)
                gains.append(drift * before / took)
                decibels.append(min(psnr(expected, frames), LOSSLESS))
                if not any(
                    quality <= decibels[-1] and one.peak <= memory and slower(x, 1.1 * gains[-1])
                    for (memory, quality), x in found.items()
                ):
                    return one
        one.gain = statistics.median(gains)
        one.expected = Point((), tuple(decibels), "").expected
        return one

    def confirm(self, one: Contender) -> int:
        """Return a contender's measured peak in bytes."""
        if not one.measured:
            with accel.patched(self.pipe, plan=one.plan):
                one.peak = run_peak(self.pipe, lambda: self.run(0))
            one.measured = True
        return one.peak


def random_plan(dice: random.Random, number: int) -> Plan:
    """Return a plan of random precision, step rehash and slices."""
    bits = dice.choice([None, "int8", "int6", "int4"])
    start = dice.choice([None, 0.0, 0.25, 0.5, 0.75])
    rules = (accel.Rule("full", end=start),) if start else ()
    slices = dice.choice([1, 1, 2, 4, 8, 16])
    return Plan(
        f"random {number}",
        None if bits is None else accel.AttentionConfig(bits),
        accel.SlicingConfig(slices, 1) if slices > 1 else None,
        dice.choice([None, accel.RehashConfig(speedup=round(dice.uniform(1.1, 3.0), 2))]),
        None if start is None else accel.LinearConfig(rules=rules),
    )


def pairs_of(model: Model, search: accel.PlanSearch, count: int) -> list[tuple[int, float]]:
    """Return pairs of memory and quality, from too little to plenty of both."""
    kept = sorted(one.expected for one in search.ran if one.expected < LOSSLESS)
    least = min(model.needs.peak(n) for n in model.needs.denoise)
    most = model.needs.peak(1)
    memories = np.linspace(0.95 * least, 1.05 * most + 0.02 * least, 6)
    qualities = np.linspace(kept[0] - 1, min(kept[-1] + 1, 60), 5)
    grid = [(int(m), round(float(q), 1)) for q in qualities for m in memories]
    return random.Random(1).sample(grid, min(count, len(grid)))


def measured(model: Model, args: argparse.Namespace, pairs: int, randoms: int) -> dict[str, int]:
    """Search and hold against contenders; print a row for each pair and return counts."""
    search = accel.PlanSearch(
        model.pipe, [model.job(i) for i in range(args.jobs)], needs=lambda: model.needs,
        say=lambda text: print(f"  {text}", file=sys.stderr, flush=True),
    )  # fmt: skip
    search.measure()
    found: Answers = {}
    for memory, quality in pairs_of(model, search, pairs):
        try:
            found[memory, quality] = search.within(memory=memory, quality=quality)
        except accel.NoPlan as error:
            found[memory, quality] = error
    dice = random.Random(args.seed)
    plans = [Plan.preset(name) for name in PRESETS]
    plans += [random_plan(dice, i) for i in range(randoms)]
    plans.append(Plan("plain, most slices", None, accel.SlicingConfig(model.needs.slices, 1)))
    contenders = [model.contend(plan, found) for plan in plans]
    contenders[-1].gain, contenders[-1].expected = 1e-9, LOSSLESS  # is about memory alone
    counts = dict.fromkeys(("plans", "within", "kept", "fastest", "refused", "rightly"), 0)
    print(f"\n### {model.name}, {len(search.ran)} plans ran for {len(found)} pairs\n")
    print("| memory | quality | plan | peak | unseen job | times as fast | best contender |")
    print("|---|---|---|---|---|---|---|")
    for i, ((memory, quality), one) in enumerate(found.items()):
        meets = [c for c in contenders if c.gain and c.expected >= quality and c.peak <= memory]
        start = f"| {memory / 1e6:.1f} MB | {quality:g} dB | "
        if isinstance(one, accel.NoPlan):
            better = next((c for c in meets if model.confirm(c) <= memory), None)
            counts["refused"] += 1
            counts["rightly"] += better is None
            near = "; ".join(f"{x.budget} short by {x.short:,.4g}" for x in one.nearest)
            print(f"{start}refused: {near} | | | | {better.plan.name if better else 'none'} |")
            continue
        row = against(model, one, meets, memory, quality, UNSEEN + i, counts)
        print(f"{start}{row}", flush=True)
    return counts


def against(
    model: Model, one: Found, meets: list[Contender], memory: int, quality: float, unseen: int,
    counts: dict[str, int],
) -> str:  # fmt: skip
    """Hold a plan against an unseen job and against contenders; return the rest of its row."""
    _, plain = model.run(unseen)
    with accel.patched(model.pipe, plan=one.plan):
        _, frames = model.run(unseen)
        peak = run_peak(model.pipe, lambda: model.run(0))
    keeps = min(psnr(plain, frames), LOSSLESS)
    gain = one.checked.gain if one.checked and one.plan.slicing else one.speedup(one.chosen)
    ahead = [c for c in meets if c.gain > SAME * gain]
    best = max(
        (c for c in ahead if beats(model, c, one, memory)), key=lambda c: c.gain, default=None
    )
    counts["plans"] += 1
    counts["within"] += peak <= memory
    counts["kept"] += keeps >= quality
    counts["fastest"] += best is None
    slices = 1 if one.plan.slicing is None else one.plan.slicing.slices
    ahead_of = "none is faster" if best is None else f"{best.plan.name}: {best.gain:.2f}x"
    name = f"{one.plan.name}, {slices} slices"
    return f"{name} | {peak / 1e6:.1f} MB | {keeps:.1f} dB | {gain:.2f}x | {ahead_of} |"


def beats(model: Model, one: Contender, found: Found, memory: int) -> bool:
    """Whether a contender is within the memory and is faster in turn with the plan, three times."""
    if model.confirm(one) > memory:
        return False
    ratios = []
    for _ in range(3):
        seconds = []
        for plan in (one.plan, found.plan):
            with accel.patched(model.pipe, plan=plan):
                model.run(0)
                seconds.append(model.run(0)[0])
        ratios.append(seconds[1] / seconds[0])
    return statistics.median(ratios) > SAME


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--random", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", nargs="+", choices=[*MODELS], default=[*MODELS])
    args = parser.parse_args()
    print(environment())
    total: dict[str, int] = {}
    start = time.perf_counter()
    for i, name in enumerate(args.models):
        share = [
            n // len(args.models) + (i < n % len(args.models)) for n in (args.pairs, args.random)
        ]
        counts = measured(Model.of(name, args.jobs), args, *share)
        total = {key: total.get(key, 0) + value for key, value in counts.items()}
    print(
        f"\n{total['plans']} plans: {total['within']} within the memory as measured, "
        f"{total['kept']} keep the quality on an unseen job, {total['fastest']} not slower than "
        f"any random plan or preset within the same budgets (up to {SAME:g}x); "
        f"{total['rightly']} of {total['refused']} refused rightly; "
        f"{(time.perf_counter() - start) / 60:.0f} minutes"
    )


if __name__ == "__main__":
    main()
