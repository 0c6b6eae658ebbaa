"""Runs of few steps on the embedded model: what each precision keeps, and where the time goes.

    python tests/bench/bench_few_steps.py [--steps 4 8] [--guidance 1 3] [--jobs 6] [--only END ...]
    python tests/bench/bench_few_steps.py --shares
    python tests/bench/bench_few_steps.py --speed [--rounds 9] [--size 64] [--frames 17]

Without an option: PSNR to the plain run of the same steps, with our kernels at every call, mean and
lowest of the jobs. ``--shares``: seconds of text encoding, denoiser and decoding, with the prompt
encoded and with its encoding from the cache. ``--speed``: the presets beside the plain pipeline, in
turn, in CPU seconds, as they choose kernels here.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from bench_plan_search import job as described
from bench_presets import in_turn, pipelines, quiet
from rows import Figure, append, weights_of

import accel
from accel import AttentionConfig, LinearConfig, Plan, Rule
from accel.core.quality import psnr
from accel.core.run_pipeline import call
from accel.kernels.dispatch import environment
from accel.pipelines.job import Job
from accel.pipelines.load import load
from accel.pipelines.loading.encoding_store import Store
from accel.pipelines.loading.encodings import cached

PRESETS = ("balanced", "fast", "few-step")


def plans(steps: int) -> Iterator[tuple[str, Plan]]:
    """Yield each plan and its name: precisions, and which steps stay at full precision."""
    first, last = Rule("full", end=1 / steps), Rule("full", start=(steps - 1) / steps)
    spared = {"": (), ", first full": (first,), ", last full": (last,),
              ", first and last full": (first, last)}  # fmt: skip

    def attention(precision: str, rules: tuple[Rule, ...] = ()) -> AttentionConfig:
        return AttentionConfig(precision, rules, impl="cpu")

    def layers(rules: tuple[Rule, ...]) -> LinearConfig:
        return LinearConfig("int8", rules, impl="cpu")

    for precision in ("int8", "int6", "int4"):
        yield f"{precision.upper()} attention", Plan("a", attention(precision))
    yield "INT8 attention, first and last full", Plan("a", attention("int8", (first, last)))
    for name, rules in spared.items():
        yield f"8-bit layers{name}", Plan("l", None, linear=layers(rules))
    for name, rules in {**spared, ", first half full": (Rule("full", end=0.5),)}.items():
        plan = Plan("b", attention("int8"), linear=layers(rules))
        yield f"INT8 attention in all steps, 8-bit layers{name}", plan
    both = (first, last)
    plan = Plan("c", attention("int8", both), linear=layers(both))
    yield "INT8 attention and 8-bit layers, first and last full", plan


def arguments(i: int, steps: int, guidance: float, size: int = 64, frames: int = 17) -> Any:
    """Return the i-th job as the pipeline takes it."""
    changed = {"num_inference_steps": steps, "guidance_scale": guidance}
    return {**described(i), **changed, "height": size, "width": size, "num_frames": frames}


def decibels(
    pipe: Any, steps: int, guidance: float, jobs: int, only: list[str]
) -> Iterator[Figure]:
    """Print and yield what each plan keeps, or those whose name ends with one of ``only``."""
    asked = [arguments(i, steps, guidance) for i in range(jobs)]
    plain = [call(pipe, one) for one in asked]
    for name, plan in plans(steps):
        if only and not name.endswith(tuple(only)):
            continue
        with accel.patched(pipe, plan=plan):
            found = [psnr(a, call(pipe, one)) for a, one in zip(plain, asked, strict=True)]
        mean, lowest = float(np.mean(found)), min(found)
        print(
            f"{steps} steps, guidance {guidance:g}: {mean:5.1f} ({lowest:4.1f}) {name}", flush=True
        )
        where = f"few steps/{steps}/guidance {guidance:g}/{name}"
        yield Figure(f"{where}/psnr", mean, "dB")
        yield Figure(f"{where}/lowest psnr", lowest, "dB")


@contextmanager
def timed(owner: Any, name: str, spent: dict[str, float], part: str) -> Iterator[None]:
    """Count a method's seconds under a part of the run."""
    own = getattr(owner, name)

    def run(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return own(*args, **kwargs)
        finally:
            spent[part] += time.perf_counter() - start

    with patch.object(owner, name, run):
        yield


def parts(pipe: Any, asked: Any, store: Store | None) -> dict[str, float]:
    """Return the seconds of each part of one run, prompts taken from ``store`` if there is one."""
    spent = {"text encoding": 0.0, "denoiser": 0.0, "decoding": 0.0}
    job = Job(asked["prompt"], steps=asked["num_inference_steps"])
    with (
        nullcontext() if store is None else cached(pipe, store, job),
        timed(pipe, "encode_prompt", spent, "text encoding"),
        timed(pipe.transformer, "forward", spent, "denoiser"),
        timed(pipe.vae, "decode", spent, "decoding"),
    ):
        start = time.perf_counter()
        call(pipe, asked)
        whole = time.perf_counter() - start
    return {**spent, "the rest": whole - sum(spent.values()), "whole run": whole}


def shares(pipe: Any, asked: Any, rounds: int) -> Iterator[Figure]:
    """Print and yield the seconds of each part and its share, medians of the rounds."""
    steps, guidance = asked["num_inference_steps"], asked["guidance_scale"]
    with tempfile.TemporaryDirectory() as folder:
        for how, store in (("prompt encoded", None), ("from cache", Store(Path(folder)))):
            rows = [parts(pipe, asked, store) for _ in range(rounds + 1)][1:]
            for part in rows[0]:
                value = statistics.median(row[part] for row in rows)
                share = statistics.median(row[part] / row["whole run"] for row in rows)
                where = f"few steps/{steps}/guidance {guidance:g}/{how}/{part}"
                print(f"{where}: {value:.3f} s, {share:.0%}", flush=True)
                yield Figure(f"{where}/share", share, "")


def speed(asked: Any, rounds: int) -> Iterator[Figure]:
    """Print and yield how many times as fast as plain each preset is, all in turn."""
    steps, guidance = asked["num_inference_steps"], asked["guidance_scale"]
    pipes = pipelines(lambda: load("tiny"), PRESETS)
    seconds = in_turn(pipes, lambda pipe, i: call(pipe, asked), rounds)
    for name in PRESETS:
        ratios = [a / b for a, b in zip(seconds["plain"], seconds[name], strict=True)]
        middle = statistics.median(ratios)
        where = f"few steps/{steps}/guidance {guidance:g}/{name}/speedup"
        print(f"{where}: {middle:.2f}x ({min(ratios):.2f} to {max(ratios):.2f})", flush=True)
        yield Figure(where, middle, "x")
    for name in PRESETS:
        print(accel.report(pipes[name]))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 3.0])
    parser.add_argument("--jobs", type=int, default=6)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--shares", action="store_true")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--only", nargs="+", default=[], metavar="END", help="ends of plans' names")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    print(environment())
    pipe, found = quiet(load("tiny")), list[Figure]()
    for steps in args.steps:
        for guidance in args.guidance:
            asked = arguments(0, steps, guidance, args.size, args.frames)
            if args.shares:
                found += shares(pipe, asked, args.rounds)
            if args.speed:
                found += speed(asked, args.rounds)
            if not (args.shares or args.speed):
                found += decibels(pipe, steps, guidance, args.jobs, args.only)
    if args.json:
        append(args.json, found, weights=weights_of("tiny"))


if __name__ == "__main__":
    main()
