"""What ``copy``, ``pickle`` and ``torch.save`` take of an object: its attributes, some as before.

They ask the object for its state, and a ``__getstate__`` among its own attributes answers.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

KEY = "__getstate__"


class _Raw(threading.local):
    on = False


_raw = _Raw()


class State:
    """The ``__getstate__`` of ``place``: ``clean`` changes a copy of its attributes."""

    def __init__(self, place: Any, clean: Callable[[Any, dict[str, Any]], None]) -> None:
        self._place = weakref.ref(place)
        self._clean = clean

    def __call__(self) -> dict[str, Any]:
        """Return the attributes that a copy gets."""
        place: Any = self._place()
        kind: Any = type(place)
        state = dict(kind.__getstate__(place))
        state.pop(KEY, None)
        if not _raw.on:
            self._clean(place, state)
        return state


def copied_with(place: Any, name: str, undo: ExitStack) -> None:
    """Let copies of ``place`` have its own attribute ``name`` as it is now, or not at all."""
    known = {name: vars(place)[name]} if name in vars(place) else {}

    def clean(place: Any, state: dict[str, Any]) -> None:
        state.pop(name, None)
        state.update(known)

    vars(place)[KEY] = State(place, clean)
    undo.callback(vars(place).pop, KEY, None)


@contextmanager
def raw_copies() -> Iterator[None]:
    """Let copies that this thread makes inside have everything that the original has."""
    before, _raw.on = _raw.on, True
    try:
        yield
    finally:
        _raw.on = before
