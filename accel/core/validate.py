"""Checks of what people write: each error names the value, what is allowed, and the way out."""

from __future__ import annotations

from dataclasses import fields
from typing import Any


def did_you_mean(word: str, known: list[str]) -> str:
    """ " (did you mean 'x'?)" for a misspelt word, or "" if nothing is near."""
    import difflib

    near = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise ValueError unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        hint = did_you_mean(str(value), list(allowed))
        raise ValueError(f"{name} must be one of {list(allowed)}, got {value!r}{hint}")


def from_dict(cls: type, data: Any, where: str) -> Any:
    """Build the dataclass ``cls`` from a mapping; anything else raises ValueError."""
    if not isinstance(data, dict):
        raise ValueError(f"{where} must be a mapping, got {data!r}")
    known = [f.name for f in fields(cls)]
    for key in data:
        if key not in known:
            hint = did_you_mean(str(key), known)
            raise ValueError(f"{where} has an unknown key {key!r}{hint}; known: {known}")
    return cls(**data)
