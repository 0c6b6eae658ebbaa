"""Copies of a patched model come without the patch: ``copy``, ``pickle`` and ``torch.save``.

Every module that a patch changed says what its attributes would be without the patch
(``copied_state.py``). The original stays patched, and a copy can be patched itself.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

from torch import nn

from accel.core.copied_state import KEY, State
from accel.core.diffusers_bridge import SLOTS, has_our_hooks, is_ours, without_our_hooks
from accel.core.stand_in import behind, standing

LABEL = "_accel_site"  # attribute of a module with an attention site (accel/attention/sdpa.py)
# Tables of hooks, and those that hold more about the same hooks.
TABLES = {
    "_forward_pre_hooks": ("_forward_pre_hooks_with_kwargs",),
    "_forward_hooks": ("_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
}


class CleanCopies:
    """Lets copies of patched modules come without the patch, until all patches on them are gone.

    Made before anything is patched, so that it is undone last.
    """

    def __init__(self, undo: ExitStack) -> None:
        self._changed = weakref.WeakSet[nn.Module]()
        undo.callback(self._let_go)

    def watch(self, roots: Iterable[nn.Module]) -> None:
        """Do so for all modules below ``roots`` that are patched by now."""
        for module in (m for root in roots for m in root.modules()):
            if _patched(vars(module)):
                vars(module).setdefault(KEY, State(module, _clean))
                self._changed.add(module)

    def _let_go(self) -> None:
        for module in self._changed:
            if not _patched(vars(module)):
                vars(module).pop(KEY, None)


def _patched(state: dict[str, Any]) -> bool:
    """Return whether something of accel is among a module's attributes."""
    hooks = (hook for table in TABLES for hook in state.get(table, {}).values())
    stand_in = any(standing(state.get(slot)) is not None for slot in SLOTS)
    return LABEL in state or stand_in or any(map(is_ours, hooks)) or has_our_hooks(state)


def _clean(module: nn.Module, state: dict[str, Any]) -> None:
    """Take everything of accel out of a module's attributes, which are a copy."""
    state.pop(LABEL, None)
    for table, others in TABLES.items():
        mine = {key for key, hook in state.get(table, {}).items() if is_ours(hook)}
        for name in (table, *others) if mine else ():
            state[name] = type(state[name])((k, v) for k, v in state[name].items() if k not in mine)
    without_our_hooks(state)
    for slot in SLOTS:
        if standing(state.get(slot)) is not None:
            state[slot] = behind(state[slot])
    own: Any = state.get("forward")
    if getattr(own, "__self__", None) is module and own.__func__ is type(module).forward:
        del state["forward"]
