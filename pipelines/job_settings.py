"""A job as the text that is written into its video, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from accel.core.plain_values import shown
from accel.core.strict_json import loads
from accel.pipelines.job import NEWER, Job, JobError, make_job
from accel.pipelines.motion.flows import NEWEST

SETTINGS_VERSION = 1


def settings_text(job: Job, job_id: str = "") -> str:
    """Return the job as one line of JSON for a video's ``comment`` tag.

    It holds what decides the bytes of the file, not its name; a plan file goes in with its content.
    """
    data, usual = made_as(job), Job().to_dict()
    del data["name"]
    for key in NEWER:
        if data[key] == usual[key]:
            del data[key]
    if isinstance(job.plan, str):
        plan = job.accel_plan()
        data["plan"] = None if plan is None else plan.to_dict()
    if isinstance(data["plan"], dict):  # where it was measured decides no byte
        data["plan"] = {k: v for k, v in data["plan"].items() if k != "origin"}
    head = {"accel_job": SETTINGS_VERSION, **({"id": job_id} if job_id else {})}
    return json.dumps({**head, **data}, sort_keys=True)


def made_as(job: Job) -> dict[str, Any]:
    """Return the plain values of a job beside what was made of it, with the noise's version."""
    return {**job.to_dict(), "motion": versioned(job.motion)}


def job_made(data: dict[str, Any], where: str) -> Job:
    """Return the job of ``made_as``.

    Raises JobError for values that are none.
    """
    if isinstance(data.get("motion"), dict):  # the first version was not written
        data = {**data, "motion": {"version": 1, **data["motion"]}}
    return make_job(data, where)


def versioned(motion: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return a job's motion with the version of its noise, which the first version did not have."""
    if motion is None:
        return None
    data = {"version": NEWEST, **motion}
    if data["version"] == 1:
        del data["version"]
    return data


def job_from_settings(text: str, where: str) -> tuple[Job, str]:
    """Return job and id from ``settings_text``.

    Raises JobError for any other text.
    """
    try:
        data = loads(text, where)
    except ValueError:
        data = None
    if not isinstance(data, dict) or "accel_job" not in data:
        raise JobError(f"{where} was not written by accel render: it carries no settings")
    version, job_id = data.pop("accel_job"), str(data.pop("id", ""))
    if version != SETTINGS_VERSION:
        raise JobError(
            f"{where} carries settings of version {shown(version)}; this accel reads "
            f"{SETTINGS_VERSION}"
        )
    return job_made(data, where), job_id
