"""Plain values out of files of others (JSON, YAML, CSV), within limits.

A reader puts a ``Wrong`` in the place of a value that it cannot give, so that one bad value is a
fault of the item it stands in, not of the whole file. ``check`` finds it, and with it everything
that no program after it should meet: text that no file can hold, numbers that are not finite, more
depth or more values than anybody writes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

MOST_DEPTH = 64
MOST_VALUES = 250_000
MOST_WHOLE = 2**63 - 1
_SHOWN = 200  # characters of a value in a message


@dataclass(frozen=True)
class Wrong:
    """Stands in the place of a value that could not be read; ``message`` completes "it is ..."."""

    message: str


def shown(value: object) -> str:
    """Return a value for a message: its ``repr``, cut where it is long."""
    if isinstance(value, Wrong):
        return f"a value that is {value.message}"
    if _is_large(value):
        return f"a {'mapping' if isinstance(value, dict) else 'list'} of many values"
    try:
        text = repr(value)
    except ValueError:  # Python writes out no number of more than 4,300 digits
        return "a whole number of thousands of digits"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text):,} characters)"


def _is_large(value: object) -> bool:
    """Tell whether a value holds so much that its ``repr`` is of no use, or without an end."""
    stack, count = [value], 0
    while stack and count <= _SHOWN:
        item = stack.pop()
        count += 1
        if isinstance(item, (dict, list, tuple)):
            stack += list(item.values() if isinstance(item, dict) else item)[:_SHOWN]
    return count > _SHOWN


def why_no_text(value: str) -> str:
    """Return what keeps ``value`` from being written to a file, or ""."""
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        return (
            "text with half a character (a lone surrogate, or a byte that is not UTF-8); "
            "write the whole character"
        )
    return ""


def check(value: Any, where: str, most: int = MOST_VALUES) -> int:
    """Return how many values a value holds, itself included and aliases written out.

    Raises:
        ValueError: A ``Wrong``, a text, number or type that cannot be used, more than ``most``
            values, or more than ``MOST_DEPTH`` levels; the message begins with ``where``.
    """
    count = 0
    stack: list[tuple[Any, Any, int]] = [(value, None, 0)]  # value, path as a linked list, depth
    while stack:
        value, path, depth = stack.pop()
        count += 1
        if fault := _fault(value) or _key_fault(value):
            raise ValueError(f"{_where(where, path)} is {fault}")
        inner: list[tuple[Any, Any]] = []
        if isinstance(value, dict):
            inner = list(value.items())
        elif isinstance(value, list):
            inner = list(enumerate(value))
        if inner and depth >= MOST_DEPTH:
            raise ValueError(
                f"{_where(where, path, 3)} is nested deeper than {MOST_DEPTH} levels; write it "
                "flatter, and let no anchor hold itself"
            )
        if count + len(stack) + len(inner) > most:
            raise ValueError(
                f"{where} holds more than {most:,} values, those behind aliases counted each "
                "time; split it, or put what is large into a file of its own"
            )
        stack += [(item, (path, key), depth + 1) for key, item in reversed(inner)]
    return count


def _fault(value: Any) -> str:
    """Return what is wrong with one value, apart from what it holds, or ""."""
    if isinstance(value, str):
        return why_no_text(value)
    if value is None or isinstance(value, (bool, dict, list)):
        return ""
    if isinstance(value, int):
        return "" if abs(value) <= MOST_WHOLE else too_large(value)
    if isinstance(value, float):
        return "" if math.isfinite(value) else f"{value}, no finite number"
    return value.message if isinstance(value, Wrong) else f"of type {type(value).__name__}"


def too_large(value: int | str) -> str:
    """Return what a whole number that is too large is; a text is its digits."""
    digits = value if isinstance(value, str) else shown(value)
    short = digits if len(digits) <= 40 else f"{digits[:20]}... ({len(digits):,} digits)"
    return f"{short}, too large: at most 2^63 - 1, {MOST_WHOLE}, can be read"


def _key_fault(value: Any) -> str:
    if not isinstance(value, dict):
        return ""
    faults = (
        why_no_text(key) if isinstance(key, str) else f"no text: {shown(key)}" for key in value
    )
    return next((f"a mapping with a key that is {fault}" for fault in faults if fault), "")


def _where(where: str, path: Any, most: int = 8) -> str:
    """Return ``where`` with a path such as "motion.drag[2].by" behind it."""
    keys = []
    while path is not None:
        path, key = path
        keys.append(f"[{key}]" if isinstance(key, int) else f".{shown(key)[1:-1]}")
    text = "".join(keys[::-1][:most]).removeprefix(".") + ("..." if len(keys) > most else "")
    return f"{where}: {text}" if text else where
