"""Quantized attention: the seam to torch, one site per attention module, precision by step."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accel.attention.site import Site as Site

__all__ = ["Site"]


def __getattr__(name: str) -> Any:
    if name == "Site":
        return import_module("accel.attention.site").Site
    raise AttributeError(f"module 'accel.attention' has no attribute {name!r}")
