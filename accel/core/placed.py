"""What was decided about where the weights of a pipeline lie; its text is reported."""

from __future__ import annotations

import weakref
from contextlib import suppress
from typing import Any

_kept: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def keep(pipe: Any, found: Any) -> None:
    """Remember what was decided for a pipeline, as long as there is one."""
    with suppress(TypeError):  # a stand-in for a pipeline that cannot be remembered
        _kept[pipe] = found


def kept(pipe: Any) -> Any:
    """Return what was decided for a pipeline; None for one that was loaded as usual."""
    with suppress(TypeError):
        return _kept.get(pipe)
    return None
