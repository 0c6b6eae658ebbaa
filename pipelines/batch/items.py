"""From job files to the items of a queue: each job with its id, its name and its twin."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from accel.core.plain_values import shown
from accel.pipelines.batch.identity import job_id
from accel.pipelines.batch.jobfile import Invalid, Override, read
from accel.pipelines.batch.naming import Naming
from accel.pipelines.job import Job, JobError
from accel.pipelines.job_settings import job_from_settings
from accel.pipelines.paths import user_path
from accel.pipelines.video import is_rendered, read_comment


@dataclass
class Item:
    """One job of the queue.

    ``twin``: name of a finished or earlier item that is the same video; ``note``: why ``name`` is
    not the one that was asked for.

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
    note: str = ""


@dataclass(frozen=True)
class Identified:
    """A job with its id; ``where`` it stands."""

    job: Job
    id: str
    where: str


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
    naming: Naming | None = None,
    shard: tuple[int, int] = (1, 1),
) -> Iterator[Item | Invalid]:
    """Yield items of all files, as they are read where ``naming`` need not look ahead.

    Raises JobError for what is wrong with a file itself. Of two jobs that are the same under one
    name the second is left out, and counted in ``naming.repeats``.
    """
    naming = naming or Naming()
    found: Iterable[Identified | Invalid] = (
        identified(entry, str(file)) for file in job_files(files) for entry in read(file, overrides)
    )
    if naming.looks_ahead:
        found = list(found)
        naming.expect((e.job, e.id) for e in found if isinstance(e, Identified))
    number = 0
    for entry in found:
        if isinstance(entry, Invalid):
            yield entry
            continue
        number += 1
        item = make_item(entry, naming)
        if item is not None and (number - 1) % shard[1] == shard[0] - 1:
            yield item


def identified(job: Job | Invalid, where: str) -> Identified | Invalid:
    """Return a job with the model's defaults and its id."""
    if isinstance(job, Invalid):
        return job
    job = job.resolved()
    try:
        return Identified(job, job_id(job), where)
    except (ValueError, OSError) as error:  # such as a path that is too long
        return Invalid(f"{where}, job {job.file_name!r}", f"job {job.file_name!r}: {error}")


def make_item(found: Identified, naming: Naming) -> Item | None:
    """Return an item of the queue; None for a job that is in it already."""
    given = naming.name(found.job, found.id)
    if given is None:
        return None
    job = replace(found.job, name=given.name)
    return Item(job, found.id, given.name, found.where, given.twin, note=given.note)


def job_files(files: Iterable[str | Path]) -> Iterator[Path]:
    """Yield job files; a pattern or ~ that the shell left alone is expanded."""
    for file in map(user_path, files):
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
