"""A plan searched on some jobs and held against others: the quality it keeps, and its speed.

python tests/bench/bench_plan_search.py [--quality 34] [--jobs 6] [--unseen 12]
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import accel
from accel.core.run_pipeline import call
from accel.kernels.dispatch import environment
from accel.pipelines.load import load

COLORS = ("red", "green", "blue", "yellow", "white")
SHAPES = ("circle", "square", "triangle", "crescent", "star")
GROUNDS = ("striped", "plain", "checkered")


def job(i: int) -> dict[str, Any]:
    """Return the i-th job of the embedded model."""
    shape = f"a {COLORS[i % 5]} {SHAPES[(2 * i + i // 5) % 5]}"
    ground = f"a {GROUNDS[i % 3]} {COLORS[(i + 2) % 5]} background"
    size = {"height": 64, "width": 64, "num_frames": 17, "num_inference_steps": 25}
    return {"prompt": f"{shape} on {ground}", "seed": 100 + i, **size}


def seconds(pipe: Any, i: int) -> tuple[float, Any]:
    start = time.perf_counter()
    frames = call(pipe, job(i))
    return time.perf_counter() - start, frames


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quality", type=float, default=34.0)
    parser.add_argument("--jobs", type=int, default=6)
    parser.add_argument("--unseen", type=int, default=12)
    args = parser.parse_args()
    print(environment())
    pipe = load("tiny")
    pipe.set_progress_bar_config(disable=True)
    found = accel.search_plan(pipe, [job(i) for i in range(args.jobs)], args.quality)
    print(found)
    decibels, gains = [], []
    for i in range(args.jobs, args.jobs + args.unseen):
        plain, expected = seconds(pipe, i)
        with accel.patched(pipe, plan=found.plan):
            took, frames = seconds(pipe, i)
        decibels.append(accel.quality.psnr(expected, frames))
        gains.append(plain / took)
    kept = sum(value >= args.quality for value in decibels)
    print(
        f"unseen jobs: {kept} of {args.unseen} keep {args.quality:g} dB, lowest "
        f"{min(decibels):.1f}; {statistics.median(gains):.2f}x as fast"
    )


if __name__ == "__main__":
    main()
