"""The settings inside a file that was dropped on the page.

They are data from anywhere: read with a limit, and what names a file is left out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from accel.pipelines.job import FITTED, Job, JobError
from accel.pipelines.job_settings import job_from_settings
from accel.pipelines.ui.settings import Limits, Models, at_most, check_limits
from accel.pipelines.video import SUFFIXES, read_comment

_FILES = (*FITTED, "references", "loras")  # fields of a job that name files


def settings_of(path: Path, models: Models, limits: Limits) -> tuple[Job, list[str]]:
    """Return the job inside a rendered file, and notes on what was left out of it.

    Raises JobError for a file without our settings, or with settings that cannot be.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise JobError(f"{path.suffix or 'this'} is no rendered video; drop a {' '.join(SUFFIXES)}")
    try:
        comment = read_comment(path)
    except ValueError as error:
        raise JobError("the file cannot be read as a video") from error
    at_most("the file's comment, in characters,", len(comment), limits.comment)
    try:
        data = json.loads(comment)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise JobError("the file carries no settings: it was not written by accel")
    notes = _leave_out_files(data)
    try:
        job, _ = job_from_settings(json.dumps(data), "the file")
        check_limits(job, limits)
    except (ValueError, TypeError, RecursionError) as error:
        raise JobError(str(error)) from error
    if models.label(job.model, job.load) is None:
        notes.append("its model is not offered here; the embedded one is chosen")
    return job, notes


def _leave_out_files(data: dict[str, Any]) -> list[str]:
    """Take out whatever names a file; what was taken out."""
    notes = []
    motion = data.get("motion")
    if isinstance(motion, dict):
        camera = motion.get("camera")
        for key in ("video", "flow", "noise"):
            if motion.pop(key, None) is not None:
                notes.append(f"its motion came from a {key} file, which is left out")
        if isinstance(camera, dict) and camera.pop("depth", None) is not None:
            notes.append("its depth map is left out")
        if set(motion) <= {"version"}:
            data["motion"] = None
    if isinstance(data.get("strength"), dict) and data["strength"].pop("map", None) is not None:
        notes.append("its strength map is left out")
    if data.get("plan") is not None:
        data["plan"] = None
        notes.append("its plan is left out; its preset is kept")
    for key in _FILES:
        if data.pop(key, None):
            notes.append(f"what it names as {key} is left out")
    arguments = data.get("arguments")
    if isinstance(arguments, dict):
        plain = {key: value for key, value in arguments.items() if isinstance(value, (int, float))}
        if len(plain) < len(arguments):
            notes.append("of its arguments, only numbers are kept")
        data["arguments"] = plain
    return notes
