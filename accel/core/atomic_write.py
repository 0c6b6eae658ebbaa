"""Write a file whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomic(path: str | Path, content: str | bytes) -> None:
    """Write ``content`` to ``path`` through to the disk, and create missing folders.

    A crash or an error leaves the old file or the new one, never half of one. Text is UTF-8.

    Raises:
        OSError: The file cannot be written; the old one is still there.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
