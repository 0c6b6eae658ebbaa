"""Keeps every failure with what is needed to see it again."""

from __future__ import annotations

import shlex
from pathlib import Path

from accel.core.atomic_write import write_atomic
from accel.core.standard_streams import encodable
from accel.core.strict_json import dumps
from accel.pipelines.batch.items import Item
from accel.pipelines.batch.tasks import Outcome


def keep_failure(out: Path, item: Item, outcome: Outcome) -> str:
    """Write job file and traceback under ``out/.accel/failures``.

    Returns:
        The command that repeats the job.
    """
    folder = out / ".accel" / "failures"
    job, again = folder / f"{item.name}.json", folder / "again" / item.name
    command = shlex.join(["accel", "render", str(job), "--out", str(again), "--retries", "0"])
    text = f"{outcome.error}\n\nto reproduce: {command}\n\n{outcome.traceback}"
    try:
        write_atomic(job, dumps({"version": 1, "jobs": [item.job.to_dict()]}, indent=2) + "\n")
        write_atomic(folder / f"{item.name}.txt", encodable(text))
    except (OSError, ValueError) as error:  # ValueError: a name that this machine cannot encode
        return f"(could not be kept: {error})"
    return command
