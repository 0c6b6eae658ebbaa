"""Keys and values quantized once for several attention calls.

A block that runs in slices attends once per slice of its queries, each time with the same K and V.
Inside ``with shared_keys():`` what a launcher makes of K and V is kept and found again by identity:
the same memory, seen in the same way and, by autograd's version counter, not written to since. The
numbers are those of calls outside, where nothing is kept.

Trade-off: the packed K and V of all heads stay to the end, where a CPU call by itself holds those
of a few heads at a time. K and V themselves stay too, or their memory could become another K's.
Every thread has its own store, and of nested contexts the inner one. Inference tensors have no
version counter and are packed for every call. In a graph of ``torch.compile`` the counter stands
still, so there nothing may write to K or V in a context.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class _Kept:
    """``value`` was made of ``arguments`` as they were in ``state``."""

    value: Any
    state: Hashable
    arguments: Sequence[Hashable]


class Store:
    """What one context keeps.

    ``made``: how often something was made, ``found``: found again.
    """

    def __init__(self) -> None:
        self.made = self.found = 0
        self._kept: dict[Hashable, _Kept] = {}

    def find(
        self,
        name: Hashable,
        of: Sequence[Tensor],
        given: Sequence[Hashable],
        make: Callable[[], T],
    ) -> T:
        """Return what ``find`` gives.

        One value per ``name`` and ``of``: a new one takes the old one's place.
        """
        place = (name, *map(_place, of))
        state = tuple(map(_state, (*of, *given)))
        kept = self._kept.get(place)
        if kept is not None and kept.state == state:
            self.found += 1
            return kept.value
        del kept
        self._kept.pop(place, None)  # its memory is free before the new one needs some
        value = make()
        self.made += 1
        self._kept[place] = _Kept(value, state, (*of, *given))
        return value

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()


class _Active(threading.local):
    store: Store | None = None


_active = _Active()


@contextmanager
def shared_keys() -> Iterator[Store]:
    """Quantized attention calls of this thread that have the same K and V pack them once."""
    store = Store()
    with _using(store):
        try:
            yield store
        finally:
            store.clear()


@contextmanager
def _using(store: Store | None) -> Iterator[None]:
    before, _active.store = _active.store, store
    try:
        yield
    finally:
        _active.store = before


def apart() -> Any:
    """Return a context in which nothing is kept, for calls that are timed."""
    return _using(None)


def shares(of: Sequence[Tensor]) -> bool:
    """Return whether what is made of these tensors would be kept."""
    return _active.store is not None and not any(x.is_inference() for x in of)


def find(
    name: Hashable,
    of: Sequence[Tensor],
    given: Sequence[Hashable],
    make: Callable[[], T],
) -> T:
    """``make()``, or in a context what it gave before for the same arguments.

    ``name``: what it is and every option it depends on. ``of``: K and V. ``given``: tensors and
    numbers that it depends on too and that may change from call to call: only the latest is kept.
    """
    store = _active.store
    return store.find(name, of, given, make) if store is not None and shares(of) else make()


def _place(x: Tensor) -> Hashable:
    """Return where a tensor's elements lie, and how they are read."""
    return x.data_ptr(), x.shape, x.stride(), x.dtype, x.device


def _state(x: Hashable) -> Hashable:
    """Return a key that is equal for two tensors only if they hold the same, while both live."""
    if not isinstance(x, Tensor):
        return x
    # Without a version counter, equal to nothing.
    return object() if x.is_inference() else (_place(x), x._version)
