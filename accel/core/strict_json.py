"""JSON that any program reads: the standard has no word for infinity or "not a number"."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def finite(value: Any) -> Any:
    """Return plain JSON values with None in place of every number that is not finite."""
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (dict, Mapping)):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return value


def dumps(value: Any, indent: int | None = None, *, ascii_only: bool = True) -> str:
    """Return ``value`` as JSON; a number that is not finite becomes null."""
    return json.dumps(finite(value), indent=indent, ensure_ascii=ascii_only, allow_nan=False)
