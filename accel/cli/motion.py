"""``accel motion``: draws the flows of job files, without a model."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``accel motion``."""
    parser.add_argument("jobfiles", nargs="+", metavar="JOBFILE", help="as for accel render")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="output folder")


def run(args: argparse.Namespace) -> int:
    """Draw every job's motion, print the files made, and return the exit code."""
    from accel.pipelines.batch.jobfile import read_jobs
    from accel.pipelines.batch.output import prepare_folder
    from accel.pipelines.motion.flow_pictures import draw_job

    jobs = [job.resolved() for file in args.jobfiles for job in read_jobs(file)]
    prepare_folder(args.out)
    for job in jobs:
        for path in draw_job(job, args.out):
            print(path)
    return 0
