"""Reasons why a part runs whole that come from an error, in words for the report."""

from __future__ import annotations

from accel.core.described import described, first_line

# Of torch's messages where code wants the values of a tensor that has none.
DATA_DEPENDENT = ("meta tensor", "Meta tensor", "register_meta", "meta device type")
BROKEN = "running it in slices failed"


def broken(error: Exception) -> str:
    """Return the reason why a part runs whole after its slices raised an error."""
    return f"{BROKEN} ({described(error)})"


def failed(error: Exception) -> str:
    """Return the reason for an error that the dry runs of a block, or making its key, raised."""
    first = first_line(error)
    if any(sign in first for sign in DATA_DEPENDENT):
        return "its operations depend on the values in a tensor"
    if "meta and" in first or "and meta" in first:
        return "it uses a tensor that is neither an argument nor a parameter"
    return f"a trial run without weights failed ({described(error)})"
