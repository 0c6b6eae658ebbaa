"""Where tests run the Triton kernels: on the card where there is one, else in the interpreter.

``conftest.py`` imports this before anything else brings Triton in.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
CAPABILITY = torch.cuda.get_device_capability() if DEVICE.type == "cuda" else None
INTERPRETED = DEVICE.type == "cpu"

if INTERPRETED and importlib.util.find_spec("triton") is not None:
    import interpreter  # noqa: F401


def let_interpret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a card, lets the kernels that were imported for the interpreter take CPU tensors."""
    if INTERPRETED:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
