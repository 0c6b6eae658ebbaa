"""Where tests run the Triton kernels: on the card where there is one, else in the interpreter.

``conftest.py`` imports this before anything else brings Triton in.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
INTERPRETED = DEVICE.type == "cpu"
WHY_NO_FP4 = ""  # products in NVFP4

if not INTERPRETED:
    if torch.cuda.get_device_capability() < (10, 0):
        WHY_NO_FP4 = "this card has no FP4 tensor cores"
elif importlib.util.find_spec("triton") is not None:
    from helpers import interpreter

    if not interpreter.SCALED:
        WHY_NO_FP4 = "this Triton's interpreter knows no products with scales"


def let_interpret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a card, lets the kernels that were imported for the interpreter take CPU tensors."""
    if INTERPRETED:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
