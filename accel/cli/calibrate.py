"""``accel calibrate``: reads job files; writes an error table, a plan and pictures."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch

from accel.calibration import choose
from accel.calibration.precision import calibrate
from accel.calibration.table import ErrorTable
from accel.cli.one_model import jobs_of_one_model, plain_run
from accel.config import AttentionConfig, Impl, LinearConfig
from accel.core.quality import psnr, ssim
from accel.core.validate import number
from accel.kernels.dispatch import ATTENTION, resolve
from accel.patching import patched
from accel.pipelines.job import JobError
from accel.pipelines.load import load
from accel.pipelines.paths import user_path
from accel.pipelines.pictures import frame_strip, heat_map
from accel.plans import Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``accel calibrate``."""
    parser.add_argument("jobfiles", nargs="+", metavar="JOBFILE", help="jobs of one model")
    parser.add_argument("--out", required=True, type=user_path, metavar="DIR", help="output folder")
    aim = parser.add_mutually_exclusive_group()
    aim.add_argument(
        "--quality", type=float, metavar="DB",
        help="make the fastest plan with this PSNR to the model's own output (35)",
    )  # fmt: skip
    aim.add_argument("--share", type=float, help="run this share of attention in INT4, 0 to 1")
    aim.add_argument("--bound", type=float, help="largest relative L1 error of a call")
    parser.add_argument(
        "--impl", default="auto", choices=["auto", "cpu", "gpu", "reference"],
        help="auto leaves short calls to torch",
    )  # fmt: skip
    parser.add_argument(
        "--merge", action="append", default=[], type=user_path, metavar="TABLE.json",
        help="tables of earlier calibrations of this model",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Run a parsed command line and return the exit code.

    Raises ValueError or OSError, which mean exit code 2.
    """
    model, jobs = jobs_of_one_model("calibrate", args.jobfiles)
    for name, most in (("share", 1.0), ("bound", 1e3), ("quality", 1e3)):
        if (value := getattr(args, name)) is not None:
            number(f"--{name}", value, 0.0, most)
    if args.bound == 0:
        raise ValueError("--bound must be a number above 0, got 0; 0.1 is a common one")
    _check_impl(args.impl)
    earlier = [ErrorTable.load(path) for path in args.merge]
    args.out.mkdir(parents=True, exist_ok=True)
    pipe, runs = load(model), [plain_run(job) for job in jobs]
    plain: list[np.ndarray] = []

    def first(pipe: Any) -> np.ndarray:
        frames = runs[0](pipe)
        plain[:] = plain or [frames]  # calibration begins with a run at full precision
        return frames

    try:
        table = calibrate(pipe, [first, *runs[1:]], impl=args.impl)
    except JobError as error:
        raise ValueError(str(error)) from error
    for other in earlier:
        table = table.merge(other)
    choice = _choice(table, args)
    table.save(args.out / "table.json")
    options = {"impl": args.impl}
    like = Plan("", AttentionConfig(smooth_q=True, **options), linear=LinearConfig(**options))
    plan = choose.to_plan(table, choice, like=like)
    plan.save(args.out / "plan.json")
    heat_map(table, choice).save(args.out / "precision.png", optimize=True)
    with patched(pipe, plan=plan):
        after = runs[0](pipe)
    frame_strip(plain[0], after).save(args.out / "frames.png", optimize=True)
    print(_summary(table, choice, args.impl, plain[0], after))
    for name in ("table.json", "plan.json", "precision.png", "frames.png"):
        print(args.out / name)
    return 0


def _check_impl(impl: Impl) -> None:
    """Raise ValueError, with the reason, for an implementation that cannot run here."""
    try:
        resolve(ATTENTION, impl, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def _choice(table: ErrorTable, args: argparse.Namespace) -> choose.Choice:
    if args.share is not None:
        return choose.by_share(table, args.share)
    if args.bound is not None:
        return choose.by_bound(table, args.bound)
    return choose.by_quality(table, 35.0 if args.quality is None else args.quality)


def _summary(
    table: ErrorTable, choice: choose.Choice, impl: Impl, before: np.ndarray, after: np.ndarray
) -> str:
    counts = {p: float(np.mean(choice == p)) for p in ("full", *table.precisions)}
    parts = ", ".join(f"{p} {share:.0%}" for p, share in counts.items() if share)
    within = "" if table.spread is None else f" (one job typically within {table.spread:.1f} dB)"
    return (
        f"{len(table.sites)} sites, {len(table.sigmas)} steps, {table.jobs} jobs, impl {impl}\n"
        f"plan: {parts}\n"
        f"PREDICTED: {choose.relative_cost(table, choice):.2f} of the time of these sites, "
        f"{choose.predicted(table, choice):.1f} dB PSNR{within}\n"
        f"measured on the first job: {psnr(before, after):.1f} dB PSNR, "
        f"SSIM {ssim(before, after):.4f}"
    )
