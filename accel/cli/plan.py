"""``accel plan``: the best plan for a quality, a speed and a memory, found by running plans."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

from accel.cli.one_model import jobs_of_one_model, plain_run
from accel.core.units import parse_bytes
from accel.core.validate import number
from accel.pipelines.fitting import load
from accel.pipelines.job import Job
from accel.pipelines.paths import user_path
from accel.planning.budgets import named, search_plan, within
from accel.planning.wishes import MOST_SPEED, Wishes
from accel.plans import Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``accel plan``."""
    parser.add_argument("jobfiles", nargs="+", metavar="JOBFILE", help="jobs of one model")
    parser.add_argument(
        "--quality", type=float, metavar="DB",
        help="PSNR to the model's own output that 9 of 10 jobs like these should keep",
    )  # fmt: skip
    parser.add_argument(
        "--speed", type=float, metavar="TIMES",
        help="at least so many times as fast as without a plan; then quality is what is searched",
    )  # fmt: skip
    parser.add_argument("--memory", metavar="SIZE", help="memory that a job may take, such as 8GiB")
    parser.add_argument("--out", type=user_path, metavar="FILE", help="write the plan as JSON")


def run(args: argparse.Namespace) -> int:
    """Run a parsed command line and return the exit code.

    Raises ValueError or OSError, which mean exit code 2.
    """
    if args.quality is None and args.memory is None and args.speed is None:
        raise ValueError("give --quality DB, --speed TIMES, --memory SIZE, or several")
    if args.quality is not None:
        number("--quality", args.quality, 1.0, 99.0)
    if args.speed is not None:
        number("--speed", args.speed, 1.0, MOST_SPEED)
    limit = None if args.memory is None else parse_bytes(args.memory)
    wishes = Wishes(limit, args.quality, args.speed)
    model, jobs = jobs_of_one_model("plan for", args.jobfiles)
    searched = args.quality is not None or args.speed is not None
    if searched and len(jobs) < 2:
        raise ValueError(f"a plan by quality or speed needs two jobs or more, got {len(jobs)}")
    at = _largest(jobs)
    pipe = load(model, job=jobs[at])
    if searched:
        search = search_plan(
            pipe, [plain_run(job) for job in jobs], args.quality, speed=args.speed,
            memory=args.memory, job=jobs[at], largest=at,
            say=lambda text: print(text, file=sys.stderr),
        )  # fmt: skip
        print(search)
        found = replace(search.plan, name=named(wishes, args.memory, search.plan.name))
    else:
        found = within(pipe, jobs[at], args.memory, Plan("", attention=None))
        slices = 1 if found.slicing is None else found.slicing.slices
        print(f"within {args.memory}: {slices} slices (simulated)")
    if args.out is not None:
        found.save(args.out)
        print(args.out)
    return 0


def _largest(jobs: Sequence[Job]) -> int:
    """Return the place of the job with most pixels in all its frames."""
    sizes = [(job.width or 0) * (job.height or 0) * (job.frames or 1) for job in jobs]
    return sizes.index(max(sizes))
