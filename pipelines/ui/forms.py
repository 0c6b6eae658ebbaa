"""The values of the form on the page, in the order of its widgets."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accel.pipelines.job import Job, JobError
from accel.pipelines.load import TINY, defaults
from accel.pipelines.ui import drawing
from accel.pipelines.ui.predicted import check_size
from accel.pipelines.ui.settings import PLANNED, Models, job_file, job_from_form
from accel.pipelines.ui.studio import Studio

FIELDS = (
    "prompt", "negative_prompt", "model", "width", "height", "frames", "steps", "guidance",
    "seed", "preset", "name",
)  # fmt: skip
FIRST = Job("a red circle on a striped blue background", seed=1)
SIZES = ("width", "height", "frames", "steps", "guidance")


def to_form(job: Job, models: Models) -> list[Any]:
    """Values of the widgets for a job, in the order of ``FIELDS``."""
    job = job.resolved()
    label = models.label(job.model) or next(iter(models.by_label))
    values = {**job.to_dict(), "model": label, "preset": models.acceleration(job)}
    return [values[key] for key in FIELDS]


def from_form(
    studio: Studio, values: Sequence[Any], moved: bool, motion: Mapping[str, Any] | None, plan: Any
) -> dict[str, Any]:
    """The form as ``job_from_form`` takes it; ``motion`` as ``drawing.py`` keeps it, brought to the
    form's size; ``plan`` as the tab Plan picked it.
    """
    form: dict[str, Any] = dict(zip(FIELDS, values, strict=True))
    if form["preset"] == PLANNED:
        if not plan:
            raise JobError("no plan is taken over yet; pick one in the tab Plan")
        form["plan"] = plan
    if moved:
        if not motion or not motion.get("motion"):
            raise JobError("no motion is drawn yet; draw one in the tab Motion, or untick it")
        motion = drawing.fitted(studio, motion, size_of(values, studio)[0])
        form |= {"motion": motion["motion"], "strength": motion["strength"]}
    return form


def job_of(values: Sequence[Any], studio: Studio) -> Job:
    """The form's job without prompt, plan or motion, as far as its size goes. Raises JobError."""
    form = {**dict(zip(FIELDS, values, strict=True)), "prompt": "size only"}
    job = job_from_form(form, studio.models, studio.limits).resolved()
    check_size(job)
    return job


def size_of(values: Sequence[Any], studio: Studio) -> tuple[tuple[int, int, int], float]:
    """(width, height, frames) and frames per second of the form. Raises JobError."""
    job = job_of(values, studio)
    if not (job.width and job.height and job.frames and job.frames > 1):
        raise JobError("motion needs width, height and 2 frames or more in the form")
    return (job.width, job.height, job.frames), job.fps or 16.0


def default_sizes(label: str, models: Models) -> list[Any]:
    """Values of ``SIZES`` that suit a model; None is its own default."""
    known = defaults(models.by_label.get(label, TINY))
    return [getattr(known, key) for key in SIZES]


def random_seed() -> int:
    """A seed that a person can type."""
    return secrets.randbelow(10**6)


def exported(studio: Studio, what: str, form: Mapping[str, Any] | None = None) -> str:
    """Path of a job file for ``accel render``: of the ``form``, the "queue" or the "gallery"."""
    if form is not None:
        jobs = [job_from_form(form, studio.models, studio.limits)]
    elif what == "queue":
        jobs = [entry.item.job for entry in studio.queue.order()]
    else:
        jobs = [video.job for video in studio.finished()]
    if not jobs:
        raise JobError(f"the {what} is empty; there is nothing to export")
    path = Path(tempfile.mkdtemp(dir=studio.temporary)) / f"{what}.yaml"
    path.write_text(job_file(jobs), encoding="utf-8")
    return str(path)


def unnamed(job: Job) -> Job:
    """A job to start another from: its name stays with the video that has it."""
    return replace(job, name="")
