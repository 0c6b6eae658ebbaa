"""Replace one function of an object by a stand-in, and restore it without a trace."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any


def put_in_place(holder: Any, name: str, hook: Any) -> Callable[[], None]:
    """Set ``hook`` as attribute ``name`` of ``holder`` and return a function that undoes it.

    That function holds weak references only, so it keeps no dropped pipeline alive.
    """
    own = name in vars(holder)
    setattr(holder, name, hook)
    holding, hooked = weakref.ref(holder), weakref.ref(hook)

    def restore() -> None:
        place, live_hook = holding(), hooked()
        if place is None or live_hook is None:
            return
        live_hook.alive = False
        if vars(place).get(name) is not live_hook:
            return  # other code wrapped the hook later: the hook now passes calls through
        if own:
            setattr(place, name, live_hook.forward)
        else:
            delattr(place, name)

    return restore
