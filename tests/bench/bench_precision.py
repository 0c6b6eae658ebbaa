"""Is a calibrated plan better than one precision everywhere, and is its error predicted?

    python tests/bench/bench_precision.py [--jobs 10] [--plans 30] [--probes 30] [--json FILE]
    python tests/bench/bench_precision.py --time

The embedded model is calibrated on some jobs; everything else is measured on others. First a table
of plans: PSNR to the unquantized output (mean over jobs) beside the time of the sites, as it was
measured in the calibration, relative to full precision's. ``--linear``: 8-bit linear layers too.
Half of the attention work runs in the low precision, chosen by layer, by timestep, by both, and by
SageAttention2's score instead of predicted damage.

What such a plan gains is its PSNR over the best plan of equal cost that chooses nothing. No uniform
plan costs as much as a mix of two precisions, so there are two: the best uniform plan that costs no
more, and the mix itself with every other site and step low, which costs exactly as much (a
chequerboard and its complement). "any, at int8's cost" is the other way round: the best predicted
plan of all precisions that costs no more than uniform INT8, against that.

Then random plans: rank correlation (Spearman) of predicted with measured PSNR, and, as a measure of
what the jobs let one know, that between two halves of the jobs. A named implementation quantizes
calls that "auto" would leave to torch as too short to profit. All jobs of a plan are one batch.

``--time``: how much longer a run takes while errors are measured, beside the same run without.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from rows import append, flat, weights_of
from tqdm import tqdm

from accel.calibration import choose
from accel.calibration.precision import calibrate
from accel.calibration.table import ErrorTable
from accel.config import AttentionConfig, LinearConfig
from accel.core.quality import psnr
from accel.core.run_pipeline import to_uint8
from accel.patching import patched
from accel.pipelines.generate import generate, motion_latents
from accel.pipelines.job import Job
from accel.pipelines.load import load
from accel.plans import Plan

PROMPTS = (
    "a red circle on a striped blue background",
    "a yellow crescent on a dotted purple background",
    "a white square and a green triangle on a mottled grey background",
    "an orange triangle on a cloudy green background",
    "a blue square on a dotted orange background",
)
STEPS, CALIBRATION, PROBES = 20, 10, 30
UNITS = {
    "/cost": "of full precision's time",
    "correlation": "rank correlation",
    "halves": "rank correlation",
    "": "dB",
}
MOST = 100.0  # dB that count as no difference


def job(seed: int) -> Job:
    """A job; every other one moves its camera."""
    motion = {"camera": {"pan": [1.5 * (-1) ** (seed // 2), 0.5]}} if seed % 2 else None
    prompt = PROMPTS[seed % len(PROMPTS)]
    plain = Job(prompt, seed=seed, steps=STEPS, preset=None, motion=motion, strength=0.1)
    return plain.resolved()


def videos(pipe, seeds: range) -> np.ndarray:
    """Frames uint8 [J, F, H, W, 3] of the jobs, in one batch, under whatever patch is on."""
    jobs = [job(seed) for seed in seeds]
    first = jobs[0]
    shape = next(motion_latents(pipe, j) for j in map(job, range(2)) if j.motion).shape
    noise = [
        motion_latents(pipe, j) if j.motion
        else torch.randn(shape, generator=torch.Generator().manual_seed(j.seed))
        for j in jobs
    ]  # fmt: skip
    output = pipe(
        prompt=[j.prompt for j in jobs], latents=torch.cat(noise), output_type="np",
        num_inference_steps=STEPS, guidance_scale=first.guidance, height=first.height,
        width=first.width, num_frames=first.frames, max_sequence_length=32,
    )  # fmt: skip
    return to_uint8(output.frames)


def unchecked(impl: str) -> Plan:
    """The options of all plans: without the check that sends a site back to full precision."""
    attention = AttentionConfig(impl=impl, smooth_q=True, check_rows=0)
    return Plan("", attention, linear=LinearConfig(impl=impl, check_rows=0))


class Bench:
    """Measures choices on a fixed set of jobs against their unquantized videos."""

    def __init__(self, pipe, table: ErrorTable, impl: str, seeds: range) -> None:
        self.pipe, self.table, self.impl, self.seeds = pipe, table, impl, seeds
        self.plain = videos(pipe, seeds)

    def psnr(self, choice: choose.Choice) -> np.ndarray:
        """PSNR of each job [J], in dB."""
        plan = choose.to_plan(self.table, choice, like=unchecked(self.impl))
        with patched(self.pipe, plan=plan):
            found = videos(self.pipe, self.seeds)
        return np.array([min(psnr(a, b), MOST) for a, b in zip(self.plain, found, strict=True)])


def choices(table: ErrorTable) -> dict[str, list[choose.Choice]]:
    """The plans of the table, by name; of several the mean is taken."""
    rows = {p: [choose.uniform(table, p)] for p in ("int8", "int6", "int4")}
    squares = np.add.outer(np.arange(len(table.sites)), np.arange(len(table.sigmas))) % 2
    for low in ("int6", "int4"):
        mixes = [np.where(squares == odd, low, "int8").astype(object) for odd in (0, 1)]
        rows |= {
            f"half {low}, every other": mixes,
            f"half {low}, by layer": [choose.by_share(table, 0.5, low=low, axis="site")],
            f"half {low}, by timestep": [choose.by_share(table, 0.5, low=low, axis="step")],
            f"half {low}, by both": [choose.by_share(table, 0.5, low=low)],
            f"half {low}, by both, score": [
                choose.by_share(table, 0.5, low=low, rank="score", phases=None)
            ],
        }
    int8 = choose.relative_cost(table, rows["int8"][0])
    rows["any, at int8's cost"] = [choose.by_cost(table, int8)]
    return rows


def measured_rows(bench: Bench) -> dict[str, dict[str, float]]:
    """Cost, predicted and measured PSNR and gain of every plan; printed as they are found."""
    print(f"{'plan':28} {'cost':>6} {'predicted':>9} {'measured':>9}  dB PSNR (gain)")
    rows: dict[str, dict[str, float]] = {}
    for name, alike in choices(bench.table).items():
        row = {
            "cost": choose.relative_cost(bench.table, alike[0]),
            "predicted": float(np.mean([choose.predicted(bench.table, c) for c in alike])),
            "measured": float(np.mean([bench.psnr(c).mean() for c in alike])),
        }
        rows[name] = row
        cheap = [r["measured"] for n, r in rows.items()
                 if n in bench.table.precisions and r["cost"] <= row["cost"] + 0.005]  # fmt: skip
        even = rows.get(name.split(",")[0] + ", every other")
        row["gain"] = row["measured"] - max([*cheap, *([even["measured"]] if even else [])])
        print(f"{name:28} {row['cost']:6.3f} {row['predicted']:9.2f} {row['measured']:9.2f}"
              f"  ({row['gain']:+.1f})", flush=True)  # fmt: skip
    return rows


def random_choice(table: ErrorTable, rng: np.random.Generator) -> choose.Choice:
    """Three phases; in each, every site has a precision of its own, from a mix of its own."""
    cuts = sorted(rng.choice(np.arange(1, len(table.sigmas)), 2, replace=False))
    lengths = np.diff([0, *cuts, len(table.sigmas)])
    names = np.array(["full", "int8", "int6", "int4"], object)
    columns = [rng.choice(names, len(table.sites), p=rng.dirichlet(np.ones(4))) for _ in lengths]
    return np.repeat(np.stack(columns, 1), lengths, 1)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's."""
    ranks = [np.argsort(np.argsort(x)) for x in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def measured_random(bench: Bench, plans: int) -> dict[str, object]:
    """Predicted and measured PSNR of random plans and how well their ranks agree; printed."""
    rng = np.random.default_rng(0)
    random = [random_choice(bench.table, rng) for _ in range(plans)]
    predicted = np.array([choose.predicted(bench.table, choice) for choice in random])
    found = np.array([bench.psnr(choice) for choice in tqdm(random, "random plans")])
    rank = rank_correlation(predicted, found.mean(1))
    halves = rank_correlation(found[:, ::2].mean(1), found[:, 1::2].mean(1))
    off = found.mean(1) - predicted
    print(
        f"{plans} random plans, {found.mean(1).min():.1f} to {found.mean(1).max():.1f} dB: "
        f"rank correlation of predicted and measured {rank:.3f}, of two halves of the jobs "
        f"{halves:.3f}; "
        f"measured minus predicted {off.mean():+.1f} +- {off.std():.1f} dB"
    )
    return {"predicted": predicted.tolist(), "measured": found.tolist(),
            "rank correlation": rank, "between halves": halves}  # fmt: skip


def time_calibration(pipe, impl: str, linear: bool, repeats: int = 7) -> None:
    """Print how many times its usual time a run takes while errors are measured."""

    def plain(p) -> np.ndarray:
        return generate(p, job(0)).frames

    ratios = []
    plain(pipe)
    for _ in range(repeats):
        start = time.perf_counter()
        plain(pipe)
        middle = time.perf_counter()
        calibrate(pipe, [plain], impl=impl, linear=linear, probe_runs=0, progress=False)
        ratios.append((time.perf_counter() - middle) / (middle - start))
    print(
        f"a run in which errors are measured takes {statistics.median(ratios):.2f} times its "
        f"usual time ({min(ratios):.2f} to {max(ratios):.2f}, {repeats} times in turn)"
    )


def calibrated(pipe, impl: str, linear: bool, probe_runs: int, file: Path | None) -> ErrorTable:
    """The table in ``file``; if there is none it is measured, and saved there."""
    if file is not None and file.exists():
        return ErrorTable.load(file)
    runs = [lambda p, s=s: generate(p, job(s)).frames for s in range(1000, 1000 + CALIBRATION)]
    table = calibrate(pipe, runs, impl=impl, linear=linear, probe_runs=probe_runs)
    if file is not None:
        table.save(file)
    return table


def main() -> None:
    """Measure and print; with ``--json`` also write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--jobs", type=int, default=10)
    parser.add_argument("--plans", type=int, default=30)
    parser.add_argument("--impl", default="cpu", choices=["auto", "cpu", "gpu", "reference"])
    parser.add_argument("--linear", action="store_true", help="linear layers are sites too")
    parser.add_argument("--probes", type=int, default=PROBES, help="runs of mixed plans")
    parser.add_argument("--time", action="store_true", help="only time the measurement of errors")
    parser.add_argument("--table", type=Path, help="calibration to use, or to write if missing")
    parser.add_argument("--parts", nargs="*", default=("table", "random"), help="what to measure")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    pipe = load("tiny")
    pipe.set_progress_bar_config(disable=True)
    if args.time:
        return time_calibration(pipe, args.impl, args.linear)
    table = calibrated(pipe, args.impl, args.linear, args.probes, args.table)
    print(
        f"calibrated on {table.jobs} jobs; one job under one plan is "
        f"predicted within {table.spread:.1f} dB (root mean square)"
    )
    if not args.parts:
        return
    bench, found = Bench(pipe, table, args.impl, range(args.jobs)), {}
    if "table" in args.parts:
        found["plans"] = measured_rows(bench)
    if "random" in args.parts:
        found["random"] = measured_random(bench, args.plans)
    if args.json:
        append(args.json, flat(found, "precision", UNITS), weights=weights_of("tiny"))


if __name__ == "__main__":
    main()
