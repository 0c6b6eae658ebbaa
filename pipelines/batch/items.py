"""From job files to the items of a queue: each job with its id, its name and its twin."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from accel.core.plain_values import shown
from accel.pipelines.batch.identity import job_id
from accel.pipelines.batch.jobfile import Invalid, Override, read
from accel.pipelines.job import Job, JobError, job_from_settings
from accel.pipelines.video import is_rendered, read_comment


@dataclass
class Item:
    """One job of the queue.

    ``twin``: name of an earlier item that is the same video.

    ``rung``, ``failures``, ``deaths``: what its tries have come to so far; ``waiting``: another
    process has it.
    """

    job: Job
    id: str
    name: str
    where: str
    twin: str = ""
    rung: int = 0
    failures: int = 0
    deaths: int = 0
    waiting: bool = False


def parse_shard(text: str) -> tuple[int, int]:
    """``i/n``, counted from 1.

    Raises JobError.
    """
    first, slash, last = text.partition("/")
    numbers = slash and all(part.isdecimal() and len(part) < 10 for part in (first, last))
    if not numbers or not 1 <= int(first) <= int(last):
        raise JobError(f"--shard takes i/n with i from 1 to n, such as 2/8, got {shown(text)}")
    return int(first), int(last)


def items(
    files: Iterable[str | Path],
    overrides: Sequence[Override] = (),
    known: Mapping[str, str] | None = None,
    shard: tuple[int, int] = (1, 1),
) -> Iterator[Item | Invalid]:
    """Yield items of all files as they are read; ``known`` gives the ids that names had so far.

    Raises JobError for what is wrong with a file itself. A name that two jobs want goes to the
    first; the other gets its id behind it. Of two jobs that are the same under one name the second
    is left out.
    """
    naming = Naming(known or {})
    number = 0
    for file in _files(files):
        for entry in read(file, overrides):
            if isinstance(entry, Invalid):
                yield entry
                continue
            number += 1
            item = make_item(entry, str(file), naming)
            if item is not None and (number - 1) % shard[1] == shard[0] - 1:
                yield item


def make_item(job: Job, where: str, naming: Naming) -> Item | Invalid | None:
    """Return an item of the queue; None for a job that is in it already."""
    job = job.resolved()
    try:
        key = job_id(job)
    except (ValueError, OSError) as error:  # such as a path that is too long
        return Invalid(f"{where}, job {job.file_name!r}", f"job {job.file_name!r}: {error}")
    name, twin = naming.name(job, key)
    return Item(replace(job, name=name), key, name, where, twin) if name else None


def _files(files: Iterable[str | Path]) -> Iterator[Path]:
    """Yield job files; a pattern that the shell left alone is expanded."""
    for file in files:
        found = [] if Path(file).exists() else sorted(glob.glob(str(file), recursive=True))
        yield from map(Path, found) if found else [Path(file)]


def changed_since(path: Path) -> str:
    """Return why rendering a rendered file again would give other bytes, or ""."""
    if not is_rendered(path):
        return ""
    job, was = job_from_settings(read_comment(path), str(path))
    if not was or was == job_id(job):
        return ""
    return (
        f"{path}: the model, accel's version or a file of its motion is not the one it was "
        "rendered with, so the result will differ"
    )


class Naming:
    """Gives every job of a queue a name of its own that stays the same from run to run."""

    def __init__(self, known: Mapping[str, str]) -> None:
        self._known = known
        self._by_id = {key: name for name, key in known.items()}
        self._used: dict[str, str] = {}  # name to id
        self._first: dict[str, str] = {}  # id to name

    def name(self, job: Job, key: str) -> tuple[str, str]:
        """(name, twin); an empty name for a job that is there already."""
        name = job.file_name
        if not job.name and key in self._first:
            return "", ""
        if not job.name and self._by_id.get(key, name) not in self._used:
            name = self._by_id.get(key, name)
        if self._used.get(name) == key:
            return "", ""
        taken = name in self._used or (not job.name and self._known.get(name, key) != key)
        if taken:
            name = f"{name}-{key[:8]}"
            if self._used.get(name) == key:
                return "", ""
        twin = self._first.setdefault(key, name)
        self._used[name] = key
        return name, "" if twin == name else twin

    def take(self, name: str, key: str) -> None:
        """Note that a name already stands for the job with the id ``key``."""
        self._used[name] = key
        self._first.setdefault(key, name)

    def forget(self, name: str) -> None:
        """Free the name and the id of a job that has left the queue."""
        key = self._used.pop(name, "")
        if self._first.get(key) == name:
            del self._first[key]
