"""Write a file whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def part_of(path: Path) -> Path:
    """Return where ``path`` is written before it is whole: a name that nobody else would take."""
    return path.with_name(f".{path.name}.accel-part")


def write_atomic(path: str | Path, content: str | bytes) -> None:
    """Write ``content`` to ``path`` through to the disk, and create missing folders.

    A crash or an error leaves the old file or the new one, never half of one. Text is UTF-8.

    Raises:
        OSError: The file cannot be written; the old one is still there.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    part = part_of(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
