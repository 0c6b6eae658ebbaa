"""Is a preset ever slower than not patching, and what does it cost? Whole renders, in turn.

    python tests/bench/bench_presets.py [--rounds 10] [--only NAME ...] [--quality 10] [--json FILE]

The embedded model in three sizes, and three tiny pipelines of random weights (Wan, Stable
Diffusion, Flux), whose layers are too small to gain anything. Every round renders one job plain and
under each preset, with a pipeline of each that stays patched; a figure is the median over the
rounds of the ratio to the plain render of the same round, in CPU seconds, since other work on the
machine changes the clock's. The first round measures which kernels pay and does not count.
``--quality``: PSNR to the plain run of so many jobs of the embedded model, mean and lowest, for
every size.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rows import Figure, append, weights_of

import accel
from accel.core.quality import psnr
from accel.pipelines.generate import generate
from accel.pipelines.job import Job, make_job
from accel.pipelines.load import load

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]
from helpers.tiny_pipelines import RECIPES  # noqa: E402

PRESETS = ("lossless", "balanced", "fast")
PROMPTS = (
    "a red circle moves right", "a blue square falls down", "a green triangle turns",
    "a yellow crescent on a dotted purple background",
    "a white square and a green triangle on a mottled grey background",
)  # fmt: skip
SIZES = {"64x64x9": (64, 9, 20), "128x128x17": (128, 17, 20), "192x192x17": (192, 17, 12)}
TINY = {"tiny wan": "wan", "tiny sd": "sd", "tiny flux": "flux"}
Build = Callable[[], Any]
Render = Callable[[Any, int], np.ndarray]


def embedded(size: int, frames: int, steps: int) -> Render:
    """Render the embedded model's job of that number."""
    job = Job("", preset=None, width=size, height=size, frames=frames, steps=steps)
    return lambda pipe, i: (
        generate(pipe, replace(job, prompt=PROMPTS[i % len(PROMPTS)], seed=i + 1)).frames
    )


def models(only: list[str]) -> Iterator[tuple[str, Build, Render]]:
    """Each model's name, what makes its pipeline, and how it renders."""
    wanted = {name for name in (*SIZES, *TINY) if not only or name in only}
    for name, size in SIZES.items():
        if name in wanted:
            yield name, lambda: load("tiny"), embedded(*size)
    for name, recipe in TINY.items():
        if name in wanted:
            job = make_job({**RECIPES[recipe].job, "preset": None, "steps": 20})
            yield name, RECIPES[recipe], lambda pipe, i, job=job: generate(pipe, job).frames


def quiet(pipe: Any) -> Any:
    """The pipeline, without its progress bar."""
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pipelines(build: Build, presets: Sequence[str] = PRESETS) -> dict[str, Any]:
    """A pipeline as it is, by the name "plain", and one patched with each preset."""
    pipes = {name: quiet(build()) for name in ("plain", *presets)}
    for name in presets:
        accel.patch(pipes[name], name)
    return pipes


def in_turn(pipes: dict[str, Any], render: Render, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each round, by the pipelines' names."""
    seconds: dict[str, list[float]] = {name: [] for name in pipes}
    for turn in range(rounds + 1):
        for name, pipe in pipes.items():
            start = time.process_time()
            render(pipe, 0)
            seconds[name] += [time.process_time() - start] if turn else []
    return seconds


def measured(name: str, seconds: dict[str, list[float]]) -> Iterator[Figure]:
    """Print and yield how many times as fast as plain each preset is."""
    for preset in PRESETS:
        ratios = [a / b for a, b in zip(seconds["plain"], seconds[preset], strict=True)]
        middle = statistics.median(ratios)
        print(
            f"{name:12} {preset:9} {middle:.2f}x ({min(ratios):.2f} to {max(ratios):.2f}), "
            f"plain {statistics.median(seconds['plain']):.2f} s",
            flush=True,
        )
        yield Figure(f"presets/{name}/{preset}/speedup", middle, "x")


def decibels(name: str, pipe: Any, render: Render, jobs: int) -> Iterator[Figure]:
    """Print and yield the PSNR of the presets that change the result."""
    plain = [render(pipe, i) for i in range(jobs)]
    for preset in PRESETS[1:]:
        with accel.patched(pipe, preset):
            found = [psnr(plain[i], render(pipe, i)) for i in range(jobs)]
        print(f"{name:12} {preset:9} {np.mean(found):.1f} dB, lowest {min(found):.1f}", flush=True)
        yield Figure(f"presets/{name}/{preset}/psnr", float(np.mean(found)), "dB")
        yield Figure(f"presets/{name}/{preset}/lowest psnr", min(found), "dB")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", nargs="*", default=[], choices=[*SIZES, *TINY])
    parser.add_argument("--quality", type=int, default=0, metavar="JOBS")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found: list[Figure] = []
    for name, build, render in models(args.only):
        if args.rounds:
            found += measured(name, in_turn(pipelines(build), render, args.rounds))
        if args.quality and name in SIZES:
            found += decibels(name, quiet(build()), render, args.quality)
    if args.json:
        append(args.json, found, weights=weights_of("tiny"))


if __name__ == "__main__":
    main()
