"""What else the chosen model's pipeline takes, as a table of the form made from its signature.

A browser may only give numbers, texts and choices: arguments that take a file, or any value, are
not offered, and one that is sent nonetheless is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from accel.core.plain_values import shown
from accel.pipelines.batch.yaml_values import parsed_cell
from accel.pipelines.inputs.taken import Parameter, Takes
from accel.pipelines.job import JobError

HEADERS = ["argument", "takes", "default", "value"]
_LONGEST = 2000  # characters of a value
_MOST = 200  # rows


def rows(taken: Takes, values: Mapping[str, Any]) -> list[list[str]]:
    """Return a row for each argument that is offered, with the value that it has."""
    return [
        [
            name,
            p.described(),
            "" if p.default is None else _text(p.default),
            _text(values.get(name)),
        ]
        for name, p in taken.arguments.items()
        if _offered(p)
    ]


def _offered(parameter: Parameter) -> bool:
    return not parameter.media and bool(set(parameter.kinds) - {"none"} or parameter.choices)


def _text(value: Any) -> str:
    if value is None or not _is_one(value):
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _is_one(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def values_of(table: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Return the values that a table holds by argument; empty ones are left out."""
    found = {}
    for row in table[:_MOST]:
        if len(row) == len(HEADERS) and row[-1] not in (None, ""):
            text = str(row[-1])
            if len(text) > _LONGEST:
                raise JobError(f"{shown(row[0])} has {len(text)} characters, at most {_LONGEST}")
            found[str(row[0])] = parsed_cell(text, f"arguments.{row[0]}")
    return found


def chosen(table: Sequence[Sequence[Any]], taken: Takes | str) -> dict[str, Any]:
    """Return ``arguments`` of a job for a table that a browser sent.

    ``taken``: what the pipeline takes, or why that is not known.

    Raises JobError for what is not offered.
    """
    values = values_of(table)
    if values and isinstance(taken, str):
        raise JobError(f"what else this model takes is not known: {taken}; empty the table")
    for name, value in values.items():
        parameter = taken.arguments.get(name) if isinstance(taken, Takes) else None
        if parameter is None or not _offered(parameter):
            raise JobError(f"argument {shown(name)} is not offered here; empty its value")
        if not _is_one(value):
            raise JobError(f"argument {name} must be one number or text, got {shown(value)}")
    return values
