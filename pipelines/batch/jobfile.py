"""Job files: YAML, JSON, JSON Lines and CSV, expanded one job at a time.

    version: 1
    defaults: {steps: 20}                       # every job starts from these
    matrix: {seed: [1, 2], preset: [fast, none]}    # every combination
    zip: {prompt: [a, b], name: [x, y]}         # side by side, equally long
    glob: {motion.flow: "flows/*.npy"}          # every matching file, sorted
    count: 4                                    # four jobs: seed, seed + 1, and so on
    jobs: [...]                                 # each may have these four of its own

Without ``jobs`` the file is one job made of ``defaults`` and these four. Each document of a YAML
file is a job file of its own. In JSON Lines each line is a job; a line with ``defaults`` holds for
those below it. In CSV the header names the keys; an empty cell is left out. Dotted keys reach into
mappings. Paths count from the working directory, else from the file's folder. A mistake in one job
is its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accel.core.plain_values import Wrong, check, shown
from accel.core.validate import did_you_mean
from accel.pipelines.batch.bounds import BOUNDS, read_raw, text_of
from accel.pipelines.batch.csv_rows import csv_rows
from accel.pipelines.batch.expanding import (
    EXPANDERS,
    KEYS,
    counted,
    expand,
    known_key,
    merged,
    put,
    settle_plan,
    why_twice,
    why_unknown,
)
from accel.pipelines.batch.job_sources import suffix_of
from accel.pipelines.batch.json_jobs import json_lines, read_json
from accel.pipelines.batch.yaml_stream import parts
from accel.pipelines.batch.yaml_values import parse_value, parsed_cell
from accel.pipelines.job import PATHS, Job, JobError, make_job
from accel.pipelines.job_settings import job_from_settings
from accel.pipelines.paths import beside_file, user_path
from accel.pipelines.video import is_rendered, read_comment

VERSION = 1
TOP_LEVEL = ("version", "defaults", *EXPANDERS, "jobs")


@dataclass(frozen=True)
class Invalid:
    """An entry that is no job: where it stands, and what is wrong with it."""

    where: str
    message: str


@dataclass(frozen=True)
class _Entry:
    """An entry of a file: where it stands, what it starts from, and itself.

    ``line``: where it begins, or 0 if ``where`` says so already.
    """

    where: str
    shared: dict[str, Any]
    own: Any
    line: int = 0


Override = tuple[str, Any]


def parse_override(text: str) -> Override:
    """Split ``a.b=v`` of ``--set`` and read the value as YAML. Raises JobError."""
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise JobError(f"--set takes KEY=VALUE such as steps=20 or motion.strength=1, got {text!r}")
    known_key(key, "--set")
    try:
        parsed = parse_value(value, key)
    except JobError as error:
        raise JobError(f"--set {key} is {error}") from None
    _checked(parsed, f"--set {key}")
    return key, parsed


def read(path: str | Path, overrides: Sequence[Override] = ()) -> Iterator[Job | Invalid]:
    """Yield jobs of one job file, or of a video that ``accel render`` wrote, as they are expanded.

    Raises JobError for what is wrong with the file itself.
    """
    path, given = user_path(path), dict(overrides)
    keys = [key for key, _ in overrides]
    twice = [key for key in given if keys.count(key) > 1]
    if why := f"{twice[0]!r} twice" if twice else why_twice(keys):
        raise JobError(f"--set is given {why}; keep one of them")
    if is_rendered(path):
        yield _from_video(path, overrides)
        return
    jobs = values = shared_size = 0
    shared: Any = None
    for entry in _entries(path):
        note = f" (line {entry.line})" if entry.line else ""
        if entry.shared is not shared:
            shared, shared_size = entry.shared, check(entry.shared, entry.where)
        try:
            size = shared_size + _checked(entry.own, entry.where)
            data, first = counted(beside_file(merged(shared, entry.own), path, ("glob",)), given)
            for number, variant in enumerate(expand(data, entry.own, entry.where), 1):
                for key, value in overrides:
                    if key not in first:
                        put(variant, key, value)
                settle_plan(variant := beside_file(variant, path, PATHS[:-1]), given)
                where = entry.where if number == 1 else f"{entry.where}, variant {number}"
                jobs, values = jobs + 1, values + size
                _check_total(jobs, values, path)
                yield _job(variant, where, note)
        except _TotalError:
            raise
        except (ValueError, OSError) as error:
            jobs += 1
            _check_total(jobs, values, path)
            yield Invalid(entry.where, f"{error}{note}")
    if shared is None:
        raise JobError(f"{path} needs at least one job")


def read_jobs(path: str | Path) -> list[Job]:
    """Return all jobs of a file, or raise JobError for the first that is not valid."""
    jobs = []
    for entry in read(path):
        if isinstance(entry, Invalid):
            raise JobError(entry.message)
        jobs.append(entry)
    return jobs


class _TotalError(JobError):
    """The file as a whole is too large."""


def _check_total(jobs: int, values: int, path: Path) -> None:
    if jobs > BOUNDS.jobs:
        raise _TotalError(
            f"{path} makes more than {BOUNDS.jobs:,} jobs, the most for a file; split it into "
            "several and name them all in one command"
        )
    if values > BOUNDS.values:
        raise _TotalError(
            f"{path} makes {jobs:,} jobs or more with over {BOUNDS.values:,} values together, the "
            "most for a file; split it, or put what is large (a plan, a flow) into files"
        )


def _checked(value: Any, where: str) -> int:
    """Return how many values a value holds. Raises JobError for one that cannot be used."""
    try:
        return check(value, where)
    except ValueError as error:
        raise JobError(str(error)) from None


def _job(data: dict[str, Any], where: str, note: str = "") -> Job | Invalid:
    try:
        return make_job(data, where)
    except JobError as error:
        return Invalid(where, f"{error}{note}")


def _from_video(path: Path, overrides: Sequence[Override]) -> Job | Invalid:
    """Return the job inside a rendered file or folder of frames, under its own name."""
    if not path.exists():
        raise JobError(f"no file {path}")
    try:
        job, _ = job_from_settings(read_comment(path), str(path))
    except ValueError as error:
        raise JobError(str(error)) from error
    data = {**job.to_dict(), "name": path.name if path.is_dir() else path.stem}
    for key, value in overrides:
        put(data, key, value)
    settle_plan(data, dict(overrides))
    return _job(data, str(path))


# ----------------------------------------------------------------------------------------- reading


def _entries(path: Path) -> Iterator[_Entry]:
    """Yield the entries of a file."""
    readers = {
        ".jsonl": _json_lines, ".ndjson": _json_lines, ".csv": _csv, ".tsv": _csv, ".json": _json,
    }  # fmt: skip
    raw = read_raw(path)
    yield from readers.get(suffix_of(path, raw, KEYS), _yaml)(path, raw)


def _yaml(path: Path, raw: bytes) -> Iterator[_Entry]:
    text = text_of(raw, path)
    tops: dict[int, Any] = {}
    listed: set[int] = set()
    items = 0
    for part in parts(text, path, "jobs"):
        if part.root:
            tops[part.document] = part.value
        elif part.key == "jobs" and part.value == []:
            tops.setdefault(part.document, {})
            listed.add(part.document)
        elif part.key is not None:
            tops.setdefault(part.document, {})[part.key] = part.value
        else:
            items += 1
            _check_total(items, 0, path)
    starts = {}
    for number, top in (tops or {1: {}}).items():
        label = f"{path}, document {number}" if len(tops) > 1 else str(path)
        starts[number] = label, _top_level(top, label, number in listed)
    whole = [n for n in starts if n not in listed]  # documents that are one job
    count = dict.fromkeys(starts, 0)
    for part in parts(text, path, "jobs") if listed else ():
        if part.key is not None or part.root:
            continue
        while whole and whole[0] < part.document:
            label, start = starts[whole.pop(0)]
            yield _Entry(f"{label}, job 1", start, {})
        count[part.document] += 1
        label, start = starts[part.document]
        yield _Entry(f"{label}, job {count[part.document]}", start, part.value, part.line)
    for number in whole:
        yield _Entry(f"{starts[number][0]}, job 1", starts[number][1], {})


def _json(path: Path, raw: bytes) -> Iterator[_Entry]:
    data, jobs = read_json(text_of(raw, path), path, "jobs")
    shared = _top_level(data, str(path), jobs is not None)
    if jobs is None:
        yield _Entry(f"{path}, job 1", shared, {})
    for number, job in enumerate(jobs or (), 1):
        yield _Entry(f"{path}, job {number}", shared, job.value, job.line)


def _json_lines(path: Path, raw: bytes) -> Iterator[_Entry]:
    shared: dict[str, Any] = {}
    for found in json_lines(text_of(raw, path, by_line=True), path):
        where, entry = f"{path}, line {found.line}", found.value
        if isinstance(entry, dict) and ("defaults" in entry or "version" in entry):
            shared = _top_level(entry, where, True)
        else:
            yield _Entry(where, shared, entry)


def _csv(path: Path, raw: bytes) -> Iterator[_Entry]:
    text = text_of(raw, path, by_line=True)
    for row in csv_rows(text, path, why_unknown):
        where = f"{path}, line {row.line}"
        entry: dict[str, Any] = {}
        if isinstance(row.cells, Wrong):
            yield _Entry(where, {}, row.cells)
        elif why := why_twice(list(row.cells)):
            yield _Entry(where, {}, Wrong(f"a row with {why}; fill in one of them"))
        else:
            for key, cell in row.cells.items():
                put(entry, key, parsed_cell(cell, key))
            yield _Entry(where, {}, entry)


def _top_level(data: Any, where: str, has_jobs: bool) -> dict[str, Any]:
    """Check everything but the jobs; returns what every job starts from."""
    if not isinstance(data, dict):
        got = "" if data is None else f", got {shown(data)}"
        raise JobError(f"{where} needs a mapping with 'jobs:' at its top level{got}")
    for key in data:
        if key not in TOP_LEVEL:
            hint = did_you_mean(str(key), list(TOP_LEVEL))
            raise JobError(
                f"{where} has an unknown top-level key {shown(key)}{hint}; known: {TOP_LEVEL}"
            )
    version = data.get("version", VERSION)
    if version != VERSION:
        raise JobError(f"{where} has version {shown(version)}; this accel reads version {VERSION}")
    if "jobs" in data:
        raise JobError(f"{where}: 'jobs:' must be a list of jobs, got {shown(data['jobs'])}")
    _checked(data, where)
    shared = {} if data.get("defaults") is None else data["defaults"]
    if not isinstance(shared, dict):
        raise JobError(f"{where}: defaults must be a mapping, got {shown(shared)}")
    for key in shared:
        known_key(key, f"{where}, defaults")
    expanders = {name: data[name] for name in EXPANDERS if data.get(name) not in (None, {})}
    if not has_jobs and not expanders:
        raise JobError(
            f"{where} needs a top-level 'jobs:' with at least one job, or one of {EXPANDERS}"
        )
    return {**shared, **expanders}
