"""The values of the form on the page, by the names of its fields."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from accel.pipelines.inputs.keeping import kept
from accel.pipelines.job import Job, JobError
from accel.pipelines.limits import of_model
from accel.pipelines.load import TINY, defaults
from accel.pipelines.ui import drawing
from accel.pipelines.ui.settings import PLANNED, Models, job_file, job_from_form
from accel.pipelines.ui.studio import Studio

FIELDS = (
    "prompt", "negative_prompt", "model", "width", "height", "frames", "steps", "guidance",
    "seed", "preset", "fps", "format", "name", "follow",
)  # fmt: skip
FIRST = Job("a red circle on a striped blue background", seed=1)
SIZES = ("width", "height", "frames", "steps", "guidance", "fps")


def to_form(job: Job, models: Models) -> dict[str, Any]:
    """Return the values of ``FIELDS`` for a job."""
    job = job.resolved()
    label = models.label(job.model, job.load) or next(iter(models.by_label))
    values = {**job.to_dict(), "model": label, "preset": models.acceleration(job)}
    values["follow"] = job.following.way
    return {key: values[key] for key in FIELDS}


def from_form(
    studio: Studio,
    values: Mapping[str, Any],
    moved: bool,
    motion: Mapping[str, Any] | None,
    plan: Any,
) -> dict[str, Any]:
    """Return the form as ``job_from_form`` takes it.

    Args:
        values: of ``FIELDS``.
        moved: whether the motion counts.
        motion: as ``drawing.py`` keeps it; it is brought to the form's size.
        plan: as the tab Plan picked it.

    Raises:
        JobError: the plan or the motion that counts is missing.
    """
    form = dict(values)
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


def job_of(values: Mapping[str, Any], studio: Studio, plan: Any = None) -> Job:
    """Return the form's job without prompt or motion, as far as its size goes.

    Args:
        values: of ``FIELDS``.
        studio: whose models and limits count.
        plan: as the tab Plan picked it, where that is asked for.

    Raises:
        JobError: there can be no such job.
    """
    form = {**values, "prompt": "size only"}
    if plan and form["preset"] == PLANNED:
        form["plan"] = plan
    job = job_from_form(form, studio.models, studio.limits).resolved()
    of_model(job.model, job.load_options.pipeline).check_size(job)
    return job


def size_of(values: Mapping[str, Any], studio: Studio) -> tuple[tuple[int, int, int], float]:
    """Return (width, height, frames) and frames per second of the form.

    Raises:
        JobError: there can be no motion of that size.
    """
    job = job_of(values, studio)
    if not (job.width and job.height and job.frames and job.frames > 1):
        raise JobError("motion needs width, height and 2 frames or more in the form")
    return (job.width, job.height, job.frames), job.fps or 16.0


def default_sizes(label: str, models: Models) -> dict[str, Any]:
    """Return values of ``SIZES`` that suit a model; None is its own default."""
    known = defaults(models.by_label.get(label, TINY))
    return {key: getattr(known, key) for key in SIZES}


def random_seed() -> int:
    """Return a seed that a person can type."""
    return secrets.randbelow(10**6)


def exported(studio: Studio, what: str, form: Mapping[str, Any] | None = None) -> str:
    """Write a job file for ``accel render``; return its path.

    Args:
        studio: what is exported, and where to.
        what: "job" for the ``form``, "queue" or "gallery".
        form: as ``from_form`` returns it.

    Raises:
        JobError: there is nothing to export.
    """
    if form is not None:
        jobs = [job_from_form(form, studio.models, studio.limits)]
    elif what == "queue":
        jobs = [entry.item.job for entry in studio.queue.order()]
    else:
        jobs = [video.job for video in studio.finished()]
    if not jobs:
        raise JobError(f"the {what} is empty; there is nothing to export")
    path = Path(tempfile.mkdtemp(dir=studio.temporary)) / f"{what}.yaml"
    path.write_text(job_file([_kept(job, studio.out) for job in jobs]), encoding="utf-8")
    return str(path)


def _kept(job: Job, out: Path) -> Job:
    """Return a job whose inputs lie in ``out``; as it is if one of them is gone."""
    try:
        return kept(job, out)
    except ValueError:
        return job


def unnamed(job: Job) -> Job:
    """Return a job to start another from: its name stays with the video that has it."""
    return replace(job, name="")
