"""An error in one line, for reasons in reports."""

from __future__ import annotations


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, "" if it has none."""
    return (str(error).strip().splitlines() or [""])[0]


def described(error: Exception) -> str:
    """Return an error's class and first line."""
    first = first_line(error)
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
