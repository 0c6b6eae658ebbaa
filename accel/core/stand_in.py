"""Replace one function of an object by a stand-in, and restore it without a trace."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any


class StandIn:
    """Base of what replaces a function ``forward`` that it may call.

    ``alive`` is False once it has been restored; a stand-in that other code still holds then passes
    calls through. ``own`` says whether the object had an attribute of its own before.
    """

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = forward
        self.alive = True
        self.own = False

    def placed(self, holder: Any, name: str) -> Any:
        """Return what is set as attribute ``name`` of ``holder``: this, or a method of it.

        Code compiled for a method of one layer serves equal layers, since torch.compile looks at
        the function behind a layer's own ``forward``; for another callable it looks at the object.
        """
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Return a copy of what it replaces: copies of a patched model are not patched."""
        return copy.deepcopy(behind(self), memo)

    def __reduce__(self) -> Any:
        """Pickle what it replaces."""
        return _itself, (behind(self),)


def _itself(function: Any) -> Any:
    return function


def put_in_place(holder: Any, name: str, hook: StandIn) -> Callable[[], None]:
    """Set ``hook`` as attribute ``name`` of ``holder`` and return a function that undoes it.

    That function holds weak references only, so it keeps no dropped pipeline alive. The stand-ins
    of several patches may be undone in any order.
    """
    hook.own = name in vars(holder)
    setattr(holder, name, hook.placed(holder, name))
    holding, hooked = weakref.ref(holder), weakref.ref(hook)

    def restore() -> None:
        place, mine = holding(), hooked()
        if place is not None and mine is not None:
            mine.alive = False
            _take_out(place, name, mine)

    return restore


def _take_out(place: Any, name: str, mine: StandIn) -> None:
    """Remove ``mine`` from the chain of stand-ins at ``place``.

    Where other code wrapped it, it stays and passes calls through.
    """
    top: StandIn | None = standing(vars(place).get(name))
    if top is not None and top is mine:
        if top.own:
            setattr(place, name, top.forward)
        else:
            delattr(place, name)
    while top is not None and standing(top.forward) is not mine:
        top = standing(top.forward)
    if top is not None:
        top.forward, top.own = mine.forward, mine.own


def standing(function: Any) -> StandIn | None:
    """Return the stand-in that is ``function`` or whose method it is, None for other functions."""
    found = function if isinstance(function, StandIn) else getattr(function, "__self__", None)
    return found if isinstance(found, StandIn) else None


def behind(function: Any) -> Any:
    """Return the function that a chain of stand-ins replaces."""
    while (hook := standing(function)) is not None:
        function = hook.forward
    return function
