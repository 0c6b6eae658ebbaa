"""The jobs of job files that are all of one model, for commands that load it once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from accel.pipelines.batch.jobfile import read_jobs
from accel.pipelines.generate import generate
from accel.pipelines.job import Job


def jobs_of_one_model(what: str, files: Iterable[str]) -> tuple[str, list[Job]]:
    """Return the model and the jobs of job files; ``what`` is what the command does with it.

    Raises ValueError where there is not one model.
    """
    jobs = [job.resolved() for file in files for job in read_jobs(file)]
    models = sorted({job.model for job in jobs})
    if len(models) != 1:
        raise ValueError(f"{what} one model at a time; the jobs have {models}")
    return models[0], jobs


def plain_run(job: Job) -> Callable[[Any], np.ndarray]:
    """Return a function that runs a job without acceleration and returns its frames."""
    plain = replace(job, preset=None, plan=None)
    return lambda pipe: generate(pipe, plain).frames
