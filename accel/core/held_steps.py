"""Steps of a run that are computed whatever a technique would rather reuse.

Whoever changes latents between the steps of a run says so here, since outputs before the change
predict nothing after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_HELD: ContextVar[Callable[[int], int] | None] = ContextVar("held steps", default=None)


@contextmanager
def held_steps(first: Callable[[int], int]) -> Iterator[None]:
    """In this context, the ``first(steps)`` steps of a run of ``steps`` are computed."""
    token = _HELD.set(first)
    try:
        yield
    finally:
        _HELD.reset(token)


def held(steps: int) -> int:
    """Return how many first steps of a run of ``steps`` are to be computed."""
    first = _HELD.get()
    return 0 if first is None else min(first(steps), steps)
