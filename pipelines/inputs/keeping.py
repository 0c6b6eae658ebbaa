"""Keeps the pictures and videos of a job beside its output, so that its job file stays whole."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from accel.core.atomic_write import part_of
from accel.pipelines.inputs.hashes import input_hash
from accel.pipelines.inputs.media import check_file
from accel.pipelines.job import FITTED, Job
from accel.pipelines.paths import safe_name

FOLDER = "inputs"


def kept(job: Job, out: Path) -> Job:
    """Return a job whose pictures and videos are copies in ``out/inputs``.

    Copies are named by their content, so a file that is there already is not copied again. Raises
    ValueError for one that is missing.
    """
    changes: dict[str, Any] = {
        key: _copy(key, path, out) for key in FITTED if (path := getattr(job, key)) is not None
    }
    if job.references:
        changes["references"] = [_copy("references", path, out) for path in job.references]
    if job.arguments:
        changes["arguments"] = {k: _copied(k, v, out) for k, v in job.arguments.items()}
    return replace(job, **changes)


def _copied(name: str, value: Any, out: Path) -> Any:
    """Return an argument with the files in it copied; other texts stay what they are."""
    if isinstance(value, Mapping) and len(value) == 1:
        ((form, path),) = value.items()
        if form in ("image", "video") and isinstance(path, str):
            return {form: _copy(f"arguments.{name}", path, out)}
    if isinstance(value, str) and len(value) < 4096 and _is_there(value):
        return _copy(f"arguments.{name}", value, out)
    return value


def _is_there(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):
        return False


def _copy(key: str, path: str, out: Path) -> str:
    file = check_file(key, path)
    if file.resolve().parent == (out / FOLDER).resolve():
        return path
    target = out / FOLDER / f"{input_hash(file)[:12]}-{safe_name(file.name) or key}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        part = part_of(target)
        if file.is_dir():
            shutil.copytree(file, part, dirs_exist_ok=True)
        else:
            shutil.copyfile(file, part)
        part.rename(target)
    return str(target)
