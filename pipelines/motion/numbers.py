"""Numbers from a job file, checked."""

from __future__ import annotations

import math
from typing import Any


def number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """``value`` as a finite float in [low, high]. Raises ValueError naming it."""
    bad = isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value)
    if bad or not low <= value <= high:
        limits = "" if low == -math.inf and high == math.inf else f" from {low:g} to {high:g}"
        raise ValueError(f"{name} must be a number{limits}, got {value!r}")
    return float(value)


def pair(name: str, value: Any) -> tuple[float, float]:
    """``value`` as two finite floats (x, y). Raises ValueError naming it."""
    numbers = list(value) if isinstance(value, (list, tuple)) else []
    if len(numbers) != 2 or not all(
        isinstance(n, (int, float)) and math.isfinite(n) for n in numbers
    ):
        raise ValueError(f"{name} must be two numbers [x, y], got {value!r}")
    return float(numbers[0]), float(numbers[1])


def polygon(name: str, value: Any) -> tuple[tuple[float, float], ...]:
    """``value`` as three corners or more. Raises ValueError naming it."""
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{name} must be a list of corners [x, y], got {value!r}")
    corners = tuple(pair(f"{name} corner", corner) for corner in value)
    if len(corners) < 3:
        raise ValueError(f"a {name} needs 3 corners or more, got {len(corners)}")
    return corners
