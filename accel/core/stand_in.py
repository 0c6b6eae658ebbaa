"""Puts a stand-in where an object's function was, and takes it out without a trace."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any


def put_in_place(holder: Any, name: str, hook: Any) -> Callable[[], None]:
    """Put ``hook`` in its place. What has to be undone holds weak references only, so that a
    pipeline that is dropped without unpatch goes.
    """
    own = name in vars(holder)
    setattr(holder, name, hook)
    holding, hooked = weakref.ref(holder), weakref.ref(hook)

    def restore() -> None:
        place, mine = holding(), hooked()
        if place is None or mine is None:
            return
        mine.alive = False
        if vars(place).get(name) is not mine:
            return  # somebody wrapped it after us: what they hold passes through now
        if own:
            setattr(place, name, mine.forward)
        else:
            delattr(place, name)

    return restore
