"""Checks of user input: each error names the value, what is allowed, and the way out.

Values are parsed once, when a configuration, plan or job is made, so a mistake is raised in the
line that wrote it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

T = TypeVar("T")


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Return " (did you mean 'x'?)" for a misspelled word, or "" if nothing is near."""
    import difflib

    near = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def one_of(name: str, value: object, allowed: Sequence[str]) -> None:
    """Raise ValueError unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        hint = did_you_mean(str(value), list(allowed))
        raise ValueError(f"{name} must be one of {list(allowed)}, got {value!r}{hint}")


def number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """Return ``value`` as a finite float in [low, high].

    Raises ValueError, naming the value, for anything else.
    """
    bad = isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value)
    if bad or not low <= value <= high:
        limits = "" if low == -math.inf and high == math.inf else f" from {low:g} to {high:g}"
        raise ValueError(f"{name} must be a number{limits}, got {value!r}")
    return float(value)


def whole(name: str, value: Any, low: int | None = None, high: int | None = None) -> int:
    """Return ``value`` as an int from ``low`` to ``high``.

    Raises ValueError, naming the value, for anything else.
    """
    bad = isinstance(value, bool) or not isinstance(value, int)
    if bad or (low is not None and value < low) or (high is not None and value > high):
        limits = "" if low is None else f" from {low}" + ("" if high is None else f" to {high}")
        raise ValueError(f"{name} must be a whole number{limits}, got {value!r}")
    return int(value)


def flag(name: str, value: Any) -> None:
    """Raise ValueError unless ``value`` is true or false."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r}")


def text(name: str, value: Any) -> None:
    """Raise ValueError unless ``value`` is text that a file or a browser can take."""
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, got {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        bad = value[error.start : error.end]
        raise ValueError(
            f"{name} holds {bad!a}, half of a surrogate pair, at position {error.start}; "
            "remove it or write the whole character"
        ) from error


def pair(name: str, value: Any) -> tuple[float, float]:
    """Return ``value`` as two finite floats (x, y).

    Raises ValueError, naming the value, for anything else.
    """
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ValueError(f"{name} must be two numbers [x, y], got {value!r}")
    try:
        return number(name, value[0]), number(name, value[1])
    except ValueError:
        raise ValueError(f"{name} must be two numbers [x, y], got {value!r}") from None


def instance(name: str, value: Any, cls: type[T], example: str) -> None:
    """Raise ValueError unless ``value`` is a ``cls`` or None; ``example`` shows one."""
    if value is not None and not isinstance(value, cls):
        raise ValueError(f"{name} must be {cls.__name__} or None, such as {example}, got {value!r}")


def known_keys(data: Any, known: Sequence[str], where: str) -> dict[str, Any]:
    """Return a mapping as a dictionary.

    Raises ValueError for another value or an unknown key.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{where} must be a mapping, got {data!r}")
    for key in data:
        if key not in known:
            hint = did_you_mean(str(key), known)
            raise ValueError(f"{where} has an unknown key {key!r}{hint}; known: {list(known)}")
    return dict(data)


def from_dict(cls: type[T], data: Any, where: str) -> T:
    """Return the dataclass ``cls`` made from a mapping, or ``data`` itself if it is one already.

    Raises ValueError for any other value, and for an unknown or a missing key.
    """
    if isinstance(data, cls):
        return data
    known = fields(cls)  # type: ignore[arg-type]
    given = known_keys(data, [f.name for f in known if f.init], where)
    try:
        return cls(**given)
    except TypeError as error:
        missing = str(error).partition("argument")[2].lstrip("s: ") or str(error)
        raise ValueError(f"{where} lacks {missing}") from error
