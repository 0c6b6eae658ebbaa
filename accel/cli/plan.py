"""``accel plan``: the fastest plan that keeps a quality and fits a memory, found by running it."""

from __future__ import annotations

import argparse
import sys

from accel.calibration.whole_plans import search_plan
from accel.cli.one_model import jobs_of_one_model, plain_run
from accel.core.units import parse_bytes
from accel.core.validate import number
from accel.pipelines.load import load
from accel.pipelines.paths import user_path
from accel.planning import within
from accel.plans import Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``accel plan``."""
    parser.add_argument("jobfiles", nargs="+", metavar="JOBFILE", help="jobs of one model")
    parser.add_argument(
        "--quality", type=float, metavar="DB",
        help="PSNR to the model's own output that 9 of 10 jobs like these should keep",
    )  # fmt: skip
    parser.add_argument("--memory", metavar="SIZE", help="memory that a job may take, such as 8GiB")
    parser.add_argument("--out", type=user_path, metavar="FILE", help="write the plan as JSON")


def run(args: argparse.Namespace) -> int:
    """Run a parsed command line and return the exit code.

    Raises ValueError or OSError, which mean exit code 2.
    """
    if args.quality is None and args.memory is None:
        raise ValueError("give --quality DB, --memory SIZE, or both")
    if args.quality is not None:
        number("--quality", args.quality, 1.0, 99.0)
    if args.memory is not None:
        parse_bytes(args.memory)
    model, jobs = jobs_of_one_model("plan for", args.jobfiles)
    if args.quality is not None and len(jobs) < 2:
        raise ValueError(f"a plan by quality needs two jobs or more, got {len(jobs)}")
    pipe, found = load(model), Plan("", attention=None)
    if args.memory is not None:
        within(pipe, jobs[0], args.memory, found)  # what cannot fit is known before anything runs
    if args.quality is not None:
        search = search_plan(
            pipe, [plain_run(job) for job in jobs], args.quality,
            say=lambda text: print(text, file=sys.stderr),
        )  # fmt: skip
        print(search)
        found = search.plan
    if args.memory is not None:
        found = within(pipe, jobs[0], args.memory, found)
        slices = 1 if found.slicing is None else found.slicing.slices
        print(f"within {args.memory}: {slices} slices (simulated)")
    if args.out is not None:
        found.save(args.out)
        print(args.out)
    return 0
