"""Whole renders of the embedded model with 8-bit linear layers: time in turn, and dB.

    python tests/bench/bench_linear_renders.py [--size 128] [--frames 17] [--steps 12] [--jobs 3]
        [--options | --rules]

Each variant renders the same jobs, in turn; times are CPU seconds of the first job and their ratio
to the plain run of the same round. ``--options``: instead, dB of smoothing, kept channels and
rotation, without times. ``--rules``: instead, dB with the layers in some steps or blocks only,
beside INT8 attention.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import nullcontext
from typing import Any

import numpy as np

import accel
from accel import AttentionConfig, LinearConfig, Plan, Rule
from accel.core.quality import psnr
from accel.pipelines.generate import generate
from accel.pipelines.job import Job
from accel.pipelines.load import load

PROMPTS = (
    "a red circle moves right", "a blue square falls down", "a green triangle turns",
    "a yellow crescent on a dotted purple background",
    "a white square and a green triangle on a mottled grey background",
    "an orange triangle on a cloudy green background",
)  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "linears": {}, "smooth": {"smooth": True}, "hadamard": {"hadamard": True},
    "16 outliers": {"outliers": 16},
}  # fmt: skip
FULL: dict[str, tuple[Rule, ...]] = {  # what stays at full precision
    "all steps": (), "first quarter": (Rule("full", end=0.25),),
    "first half": (Rule("full", end=0.5),), "second half": (Rule("full", start=0.5),),
    "last block": (Rule("full", "blocks.5.*"),), "feed-forwards": (Rule("full", "*.ffn.*"),),
}  # fmt: skip


def jobs(args: argparse.Namespace) -> list[Job]:
    """The jobs, without a plan of their own."""
    size = {"width": args.size, "height": args.size, "frames": args.frames, "steps": args.steps}
    named = [PROMPTS[i % len(PROMPTS)] for i in range(args.jobs)]
    return [Job(p, seed=i + 1, preset=None, **size) for i, p in enumerate(named)]


def rendered(pipe: Any, plan: Plan | None, job: Job) -> np.ndarray:
    """Frames of a job with a plan."""
    with nullcontext() if plan is None else accel.patched(pipe, plan=plan):
        return generate(pipe, job).frames


def in_turn(pipe: Any, first: Job, repeats: int, plans: dict[str, Plan | None]) -> None:
    """Print how many times as fast as the plain run each plan is."""
    seconds: dict[str, list[float]] = {name: [] for name in plans}
    for i in range(repeats + 1):
        for name, plan in plans.items():
            start = time.process_time()
            rendered(pipe, plan, first)
            seconds[name] += [time.process_time() - start] if i else []  # the first one measures
    for name, mine in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(seconds["plain"], mine, strict=True))
        print(f"{name}: {statistics.median(mine):.2f} s, {ratio:.2f}x")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    numbers = {"size": 128, "frames": 17, "steps": 12, "repeats": 3, "jobs": 3}
    for name, value in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--options", action="store_true")
    parser.add_argument("--rules", action="store_true")
    args = parser.parse_args()
    pipe, attended = load("tiny"), AttentionConfig("int8")
    plans: dict[str, Plan | None] = {
        "plain": None,
        "INT8 attention": Plan("attention", attended),
        "linears": Plan("linears", None, linear=LinearConfig()),
        "both": Plan("both", attended, linear=LinearConfig()),
    }
    if args.options:
        plans = {"plain": None}
        for name, options in OPTIONS.items():
            plans[name] = Plan(name, None, linear=LinearConfig(impl="cpu", **options))
    elif args.rules:
        plans = {"plain": None, "attention alone": Plan("attention", attended)}
        for name, rules in FULL.items():
            linear = LinearConfig(rules=rules, impl="cpu")
            plans[f"full: {name}"] = Plan(name, attended, linear=linear)
    else:
        in_turn(pipe, jobs(args)[0], args.repeats, plans)
    exact = [rendered(pipe, None, job) for job in jobs(args)]
    for name, plan in list(plans.items())[1:]:
        found = [
            psnr(a, rendered(pipe, plan, job)) for a, job in zip(exact, jobs(args), strict=True)
        ]
        each = ", ".join(f"{value:.1f}" for value in found)
        print(f"{name}: mean {np.mean(found):.1f} dB, {each}", flush=True)


if __name__ == "__main__":
    main()
