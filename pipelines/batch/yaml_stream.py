"""Reads the jobs of a YAML file one by one, so that memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yaml import events as ev

from accel.core.plain_values import Wrong, shown
from accel.pipelines.batch.yaml_values import SCALARS, Builder, TooMuchError, line_of_event
from accel.pipelines.job import JobError


@dataclass(frozen=True)
class Part:
    """A key with its value, or one item of the list of jobs, whose ``key`` is None.

    ``document`` and ``line`` are counted from 1; ``root``: the document is no mapping.
    """

    document: int
    line: int
    key: str | None
    value: Any
    root: bool = False


def parts(text: str, path: Path, name: str) -> Iterator[Part]:
    """Yield the keys of all documents' mappings in order, and the items of the list ``name``.

    A list called ``name`` is first yielded as a key with the value [], then its items follow.
    Documents without anything are left out.

    Raises:
        JobError: It is no YAML, or a key of the top level stands twice.
    """
    builder = Builder(text)
    try:
        yield from _documents(builder, path, name)
    except yaml.YAMLError as error:
        raise _syntax(error, text, path) from None


def _documents(builder: Builder, path: Path, name: str) -> Iterator[Part]:
    number = 0
    builder.take()
    while not isinstance(builder.first, ev.StreamEndEvent):
        builder.take()
        builder.anchors.clear()
        number += 1
        event = builder.take()
        if isinstance(event, ev.MappingStartEvent):
            yield from _top_level(builder, path, name, number)
        else:
            value = builder.value(event)
            if value is not None:
                yield Part(number, line_of_event(event), None, value, root=True)
        builder.take()


def _top_level(builder: Builder, path: Path, name: str, number: int) -> Iterator[Part]:
    seen: dict[str, int] = {}
    while not isinstance(event := builder.take(), ev.MappingEndEvent):
        builder.count = 0
        key, line = builder.key(event, 0), line_of_event(event)
        if isinstance(key, Wrong):
            raise JobError(f"{path}, line {line}: a key is {key.message}")
        if key in seen:
            raise JobError(
                f"{path}, line {line}: the key {shown(key)} stands twice at the top level, first "
                f"in line {seen[key]}; join the two, or put '---' between two job files"
            )
        seen[key] = line
        event = builder.take()
        if key == name and isinstance(event, ev.SequenceStartEvent):
            yield Part(number, line, key, [])
            while not isinstance(event := builder.take(), ev.SequenceEndEvent):
                builder.count = 0
                yield Part(number, line_of_event(event), None, builder.value(event))
            continue
        value = builder.value(event, as_text=key in SCALARS)
        if key == name and isinstance(value, list):  # an alias
            yield Part(number, line, key, [])
            yield from (Part(number, line, None, item) for item in value)
        else:
            yield Part(number, line, key, value)


def _syntax(error: yaml.YAMLError, text: str, path: Path) -> JobError:
    """Return what is wrong with a file that is no YAML, without the parser's words."""
    mark = getattr(error, "problem_mark", None)
    begin = getattr(error, "context_mark", None)
    position = getattr(error, "position", None)
    if mark is None:
        character = "" if position is None else text.encode()[:position].decode(errors="ignore")
        line = character.count("\n") + 1
        return JobError(
            f"{path}, line {line}: not a YAML file: it holds a character that text cannot hold, "
            "such as NUL; take it out, or save the file as UTF-8"
        )
    lines = text.split("\n")
    number = min(mark.line, len(lines) - 1)
    found = lines[number][:80].strip()
    what = f"from here on: {shown(found)}" if found else "to its end"
    if isinstance(error, TooMuchError):
        return JobError(f"{path}, line {number + 1}: {error.problem}")
    told = f"{path}, line {number + 1}: not a YAML file {what}"
    if begin is not None and begin.line < number:
        told += f", or from line {begin.line + 1} on, where it begins"
    if path.suffix.lower() not in (".yaml", ".yml"):
        told += ", as which it is read for want of another suffix (.json, .jsonl, .csv, .tsv)"
    if "\t" in lines[number][: len(lines[number]) - len(lines[number].lstrip())]:
        return JobError(f"{told}; indent with spaces, not tabs")
    return JobError(
        f"{told}; close every bracket and quotation mark, and put text with ': ' or ' #' "
        "into quotation marks"
    )
