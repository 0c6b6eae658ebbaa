"""The backends of ``torch.compile`` that tests of graphs run with."""

from __future__ import annotations

import pytest

# Inductor writes and compiles C++, which takes a minute a graph on a slow machine.
backends = pytest.mark.parametrize(
    "compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.proof)]
)
