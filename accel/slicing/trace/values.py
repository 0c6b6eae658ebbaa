"""Values that a block's path depends on, because a dry run knows only sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from accel import families
from accel.slicing.trace.record import Underivable


def settled(block: nn.Module, arguments: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the values that a program of ``block`` depends on besides sizes; () for most blocks.

    Raises Underivable with the reason for values that cannot be followed.
    """
    try:
        found = (tracing.settled(block, arguments) for tracing in families.tracings())
        return next(filter(None, found), ())
    except ValueError as error:
        raise Underivable(str(error)) from error


def prepare(twin: nn.Module, values: tuple[int, ...]) -> None:
    """Make a copy without weights run with the settled ``values``."""
    for tracing in families.tracings():
        tracing.prepare(twin, values)
