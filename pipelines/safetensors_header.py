"""What a safetensors file holds, from its header: JSON behind a 64-bit length."""

from __future__ import annotations

import json
import math
import struct
from functools import lru_cache
from pathlib import Path
from typing import Any

MOST = 100_000_000  # bytes of a header; as safetensors itself allows
_VARIANTS = (".fp16", ".bf16")


def header(file: Path) -> tuple[dict[str, Any], int]:
    """Return dtype, shape and offsets of each tensor by name, and where the tensors begin.

    Raises ValueError for a file that is cut off or of another format.
    """
    size = file.stat().st_size
    with file.open("rb") as source:
        (length,) = struct.unpack("<Q", source.read(8).ljust(8, b"\0"))
        if length > min(size - 8, MOST):
            raise ValueError(f"{file.name} is no whole safetensors file")
        entries = dict(json.loads(source.read(length)))
    entries.pop("__metadata__", None)
    return entries, 8 + length


def numbers(file: Path) -> int:
    """Return how many numbers a file holds; raises as ``header`` does."""
    return _numbers(str(file), file.stat().st_mtime_ns)


@lru_cache(maxsize=1024)
def _numbers(file: str, changed: int) -> int:
    entries, _ = header(Path(file))
    return sum(math.prod(entry["shape"]) for entry in entries.values())


def weight_files(folder: Path) -> list[Path]:
    """Return a component's files without those of its variants in half precision."""
    return [file for file in folder.glob("*.safetensors") if not file.stem.endswith(_VARIANTS)]
