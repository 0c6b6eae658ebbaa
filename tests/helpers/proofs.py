"""What `make proofs` runs beside the normal suite: more cases of the same test."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

# Inductor writes and compiles C++, which takes a minute a graph on a slow machine.
backends = pytest.mark.parametrize(
    "compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.proof)]
)


def leading(count: int, cases: Iterable[Any]) -> list[Any]:
    """Return parameters of which all but the first ``count`` are proofs; tuples are several."""
    found = []
    for i, case in enumerate(cases):
        values = getattr(case, "values", None) or (case if isinstance(case, tuple) else (case,))
        marks = [*getattr(case, "marks", ()), *([pytest.mark.proof] if i >= count else [])]
        found.append(pytest.param(*values, marks=marks))
    return found
