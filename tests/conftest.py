"""Shared setup: helper modules on the path, seeds, and no log noise from libraries."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "samples")]

if importlib.util.find_spec("triton") is not None:
    import interpreter  # noqa: F401  before anything else brings Triton in


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random state."""
    torch.manual_seed(0)
