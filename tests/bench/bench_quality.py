"""What quantized attention costs by every metric of ``accel.quality``, on the embedded model.

    python tests/bench/bench_quality.py [--lpips-weights FILE] [--json FILE]

The jobs of ``samples/demo.yaml`` are rendered with plain attention and with INT8, INT6 and INT4 at
every site and step, unguarded, queries smoothed; nothing else is on. Each metric is the mean over
the jobs; behind it stands the worst job's. "plain" is the reference's own value, or its value
beside itself. MS-SSIM's five scales need 176 x 176 pixels; in smaller videos as many scales as fit
are measured, and the row says so.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rows import ROOT, append, flat, weights_of
from tqdm import tqdm

import accel
from accel import quality
from accel.pipelines.batch.jobfile import read
from accel.pipelines.generate import generate
from accel.pipelines.job import Job
from accel.pipelines.load import load

PRECISIONS = ("int8", "int6", "int4")
UNITS = {"psnr": "dB", "jod": "JOD", "vmaf": "of 100"}


def attention(precision: str, impl: str) -> accel.Plan:
    """A plan that quantizes attention everywhere and does nothing else."""
    config = accel.AttentionConfig(precision, impl=impl, smooth_q=True, check_rows=0)
    return accel.Plan("", config)


def scales(side: int) -> int:
    """As many scales of MS-SSIM as fit into a picture of that smaller side."""
    return next(n for n in (5, 4, 3, 2, 1) if side >= 11 * 2 ** (n - 1))


def metrics(side: int, weights: Path | None) -> list[quality.Metric]:
    """All metrics, those with settings set for this size."""
    known = quality.known_metrics()
    if (fit := scales(side)) < 5:
        known["ms_ssim"] = quality.Metric(
            "ms_ssim", lambda a, b: quality.ms_ssim(a, b, fit), f"MS-SSIM of {fit} scales"
        )
    if weights is not None:
        known["lpips"] = quality.lpips(weights)
    return list(known.values())


def measured(
    chosen: Sequence[quality.Metric], plain: list[np.ndarray], seen: list[np.ndarray]
) -> dict[str, tuple[float, float]]:
    """Mean and worst value of each metric that all jobs have."""
    rows = [quality.scores(a, b, chosen) for a, b in zip(plain, seen, strict=True)]
    found = {}
    for column in zip(*rows, strict=True):
        metric = column[0].metric
        values = [score.value for score in column if score.value is not None]
        if len(values) == len(column):
            worst = max if metric.higher_is_better is False else min
            found[metric.name] = float(np.mean(values)), worst(values)
    return found


def main() -> None:
    """Measure and print; with ``--json`` also write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--impl", default="cpu", choices=["cpu", "gpu", "reference"])
    parser.add_argument("--lpips-weights", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    pipe = load("tiny")
    pipe.set_progress_bar_config(disable=True)
    jobs = [replace(job, preset=None) for job in read(ROOT / "samples/demo.yaml")
            if isinstance(job, Job)]  # fmt: skip
    videos: dict[str, list[np.ndarray]] = {}
    for name in ("plain", *PRECISIONS):
        for job in tqdm(jobs, name):
            if name == "plain":
                frames = generate(pipe, job).frames
            else:
                with accel.patched(pipe, plan=attention(name, args.impl)):
                    frames = generate(pipe, job).frames
            videos.setdefault(name, []).append(frames)
    count, height, width = videos["plain"][0].shape[:3]
    print(f"{len(jobs)} jobs, {count} frames of {width} x {height}; mean (worst job)")
    chosen = metrics(min(height, width), args.lpips_weights)
    found = {name: measured(chosen, videos["plain"], seen) for name, seen in videos.items()}
    for metric in chosen:
        if metric.name not in found["plain"]:
            print(f"not measured: {metric.needs()}")
    titles = {metric.name: metric.title or metric.name for metric in chosen}
    print(f"| | {' | '.join(found)} |\n|---|{'---|' * len(found)}")
    for name in found["plain"]:
        cells = (f"{mean:.5g} ({worst:.5g})" for mean, worst in (v[name] for v in found.values()))
        print(f"| {titles[name]} | {' | '.join(cells)} |")
    if args.json:
        means = {run: {k: mean for k, (mean, _) in v.items()} for run, v in found.items()}
        append(args.json, flat(means, "quality", UNITS), weights=weights_of("tiny"))


if __name__ == "__main__":
    main()
