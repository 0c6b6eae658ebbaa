"""Keeps every failure with what is needed to see it again."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from accel.pipelines.batch.items import Item
from accel.pipelines.batch.tasks import Outcome


def keep_failure(out: Path, item: Item, outcome: Outcome) -> str:
    """Write job file and traceback under ``out/.accel/failures``.

    Returns:
        The command that repeats the job.
    """
    folder = out / ".accel" / "failures"
    job = folder / f"{item.name}.json"
    again = ["accel", "render", str(job), "--out", str(folder / item.name), "--retries", "0"]
    command = shlex.join(again)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        job.write_text(json.dumps({"version": 1, "jobs": [item.job.to_dict()]}, indent=2) + "\n")
        text = f"{outcome.error}\n\nto reproduce: {command}\n\n{outcome.traceback}"
        (folder / f"{item.name}.txt").write_text(text)
    except OSError as error:
        return f"(could not be kept: {error})"
    return command
