"""Names of videos: one for every job, and a path once given to a job stays that job's.

    the name it asks for, HERO      where nobody else has that path
    HERO-1a2b3c4d                   else, with the beginning of the job's id behind it

A job finds what it has been given before: by the manifests and sidecars of the output folder, or
by its id, which is the same in every run. So neither another order of jobs nor a job put in front
of others takes a finished video, and an edited job of the same name gets a name of its own. Names
differ as paths on any file system, whatever it makes of upper case and accents, and with their
suffixes: frames in a folder ``b.mp4`` and a video ``b.mp4`` are one path.

A name that another job was given but never finished is free again once that job is in no job file.
With ``overwrite`` the names of finished jobs that are in no job file are free too.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accel.pipelines.batch.lease import is_held, lease_path
from accel.pipelines.batch.manifest import State
from accel.pipelines.batch.owners import OutputFolder, Owner, paths_of
from accel.pipelines.job import Job
from accel.pipelines.paths import folded

_PARTS = (8, 16, 64)  # characters of an id behind a name
RESERVED = "differences"  # a folder of the page, see comparison.py


@dataclass(frozen=True)
class Given:
    """The name of a job.

    ``twin``: another name of the same video; ``note``: why it is not the one that was asked for.
    """

    name: str
    twin: str = ""
    note: str = ""


def candidates(wish: str, key: str) -> Iterator[str]:
    """Yield names for the job with the id ``key``, the best first."""
    yield wish
    for length in _PARTS:
        yield f"{wish}-{key[:length]}"


@dataclass
class Naming:
    """Gives every job of a queue a name of its own that stays the same from run to run.

    ``out``: the output folder, None for none; ``rows``: of its manifests (name, id, state, job);
    ``repeats``: how many jobs of this queue were left out, because one of this name is the same.
    """

    out: Path | None = None
    rows: Iterable[Mapping[str, Any]] = ()
    overwrite: bool = False
    repeats: Counter[str] = field(default_factory=Counter)
    _known: dict[str, list[str]] = field(default_factory=dict)  # id to names
    _owner: dict[str, Owner] = field(default_factory=dict)  # folded path to whose it is
    _first: dict[str, str] = field(default_factory=dict)  # id to the name given first
    _given: dict[str, Owner] = field(default_factory=dict)  # name to whose it is

    def __post_init__(self) -> None:
        self._folder = None if self.out is None else OutputFolder(self.out)
        self._owner[RESERVED] = Owner("", "")
        for row in self.rows:
            if row["id"]:
                self._known.setdefault(row["id"], []).append(row["name"])
                if self.out and row["state"] == State.RUNNING and _runs(self.out, row["name"]):
                    self._keep(row["name"], _format(row["job"]), row["id"])

    @property
    def looks_ahead(self) -> bool:
        """Tell whether names were given before, so that ``expect`` must come before ``name``."""
        return bool(self._known or self._folder)

    def expect(self, jobs: Iterable[tuple[Job, str]]) -> None:
        """Keep for all jobs (job, id) of a queue the names that they have already."""
        for job, key in jobs:
            if name := self._own(job, key):
                self._keep(name, job.format, key)

    def name(self, job: Job, key: str) -> Given | None:
        """Return the name of the job with the id ``key``; None for one that is there already."""
        wish = job.file_name
        same = [name for name in candidates(wish, key) if self._has(name, key)]
        if same or (not job.name and key in self._first):
            self.repeats[same[0] if same else self._first[key]] += 1
            return None
        taken = self._whose(wish, job.format, key)
        name, note = self._own(job, key), ""
        if not name or (self.overwrite and not taken and name in candidates(wish, key)):
            name = self._free(wish, job.format, key)
            note = f"job {wish!r} is named {name}: {taken}" if taken and job.name else ""
        first = self._first.setdefault(key, name)
        others = [first, *self._had(job, key), *self._known.get(key, ())]
        self.take(name, key, job.format)
        return Given(name, next((other for other in others if other != name), ""), note)

    def take(self, name: str, key: str, format: str = "mp4") -> None:
        """Note that a name already stands for the job with the id ``key``."""
        self._given[name] = Owner(name, key)
        self._first.setdefault(key, name)
        self._keep(name, format, key)

    def forget(self, name: str) -> None:
        """Free the name and the id of a job that has left the queue."""
        owner = self._given.pop(name, None)
        if owner is not None and self._first.get(owner.id) == name:
            del self._first[owner.id]
        self._owner = {path: owner for path, owner in self._owner.items() if owner.name != name}

    def _has(self, name: str, key: str) -> bool:
        return name in self._given and self._given[name].id == key

    def _keep(self, name: str, format: str, key: str) -> None:
        for path in paths_of(name, format):
            self._owner.setdefault(folded(path), Owner(name, key))

    def _own(self, job: Job, key: str) -> str:
        """Return the name that a job was given before, "" if none or another has it now."""
        had = [*self._had(job, key), *([] if job.name else self._known.get(key, ()))]
        free = (name for name in had if not self._whose(name, job.format, key))
        return next((name for name in free if name not in self._given), "")

    def _had(self, job: Job, key: str) -> list[str]:
        """Return those of a job's candidates that it was given before."""
        known, found = self._known.get(key, ()), list[str]()
        for name in candidates(job.file_name, key):
            finished = [] if self._folder is None else self._folder.owners(f"{name}.json")
            like = [owner.name for owner in finished if owner.id == key]
            found += [name] if name in known or name in like else like[:1]
        return found

    def _free(self, wish: str, format: str, key: str) -> str:
        """Return the first candidate that nobody else has."""
        names = list(candidates(wish, key))
        return next((name for name in names if not self._whose(name, format, key)), names[-1])

    def _whose(self, name: str, format: str, key: str) -> str:
        """Return "" if the job ``key`` may have a name, else why not."""
        for path in paths_of(name, format):
            owner = self._owner.get(folded(path))
            if owner is not None and owner != Owner(name, key):
                return f"{path} belongs to another job"
            for owner in [] if self._folder is None else self._folder.owners(path):
                if owner.id == key:
                    continue
                if owner.name != name:
                    return f"the finished job {owner.name!r} has the path {path}"
                if not self.overwrite:
                    return "another finished video has that name; --overwrite replaces it"
        return ""


def _runs(out: Path, name: str) -> bool:
    return is_held(lease_path(out, name))


def _format(job: str) -> str:
    try:
        return str(json.loads(job)["format"])
    except (ValueError, KeyError, TypeError):
        return "mp4"
