"""Is a calibrated plan better than one precision everywhere, and is its error predicted?

    python tests/bench/bench_precision.py [--jobs 10] [--plans 30] [--impl cpu] [--json FILE]

The embedded model is calibrated on a few jobs; everything else is measured on others. First a table
of plans: PSNR to the unquantized output (mean over jobs) beside attention's relative cost
(``accel.choose.COST``: on a CPU six bits cost what four cost). Half of the attention work runs in
the low precision, chosen by layer, by timestep, by both, and by SageAttention2's score
instead of measured damage. Then random plans: rank correlation (Spearman) of predicted with
measured PSNR. A named implementation quantizes calls that "auto" would leave to torch as too short
to profit.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from accel import choose
from accel.calibrate import calibrate
from accel.calibration import ErrorTable
from accel.patch import patched
from accel.pipelines.generate import generate
from accel.pipelines.job import Job
from accel.pipelines.load import load
from accel.quality import psnr

PROMPTS = (
    "a red circle on a striped blue background",
    "a yellow star on a dotted purple background",
    "a white square and a green triangle on a checkered grey background",
    "an orange triangle on a cloudy green background",
    "a blue square on a dotted orange background",
)
STEPS, CALIBRATION = 20, 4


def video(pipe: object, seed: int) -> np.ndarray:
    """Frames of a job under whatever patch is on; every other one moves its camera."""
    motion = {"camera": {"pan": [1.5 * (-1) ** (seed // 2), 0.5]}} if seed % 2 else None
    prompt = PROMPTS[seed % len(PROMPTS)]
    job = Job(prompt, seed=seed, steps=STEPS, preset=None, motion=motion, strength=0.1)
    return generate(pipe, job).frames


class Bench:
    """Measures choices on a fixed set of jobs against their unquantized videos."""

    def __init__(self, pipe: object, table: ErrorTable, impl: str, seeds: range) -> None:
        self.pipe, self.table, self.impl, self.seeds = pipe, table, impl, seeds
        self.plain = {s: video(pipe, s) for s in tqdm(seeds, "unquantized")}

    def psnr(self, choice: choose.Choice, seeds: range | None = None) -> float:
        """Mean PSNR of the jobs, in dB."""
        plan = choose.to_plan(self.table, choice, impl=self.impl, smooth_q=True, check_rows=0)
        found = []
        for seed in seeds or self.seeds:
            with patched(self.pipe, plan=plan):
                found.append(min(psnr(self.plain[seed], video(self.pipe, seed)), 100.0))
        return float(np.mean(found))


def choices(table: ErrorTable) -> dict[str, choose.Choice]:
    """The plans of the table, by name."""
    rows = {p: choose.uniform(table, p) for p in ("int8", "int6", "int4")}
    for low in ("int6", "int4"):
        rows |= {
            f"half {low}, by layer": choose.by_share(table, 0.5, low=low, axis="site"),
            f"half {low}, by timestep": choose.by_share(table, 0.5, low=low, axis="step"),
            f"half {low}, by both": choose.by_share(table, 0.5, low=low),
            f"half {low}, by both, score": choose.by_share(
                table, 0.5, low=low, rank="score", phases=None
            ),
        }
    return rows


def random_choice(table: ErrorTable, rng: np.random.Generator) -> choose.Choice:
    """Three phases; in each, every site has a precision of its own, from a mix of its own."""
    cuts = sorted(rng.choice(np.arange(1, len(table.sigmas)), 2, replace=False))
    lengths = np.diff([0, *cuts, len(table.sigmas)])
    names = np.array(["full", "int8", "int6", "int4"], object)
    columns = [rng.choice(names, len(table.sites), p=rng.dirichlet(np.ones(4))) for _ in lengths]
    return np.repeat(np.stack(columns, 1), lengths, 1)


def rank_correlation(a: list[float], b: list[float]) -> float:
    """Spearman's."""
    ranks = [np.argsort(np.argsort(x)) for x in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def main() -> None:
    """Measure and print; with ``--json`` also write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--jobs", type=int, default=10)
    parser.add_argument("--plans", type=int, default=30)
    parser.add_argument("--impl", default="cpu", choices=["auto", "cpu", "gpu", "reference"])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    pipe = load("tiny")
    runs = [lambda p, s=s: video(p, s) for s in range(1000, 1000 + CALIBRATION)]
    table = calibrate(pipe, runs, impl=args.impl, sensitivity=CALIBRATION)
    bench = Bench(pipe, table, args.impl, range(args.jobs))
    rows = {}
    print(f"{'plan':28} {'cost':>6} {'predicted':>9} {'measured':>9}  dB PSNR")
    for name, choice in choices(table).items():
        cost, guess = choose.relative_cost(table, choice), choose.predicted(table, choice)
        rows[name] = {"cost": cost, "predicted": guess, "measured": bench.psnr(choice)}
        print(f"{name:28} {cost:6.2f} {guess:9.2f} {rows[name]['measured']:9.2f}", flush=True)
    rng, predicted, measured = np.random.default_rng(0), [], []
    for _ in tqdm(range(args.plans), "random plans"):
        choice = random_choice(table, rng)
        predicted.append(choose.predicted(table, choice))
        measured.append(bench.psnr(choice, range(min(4, args.jobs))))
    rank = rank_correlation(predicted, measured)
    print(f"{args.plans} random plans: rank correlation of predicted and measured {rank:.3f}")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        random = {"predicted": predicted, "measured": measured, "rank correlation": rank}
        args.json.write_text(json.dumps({"plans": rows, "random": random}, indent=2) + "\n")


if __name__ == "__main__":
    main()
