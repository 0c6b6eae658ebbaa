"""``accel motion``: draws the flows and crude animations of job files, without a model."""

from __future__ import annotations

import argparse
from dataclasses import replace

from accel.pipelines.paths import user_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``accel motion``."""
    parser.add_argument("jobfiles", nargs="+", metavar="JOBFILE", help="as for accel render")
    parser.add_argument("--out", required=True, type=user_path, metavar="DIR", help="output folder")


def run(args: argparse.Namespace) -> int:
    """Draw every job's motion under the name of its video, and print the files made.

    Returns the exit code.
    """
    from accel.pipelines.batch.identity import digest, job_id
    from accel.pipelines.batch.jobfile import read_jobs
    from accel.pipelines.batch.naming import Naming
    from accel.pipelines.batch.output import prepare_folder
    from accel.pipelines.job import Job, JobError
    from accel.pipelines.led_run import animation_of
    from accel.pipelines.motion.flow_pictures import draw_job

    def key(job: Job) -> str:
        try:
            return job_id(job)
        except JobError:  # the model is not on this machine
            return digest(job.to_dict())

    jobs = [job.resolved() for file in args.jobfiles for job in read_jobs(file)]
    prepare_folder(args.out)
    naming = Naming(args.out)
    keys = [(job, key(job)) for job in jobs]
    naming.expect(keys)
    given = [(job, naming.name(job, key)) for job, key in keys]
    for job, name in given:
        if name is None:
            continue
        animation = animation_of(job)[0].frames if job.following.animated else None
        for path in draw_job(replace(job, name=name.name), args.out, animation):
            print(path)
    return 0
