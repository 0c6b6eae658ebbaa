"""Whose the files in an output folder are: a sidecar, or the settings in a video, say which job's.

A sidecar NAME.json owns itself and the video it was written for. A video whose sidecar is gone
still carries the id of its job. Everything else is a file of somebody else.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accel.pipelines.batch.sidecar import read_sidecar
from accel.pipelines.job import JobError
from accel.pipelines.job_settings import job_from_settings
from accel.pipelines.paths import folded
from accel.pipelines.video import SUFFIX, read_comment


@dataclass(frozen=True)
class Owner:
    """The job that a file belongs to."""

    name: str
    id: str


def paths_of(name: str, format: str) -> tuple[str, str]:
    """Return the names of the two files of a job: sidecar and video, which may be a folder."""
    return f"{name}.json", f"{name}{SUFFIX[format]}"


def owner_of(
    path: Path, read: Callable[[Path], dict[str, Any] | None] = read_sidecar
) -> Owner | None:
    """Return whose a file or folder of an output folder is, None if ``accel render`` wrote it not.

    ``read`` returns the content of a sidecar, None for what is none.
    """
    is_folder = path.is_dir()
    if path.suffix == ".json" and not is_folder:
        data = read(path)
        return None if data is None else Owner(path.stem, data["id"])
    if not is_folder and not path.is_file():
        return None  # reading a pipe would wait for ever
    name = path.name if is_folder else path.stem
    data = read(path.with_name(f"{name}.json"))
    if data is not None and folded(data["video"].get("file", path.name)) == folded(path.name):
        return Owner(name, data["id"])
    try:
        _, key = job_from_settings(read_comment(path), str(path))
    except (JobError, ValueError):
        return None
    return Owner(name, key)


@dataclass
class OutputFolder:
    """What lies in an output folder, found by names that are one path on some file system.

    It is listed again when something came or went.
    """

    out: Path
    _changed: int = -1
    _like: dict[str, list[str]] = field(default_factory=dict)
    _owners: dict[str, Owner | None] = field(default_factory=dict)
    _sidecars: dict[Path, dict[str, Any] | None] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Tell whether anything visible lies in the folder."""
        self._look()
        return bool(self._like)

    def owners(self, name: str) -> list[Owner]:
        """Return the jobs that have a file whose name is one path with ``name``."""
        self._look()
        found = (self._owner(entry) for entry in self._like.get(folded(name), ()))
        return [owner for owner in found if owner is not None]

    def _owner(self, entry: str) -> Owner | None:
        if entry not in self._owners:
            self._owners[entry] = owner_of(self.out / entry, self._sidecar)
        return self._owners[entry]

    def _sidecar(self, path: Path) -> dict[str, Any] | None:
        """Return of a sidecar what says whose it is."""
        if path not in self._sidecars:
            data = read_sidecar(path)
            kept = None if data is None else {"id": data["id"], "video": data["video"]}
            self._sidecars[path] = kept
        return self._sidecars[path]

    def _look(self) -> None:
        try:
            changed = self.out.stat().st_mtime_ns
            if changed == self._changed:
                return
            names = sorted(name for name in os.listdir(self.out) if not name.startswith("."))
        except OSError:
            changed, names = -1, []
        self._changed, self._like = changed, {}
        self._owners, self._sidecars = {}, {}
        for name in names:
            self._like.setdefault(folded(name), []).append(name)
