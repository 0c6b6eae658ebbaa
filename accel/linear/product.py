"""The kernels as sites use them: the only place that knows where they are."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from accel.kernels.cpu import native

MISSING = "this build has no kernels for 8-bit linear layers"


def kernels() -> Any:
    """Return the module of ``pack``, ``linear`` and ``why_not``, or None if this build has none."""
    try:
        return import_module(".linear", "accel.kernels")
    except ModuleNotFoundError:
        return None


def code() -> list[Path]:
    """Return the files whose code decides how fast a product is."""
    folder = Path(native.__file__).parents[1]
    names = ("*linear*.py", "*/*linear*.py", "packed_weight.py")
    files = [file for name in names for file in folder.glob(name)]
    lib = native.library().lib
    return files if lib is None else [*files, Path(lib._name)]
