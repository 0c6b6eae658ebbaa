"""Predicted seconds of whole calls beside measured ones, on a quiet machine.

    python tests/bench/bench_time_model.py [--steps 12] [--rounds 3] [--models tiny wide ...]
        [--sizes 64x64x17 ...] [--json FILE]

"tiny" is the embedded model; the others have its VAE and text encoder and a random denoiser with
more channels. For each model and size all plans run in turn, a call to warm up before each one that
is timed, and the median is compared with the prediction, which saw none of these runs. Step rehash
may compute more steps than foreseen: predictions are for the steps that were computed. Measured
tables are kept in the user's cache: ``XDG_CACHE_HOME=$(mktemp -d)`` measures them anew.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from rows import Figure, append, weights_of

import accel
from accel import AttentionConfig, LinearConfig, Plan, RehashConfig
from accel.kernels.dispatch import environment
from accel.pipelines.load import load

WIDE: dict[str, dict[str, int]] = {  # changes of the embedded denoiser's configuration
    "tiny": {},
    "wide": {"num_attention_heads": 8, "ffn_dim": 2048, "num_layers": 6},
    "wan-1.3b, 3 layers": {
        "num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 3,
    },
}  # fmt: skip
PLANS: dict[str, Plan | None] = {
    "plain": None,
    "fast": Plan.preset("fast"),
    "INT8 attention": Plan("attention", AttentionConfig("int8")),
    "8-bit linear layers": Plan("linear", None, linear=LinearConfig()),
    "step rehash": Plan("rehash", None, rehash=RehashConfig(speedup=1.9)),
}
SIZES = ("64x64x17", "128x96x17", "192x192x17", "256x256x33")
NEAR = 0.2  # of the measured seconds


def pipeline(name: str) -> Any:
    """Return the embedded pipeline with a denoiser of other sizes."""
    pipe = load("tiny")
    pipe.set_progress_bar_config(disable=True)
    if WIDE[name]:
        torch.manual_seed(0)
        config = {**pipe.transformer.config, **WIDE[name]}
        pipe.transformer = diffusers.WanTransformer3DModel.from_config(config).eval()
    return pipe


def seconds(pipe: Any, job: SimpleNamespace) -> float:
    """Return what one call takes."""
    start = time.perf_counter()
    pipe(
        "a red circle", width=job.width, height=job.height, num_frames=job.frames,
        num_inference_steps=job.steps, generator=torch.Generator().manual_seed(0),
        output_type="np",
    )  # fmt: skip
    return time.perf_counter() - start


def measured(
    pipe: Any, job: SimpleNamespace, rounds: int
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Return seconds of calls and the steps that they computed, by plan, the plans in turn."""
    found: dict[str, list[float]] = {name: [] for name in PLANS}
    computed = dict.fromkeys(PLANS, job.steps)
    for _ in range(rounds):
        for name, plan in PLANS.items():
            with nullcontext() if plan is None else accel.patched(pipe, plan=plan):
                seconds(pipe, job)  # trials and packed weights are of a first call
                found[name].append(seconds(pipe, job))
                if plan is not None and (rehash := accel.report(pipe).rehash) is not None:
                    computed[name] = len(rehash.keys) or job.steps
    return found, computed


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=WIDE, default=list(WIDE))
    parser.add_argument("--sizes", nargs="+", default=SIZES)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    print(environment())
    ratios: list[float] = []
    for model in args.models:
        pipe = pipeline(model)
        for size in args.sizes:
            width, height, frames = map(int, size.split("x"))
            job = SimpleNamespace(width=width, height=height, frames=frames, steps=args.steps)
            start = time.perf_counter()
            found = {name: accel.predict_time(pipe, job, plan) for name, plan in PLANS.items()}
            print(f"{model}, {size}: predicted in {time.perf_counter() - start:.1f} s")
            calls, computed = measured(pipe, job, args.rounds)
            for name, took in calls.items():
                predicted = found[name].with_computed(computed[name])
                ratio = predicted / statistics.median(took)
                ratios.append(ratio)
                steps = f"{computed[name]} of {job.steps} steps, {found[name].computed} foreseen"
                print(
                    f"  {name:<20} predicted {predicted:8.2f} s, measured "
                    f"{statistics.median(took):8.2f} ({min(took):.2f} to {max(took):.2f}), "
                    f"ratio {ratio:.2f}  ({steps})",
                    flush=True,
                )
            for note in found["plain"].notes:
                print(f"  note: {note[:300]}")
    near = sum(1 - NEAR <= ratio <= 1 + NEAR for ratio in ratios)
    print(
        f"predicted / measured: {min(ratios):.2f} to {max(ratios):.2f}, median "
        f"{statistics.median(ratios):.2f}; {near} of {len(ratios)} within {NEAR:.0%}"
    )
    if args.json:
        share = Figure("time model/within 20 %", near / len(ratios), "share")
        median = Figure("time model/median", statistics.median(ratios), "x")
        append(args.json, [share, median], weights=weights_of("tiny"))


if __name__ == "__main__":
    main()
