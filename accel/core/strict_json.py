"""JSON that any program reads, and that says everything once.

Written: no infinity and no "not a number", for which the standard has no word. Read: a key that
stands twice, a number that is not finite or too large, and depth without end are refused; Python's
own reader drops the first, and ends in an exception of its own at the others.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from accel.core.plain_values import MOST_DEPTH, Wrong, check, shown, too_large


def finite(value: Any) -> Any:
    """Return plain JSON values with None in place of every number that is not finite."""
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (dict, Mapping)):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return value


def dumps(value: Any, indent: int | None = None, *, ascii_only: bool = True) -> str:
    """Return ``value`` as JSON; a number that is not finite becomes null."""
    return json.dumps(finite(value), indent=indent, ensure_ascii=ascii_only, allow_nan=False)


# ----------------------------------------------------------------------------------------- reading

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]')


class JSONFault(ValueError):
    """Text that is no JSON: what is wrong, and at which character."""

    def __init__(self, message: str, at: int) -> None:
        super().__init__(message)
        self.at = at


def loads(text: str, where: str) -> Any:
    """Return the one value that a text holds.

    Raises:
        ValueError: The text is no JSON, or holds what ``check`` of ``plain_values.py`` refuses; the
            message begins with ``where``.
    """
    try:
        start = skip_space(text, 0)
        value, end = read_value(text, start)
        if (end := skip_space(text, end)) < len(text):
            raise JSONFault("there is more after the end of the value", end)
    except JSONFault as fault:
        raise ValueError(f"{where}, line {line_of(text, fault.at)}: {fault}") from None
    check(value, where)
    return value


def skip_space(text: str, at: int) -> int:
    """Return the place of the first character from ``at`` on that is no white space."""
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def line_of(text: str, at: int) -> int:
    """Return the line, counted from 1, of a character."""
    return text.count("\n", 0, at) + 1


def read_value(text: str, at: int) -> tuple[Any, int]:
    """Return the value that begins at a character, and where it ends.

    What cannot be used is a ``Wrong`` in its place. Raises JSONFault for what is no JSON.
    """
    try:
        return _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise JSONFault(f"not JSON from here on: {excerpt(text, error.pos)}", error.pos) from None
    except RecursionError:
        raise JSONFault(f"nested deeper than {MOST_DEPTH} levels", _deep(text, at)) from None


def excerpt(text: str, at: int) -> str:
    """Return a few characters from a place on, quoted; "the end" behind the last one."""
    rest = text[at : at + 40].partition("\n")[0].strip()
    return shown(rest) if rest else "the end of the line" if text[at:].strip() else "the end"


def _deep(text: str, at: int) -> int:
    """Return the place where a text is nested too deeply."""
    depth = 0
    for token in _TOKEN.finditer(text, at):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
        if depth > MOST_DEPTH:
            return token.start()
    return at


def _mapping(pairs: list[tuple[str, Any]]) -> Any:
    values = dict(pairs)
    if len(values) == len(pairs):
        return values
    seen = set[str]()
    twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
    return Wrong(f"a mapping in which the key {shown(twice)} stands twice; keep one of them")


def _whole(digits: str) -> Any:
    return int(digits) if len(digits) <= 20 else Wrong(too_large(digits))


def _real(digits: str) -> Any:
    value = float(digits)
    short = digits if len(digits) <= 40 else f"{digits[:40]}..."
    return value if math.isfinite(value) else Wrong(f"{short}, too large for a number")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_mapping,
    parse_int=_whole,
    parse_float=_real,
    parse_constant=lambda name: Wrong(f"{name}, which is no number in JSON"),
)
