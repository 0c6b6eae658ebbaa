"""Makes jobs of an entry of a job file: its defaults, and every combination of its values.

A value is never replaced without a word. What stands nearer to the job goes over what is more
general: the job over the file's defaults, its matrix over the file's. Two values for one key in
one place are a mistake of the job.
"""

from __future__ import annotations

import glob
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from accel.core.plain_values import shown
from accel.core.validate import did_you_mean
from accel.pipelines.batch.bounds import BOUNDS
from accel.pipelines.job import SEEDS, Job, JobError
from accel.pipelines.paths import with_home

COUNT = "count"  # so many jobs with seeds that follow each other
EXPANDERS = ("matrix", "zip", "glob", COUNT)
KEYS = [*(f.name for f in fields(Job)), COUNT]


def why_unknown(key: str) -> str:
    """Return what is wrong with a key of a job, dotted or not, or ""."""
    first = key.split(".")[0]
    if first in KEYS:
        return ""
    hint = did_you_mean(first, KEYS)
    return f"an unknown key {shown(key)}{hint}; known: {KEYS}"


def known_key(key: Any, where: str) -> None:
    """Raise JobError for a key that no job has."""
    if why := why_unknown(str(key)):
        raise JobError(f"{where} has {why}")


def merged(shared: Mapping[str, Any], entry: Any) -> Any:
    """Return ``entry`` over the defaults; expanders of the file and of the entry add up."""
    if not isinstance(entry, dict):
        return entry
    both = {
        name: {**shared[name], **entry[name]}
        for name in EXPANDERS
        if isinstance(shared.get(name), dict) and isinstance(entry.get(name), dict)
    }
    data = {**shared, **entry, **both}
    settle_plan(data, entry)
    return data


def counted(data: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return an entry over which ``count`` was put, with the seed to count from, and these two."""
    counts = isinstance(data, dict) and (COUNT in given or data.get(COUNT) is not None)
    first = {key: given[key] for key in (COUNT, "seed") if counts and key in given}
    return ({**data, **first} if first else data), first


def settle_plan(data: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Let the plan or preset that is ``given`` go over the other one in ``data``.

    A job's plan stands instead of its preset, so a preset would be lost beside it.
    """
    for one, other in (("preset", "plan"), ("plan", "preset")):
        if one in given and other not in given and (one == "preset" or given[one] is not None):
            data.pop(other, None)


def check_plan(given: Mapping[str, Any], where: str) -> None:
    """Raise JobError where one place gives both a plan and a preset.

    Beside a plan the default preset passes: jobs that are written out whole have it.
    """
    preset, plan = given.get("preset"), given.get("plan")
    if plan is not None and preset not in (None, Job.preset):
        raise JobError(
            f"{where} has the preset {shown(preset)} and a plan too; keep one of them, as a plan "
            "stands instead of a preset"
        )


def expand(entry: Any, own: Any, where: str) -> Iterator[dict[str, Any]]:
    """Yield every combination of an entry's matrix, zip, glob and count, as plain job values.

    Args:
        entry: The entry with the file's defaults.
        own: The entry as it stands in the file.
        where: For messages.

    Raises:
        JobError: It is no mapping, or cannot be expanded.
    """
    if not isinstance(entry, dict):
        hint = f"; write {{prompt: {shown(entry)}}}" if isinstance(entry, str) else ""
        raise JobError(f"{where} must be a mapping, got {shown(entry)}{hint}")
    base = {k: v for k, v in entry.items() if k not in EXPANDERS}
    for key in base:
        known_key(key, where)
    own = own if isinstance(own, dict) else {}
    matrix, zipped = (_lists(entry.get(name), where, name) for name in ("matrix", "zip"))
    globs = _mapping(entry.get("glob"), where, "glob")
    _check_keys({"matrix": matrix, "zip": zipped, "glob": globs}, own, where)
    axes: list[list[tuple[tuple[str, Any], ...]]] = [
        [((key, value),) for value in values] for key, values in matrix.items()
    ]
    axes += [[((key, path),) for path in _matches(key, globs[key], where)] for key in globs]
    if len({len(values) for values in zipped.values()}) > 1:
        lengths = {key: len(values) for key, values in zipped.items()}
        raise JobError(f"{where}: the lists of zip must be equally long, got {shown(lengths)}")
    if zipped:
        axes.append(
            [tuple(zip(zipped, row, strict=True)) for row in zip(*zipped.values(), strict=True)]
        )
    seeds = _seeds(entry, {*matrix, *zipped, *globs}, where)
    if seeds:
        axes.append([(("seed", seed),) for seed in seeds])
    count = math.prod(map(len, axes))
    if count > BOUNDS.jobs:
        product = " x ".join(f"{len(axis):,}" for axis in axes)
        raise JobError(
            f"{where}: its matrix, zip and glob make {count:,} jobs ({product[:200]}), at most "
            f"{BOUNDS.jobs:,} can be in a file; take values away, or split it"
        )
    for choice in itertools.product(*axes):
        data, chosen = dict(base), dict(itertools.chain(*choice))
        for key, value in chosen.items():
            put(data, key, value)
        settle_plan(data, chosen)
        check_plan({**own, **chosen}, where)
        yield data


def _seeds(entry: Mapping[str, Any], chosen: set[str], where: str) -> Sequence[int]:
    """Return the seeds that ``count`` asks for, () without it."""
    count, seed = entry.get(COUNT), entry.get("seed", Job.seed)
    if count is None:
        return ()
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise JobError(f"{where}: count must be a whole number from 1, got {shown(count)}")
    if "seed" in chosen:
        raise JobError(
            f"{where}: count gives the jobs seeds of their own, and so does another expander; keep "
            "one of them"
        )
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= SEEDS[-count]:
        raise JobError(
            f"{where}: count {count} needs a whole number to count from as seed, at most "
            f"2^63 - {count}, got {shown(seed)}"
        )
    return range(seed, seed + count)


def put(data: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key, copying the mappings on its way."""
    *parents, last = key.split(".")
    for parent in parents:
        inner = data.get(parent)
        data[parent] = dict(inner) if isinstance(inner, dict) else {}
        data = data[parent]
    data[last] = value


def why_twice(keys: list[str]) -> str:
    """Return which two of some dotted keys say the same, or ""."""
    seen = set(keys)
    for key in keys:
        words = key.split(".")
        for n in range(1, len(words)):
            if (outer := ".".join(words[:n])) in seen:
                return f"{shown(outer)} and {shown(key)}, which is a part of it"
    return ""


def _check_keys(expanders: Mapping[str, Mapping[str, Any]], own: Any, where: str) -> None:
    """Raise JobError where two of the expanders, or one and the job itself, set one key."""
    first: dict[str, str] = {}
    for name, mapping in expanders.items():
        for key in mapping:
            if key in first:
                raise JobError(
                    f"{where}: {key!r} stands in {first[key]} and in {name}; keep one of them"
                )
            first[key] = name
            if stands := _stands(own, key):
                raise JobError(
                    f"{where}: {key!r} stands in {name}, and {stands!r} in the job itself; keep "
                    "one of them, or put the value that others go over into defaults"
                )
    if why := why_twice(list(first)):
        raise JobError(f"{where} expands {why}; keep one of them")


def _stands(own: Any, key: str) -> str:
    """Return the part of a dotted key that an entry sets itself to what is no mapping, or ""."""
    words = key.split(".")
    for n, word in enumerate(words, 1):
        if not isinstance(own, dict) or own.get(word) is None:
            return ""
        own = own[word]
        if not isinstance(own, dict) or n == len(words):
            return ".".join(words[:n])
    return ""


def _mapping(value: Any, where: str, name: str) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise JobError(f"{where}: {name} must be a mapping, got {shown(value)}")
    for key in value or {}:
        known_key(key, f"{where}, {name}")
        if str(key).split(".")[0] == COUNT:
            raise JobError(f"{where}: count cannot stand in {name}; write it beside {name}")
    return value or {}


def _lists(value: Any, where: str, name: str) -> dict[str, list[Any]]:
    mapping = _mapping(value, where, name)
    for key, values in mapping.items():
        if not isinstance(values, list) or not values:
            raise JobError(f"{where}: {name} {key!r} needs a list of values, got {shown(values)}")
    return mapping


def _matches(key: str, pattern: Any, where: str) -> list[str]:
    if not isinstance(pattern, str):
        raise JobError(f"{where}: glob {key!r} needs a pattern as text, got {shown(pattern)}")
    pattern = with_home(pattern)
    found = sorted(itertools.islice(glob.iglob(pattern, recursive=True), BOUNDS.jobs + 1))
    if not found:
        raise JobError(f"{where}: glob {key!r} matches no file: {shown(pattern)} from {Path.cwd()}")
    return found
