"""Differences between two mappings of plain values, as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_MOST = 60  # characters of a value


def differences(a: Any, b: Any, path: str = "") -> Iterator[str]:
    """Yield a line for each place where plain values differ, such as ``rehash.steps: 25 -> 30``.

    Mappings are compared key by key, and lists of one length entry by entry. "none" stands for what
    is not there.
    """
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in dict.fromkeys([*a, *b]):
            yield from differences(a.get(key), b.get(key), f"{path}.{key}" if path else str(key))
        return
    lists = isinstance(a, Sequence) and isinstance(b, Sequence) and not isinstance(a, str)
    if lists and len(a) == len(b) and any(isinstance(x, Mapping) for x in a):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from differences(x, y, f"{path}[{i}]")
        return
    if a != b:
        yield f"{path}: {_text(a)} -> {_text(b)}"


def _text(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= _MOST else f"{text[: _MOST - 3]}..."
