"""Job files in JSON and JSON Lines: every job with its line, and nothing dropped.

The two outer levels of a JSON file are walked here, so that each job is read on its own; Python's
reader does the rest (``core/strict_json.py``).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accel.core.plain_values import Wrong, shown
from accel.core.strict_json import JSONFault, excerpt, line_of, read_value, skip_space
from accel.pipelines.batch.bounds import BOUNDS
from accel.pipelines.job import JobError

_ADVICE = "close every bracket and quotation mark, and put a comma between two values"


@dataclass(frozen=True)
class Listed:
    """An item of a list, the line it begins in, and its value."""

    line: int
    value: Any


def read_json(text: str, path: Path, name: str) -> tuple[Any, list[Listed] | None]:
    """Return the top-level mapping without the list ``name``, and the items of that list.

    Anything but a mapping is returned as it is. Without the list the items are None.

    Raises:
        JobError: It is no JSON, or a key of the top level stands twice.
    """
    cursor = _Cursor(text)
    try:
        found = cursor.top_level(name)
        cursor.end()
    except JSONFault as fault:
        line = line_of(text, fault.at)
        raise JobError(f"{path}, line {line}: not a JSON file: {fault}; {_ADVICE}") from None
    except _FileError as error:
        raise JobError(f"{path}, line {error.args[1]}: {error.args[0]}") from None
    return found


class _FileError(Exception):
    pass


class _Cursor:
    """A place in a text of JSON; lines are counted on the way."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, skip_space(text, 0)
        self._line, self._counted = 1, 0

    @property
    def line(self) -> int:
        """Return the line of the next character that is no white space."""
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line

    def top_level(self, name: str) -> tuple[Any, list[Listed] | None]:
        """Return what ``read_json`` does."""
        if not self._takes("{"):
            return self._value(), None
        found: dict[str, Any] = {}
        items: list[Listed] | None = None
        lines: dict[str, int] = {}
        while not self._takes("}"):
            if lines:
                self._needs(",")
            line, key = self.line, self._value()
            if not isinstance(key, str):
                raise JSONFault("a key must be text in quotation marks", self._at)
            self._needs(":")
            if key in lines:
                raise _FileError(
                    f"the key {shown(key)} stands twice at the top level, first in line "
                    f"{lines[key]}; join the two",
                    line,
                )
            lines[key] = line
            if key == name and self._takes("["):
                items = list(self._items())
            else:
                found[key] = self._value()
        return found, items

    def end(self) -> None:
        """Raise JSONFault unless nothing follows."""
        if self._at < len(self._text):
            raise JSONFault(
                f"more follows after its end: {excerpt(self._text, self._at)}; with a job on each "
                "line it is JSON Lines, and its name must end in .jsonl; else",
                self._at,
            )

    def _items(self) -> Iterator[Listed]:
        for number in itertools.count():
            if self._takes("]"):
                return
            if number:
                self._needs(",")
            if number >= BOUNDS.jobs:
                raise _FileError(f"more than {BOUNDS.jobs:,} jobs; split the file", self.line)
            yield Listed(self.line, self._value())

    def _value(self) -> Any:
        value, end = read_value(self._text, self._at)
        self._at = skip_space(self._text, end)
        return value

    def _takes(self, char: str) -> bool:
        """Pass over ``char`` if it comes next, and tell whether it did."""
        if not self._text.startswith(char, self._at):
            return False
        self._at = skip_space(self._text, self._at + 1)
        return True

    def _needs(self, char: str) -> None:
        if not self._takes(char):
            found = excerpt(self._text, self._at)
            raise JSONFault(f"{char!r} is missing before {found}", self._at)


def json_lines(text: str, path: Path) -> Iterator[Listed]:
    """Yield the value of each line that is not empty; a ``Wrong`` for a line that is no JSON.

    Raises:
        JobError: The text is no JSON Lines at all, or the defaults of jobs cannot be read.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if not (line := line.strip()):
            continue
        try:
            value, end = read_value(line, 0)
            if end < len(line):
                raise JSONFault(f"JSON with more on the same line: {excerpt(line, end)}", end)
        except JSONFault as fault:
            if number == 1 and line in ("{", "["):
                raise JobError(
                    f"{path}, line 1: not JSON Lines, which has a whole job on each line; a file "
                    "that is one mapping over many lines must be named .json"
                ) from None
            if '"defaults"' in line or '"version"' in line:
                raise JobError(
                    f"{path}, line {number}: {fault}; {_ADVICE}: the jobs below need this line"
                ) from None
            value = Wrong(f"{fault}; {_ADVICE}")
        yield Listed(number, value)
