"""Job files: YAML, JSON, JSON Lines and CSV, expanded one job at a time.

    version: 1
    defaults: {steps: 20}                       # every job starts from these
    matrix: {seed: [1, 2], preset: [fast, null]}    # every combination
    zip: {prompt: [a, b], name: [x, y]}         # side by side, equally long
    glob: {motion.flow: "flows/*.npy"}          # every matching file, sorted
    jobs: [...]                                 # each may have matrix, zip and glob of its own

Without ``jobs`` the file is one job made of ``defaults``, ``matrix``, ``zip`` and ``glob``. In JSON
Lines each line is a job, and a line with the key ``defaults`` holds for those below it. In CSV the
header names the keys; an empty cell is left out. Dotted keys reach into mappings. Paths are
relative to the working directory. A mistake in one job is that job's; one in the file ends the
reading.
"""

from __future__ import annotations

import copy
import csv
import glob
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any

import yaml

from accel.core.validate import did_you_mean
from accel.pipelines.batch.job_sources import open_source, suffix_of
from accel.pipelines.batch.yaml_stream import read_top_level, stream_list
from accel.pipelines.job import Job, JobError, job_from_settings, make_job
from accel.pipelines.paths import user_path, with_home
from accel.pipelines.video import is_rendered, read_comment

VERSION = 1
EXPANDERS = ("matrix", "zip", "glob")
TOP_LEVEL = ("version", "defaults", *EXPANDERS, "jobs")
_JOB_KEYS = [f.name for f in fields(Job)]
_TEXT = ("prompt", "negative_prompt", "name", "model")


@dataclass(frozen=True)
class Invalid:
    """An entry that is no job: where it stands, and what is wrong with it."""

    where: str
    message: str


Override = tuple[str, Any]


def parse_override(text: str) -> Override:
    """Split ``a.b=v`` of ``--set`` and read the value as YAML. Raises JobError."""
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise JobError(f"--set takes KEY=VALUE such as steps=20 or motion.strength=1, got {text!r}")
    _known_key(key, "--set")
    try:
        return key, value if key in _TEXT else yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise JobError(f"--set {text}: the value is no YAML: {error}") from error


def read(path: str | Path, overrides: Sequence[Override] = ()) -> Iterator[Job | Invalid]:
    """Yield jobs of one job file, or of a video that ``accel render`` wrote, as they are expanded.

    Raises JobError for what is wrong with the file itself.
    """
    path = user_path(path)
    if is_rendered(path):
        yield _from_video(path, overrides)
        return
    found = False
    for where, entry in _entries(path):
        found = True
        try:
            for number, data in enumerate(_expand(entry, where), 1):
                for key, value in overrides:
                    _put(data, key, copy.deepcopy(value))
                label = where if number == 1 else f"{where}, variant {number}"
                yield _job(data, label)
        except JobError as error:
            yield Invalid(where, str(error))
    if not found:
        raise JobError(f"{path} needs at least one job")


def read_jobs(path: str | Path) -> list[Job]:
    """Return all jobs of a file.

    Raises JobError for the first that is not valid.
    """
    jobs = []
    for entry in read(path):
        if isinstance(entry, Invalid):
            raise JobError(entry.message)
        jobs.append(entry)
    return jobs


def _job(data: dict[str, Any], where: str) -> Job | Invalid:
    try:
        return make_job(data, where)
    except JobError as error:
        return Invalid(where, str(error))


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
        _put(data, key, value)
    return _job(data, str(path))


# ----------------------------------------------------------------------------------------- reading


def _entries(path: Path) -> Iterator[tuple[str, Any]]:
    """(where, raw entry) of a file; every entry is already merged with the file's defaults."""
    readers = {".jsonl": _json_lines, ".ndjson": _json_lines, ".csv": _csv, ".json": _json}
    try:
        with open_source(path) as file:
            yield from readers.get(suffix_of(path, file, _JOB_KEYS), _yaml)(path, file)
    except OSError as error:
        raise JobError(f"cannot read job file {path}: {error.strerror}") from error
    except (yaml.YAMLError, json.JSONDecodeError, UnicodeDecodeError, csv.Error) as error:
        raise JobError(
            f"{path} is not a YAML, JSON, JSON Lines or CSV job file: {error}"
        ) from error


def _yaml(path: Path, file: IO[str]) -> Iterator[tuple[str, Any]]:
    top, has_jobs = read_top_level(file, "jobs")
    shared = _top_level(top, path, has_jobs)
    file.seek(0)
    jobs = stream_list(file, "jobs") if has_jobs else iter([{}])
    yield from _numbered(path, jobs, shared)


def _json(path: Path, file: IO[str]) -> Iterator[tuple[str, Any]]:
    data = json.load(file)
    jobs = None
    if isinstance(data, dict) and isinstance(data.get("jobs"), list):
        jobs = data.pop("jobs")
    shared = _top_level(data, path, jobs is not None)
    yield from _numbered(path, [{}] if jobs is None else jobs, shared)


def _json_lines(path: Path, file: IO[str]) -> Iterator[tuple[str, Any]]:
    shared: dict[str, Any] = {}
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        entry = json.loads(line)
        if isinstance(entry, dict) and ("defaults" in entry or "version" in entry):
            shared = _top_level(entry, path, True)
        else:
            yield f"{path}, line {number}", _merged(shared, entry)


def _csv(path: Path, file: IO[str]) -> Iterator[tuple[str, Any]]:
    rows = csv.DictReader(file, strict=True)
    for key in rows.fieldnames or ():
        _known_key(key, str(path))
    for number, row in enumerate(rows, 2):
        where = f"{path}, row {number}"
        if None in row:
            yield where, f"{len(row[None])} cells more than the header"
            continue
        entry: dict[str, Any] = {}
        for key, cell in row.items():
            if cell:
                _put(entry, key, cell if key in _TEXT else yaml.safe_load(cell))
        yield where, entry


def _numbered(path: Path, jobs: Iterable[Any], shared: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for number, entry in enumerate(jobs, 1):
        yield f"{path}, job {number}", _merged(shared, entry)


def _top_level(data: Any, path: Path, has_jobs: bool) -> dict[str, Any]:
    """Check everything but the jobs; returns what every job starts from."""
    if not isinstance(data, dict):
        raise JobError(f"{path} needs a mapping with 'jobs:' at its top level")
    for key in data:
        if key not in TOP_LEVEL:
            hint = did_you_mean(str(key), list(TOP_LEVEL))
            raise JobError(f"{path} has an unknown top-level key {key!r}{hint}; known: {TOP_LEVEL}")
    version = data.get("version", VERSION)
    if version != VERSION:
        raise JobError(f"{path} has version {version!r}; this accel reads version {VERSION}")
    shared = data.get("defaults") or {}
    if not isinstance(shared, dict):
        raise JobError(f"{path}: defaults must be a mapping, got {shared!r}")
    for key in shared:
        _known_key(key, f"{path}, defaults")
    if "jobs" in data:
        raise JobError(f"{path}: 'jobs:' must be a list of jobs, got {data['jobs']!r}")
    expanders = {name: data[name] for name in EXPANDERS if data.get(name)}
    if not has_jobs and not expanders:
        raise JobError(
            f"{path} needs a top-level 'jobs:' with at least one job, or a matrix, zip or glob"
        )
    return {**shared, **expanders}


def _known_key(key: Any, where: str) -> None:
    first = str(key).split(".")[0]
    if first not in _JOB_KEYS:
        hint = did_you_mean(first, _JOB_KEYS)
        raise JobError(f"{where} has an unknown key {key!r}{hint}; known: {_JOB_KEYS}")


# --------------------------------------------------------------------------------------- expanding


def _merged(shared: Mapping[str, Any], entry: Any) -> Any:
    """``entry`` over the defaults; expanders of the file and of the entry add up."""
    if not isinstance(entry, dict):
        return entry
    both = {
        name: {**shared[name], **entry[name]}
        for name in EXPANDERS
        if isinstance(shared.get(name), dict) and isinstance(entry.get(name), dict)
    }
    return {**shared, **entry, **both}


def _expand(entry: Any, where: str) -> Iterator[dict[str, Any]]:
    """Yield every combination of an entry's matrix, zip and glob, as plain job values."""
    if not isinstance(entry, dict):
        raise JobError(f"{where} must be a mapping, got {entry!r}")
    base = {k: v for k, v in entry.items() if k not in EXPANDERS}
    axes: list[list[tuple[tuple[str, Any], ...]]] = [
        [((key, value),) for value in values]
        for key, values in _lists(entry.get("matrix"), where, "matrix").items()
    ]
    axes += [
        [((key, path),) for path in _matches(key, pattern, where)]
        for key, pattern in _mapping(entry.get("glob"), where, "glob").items()
    ]
    zipped = _lists(entry.get("zip"), where, "zip")
    if len({len(values) for values in zipped.values()}) > 1:
        lengths = {key: len(values) for key, values in zipped.items()}
        raise JobError(f"{where}: the lists of zip must be equally long, got {lengths}")
    if zipped:
        axes.append(
            [tuple(zip(zipped, row, strict=True)) for row in zip(*zipped.values(), strict=True)]
        )
    for choice in itertools.product(*axes):
        data = copy.deepcopy(base) if axes else base
        for key, value in itertools.chain(*choice):
            _put(data, key, value)
        yield data


def _mapping(value: Any, where: str, name: str) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise JobError(f"{where}: {name} must be a mapping, got {value!r}")
    for key in value or {}:
        _known_key(key, f"{where}, {name}")
    return value or {}


def _lists(value: Any, where: str, name: str) -> dict[str, list[Any]]:
    mapping = _mapping(value, where, name)
    for key, values in mapping.items():
        if not isinstance(values, list) or not values:
            raise JobError(f"{where}: {name} {key!r} needs a list of values, got {values!r}")
    return mapping


def _matches(key: str, pattern: Any, where: str) -> list[str]:
    pattern = with_home(pattern)
    found = sorted(glob.glob(pattern, recursive=True)) if isinstance(pattern, str) else []
    if not found:
        raise JobError(f"{where}: glob {key!r} matches no file: {pattern!r} from {Path.cwd()}")
    return found


def _put(data: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key, copying the mappings on its way."""
    *parents, last = key.split(".")
    for parent in parents:
        inner = data.get(parent)
        data[parent] = dict(inner) if isinstance(inner, dict) else {}
        data = data[parent]
    data[last] = value
