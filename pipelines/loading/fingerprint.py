"""What stands for the content of files that a job names, in keys of what is kept beside it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from accel.pipelines.batch.identity import content_hash
from accel.pipelines.paths import user_path


def content(path: Path) -> str:
    """Return hex SHA-256 of a file."""
    state = path.stat()
    return _hashed(str(path), state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=1024)
def _hashed(path: str, size: int, changed: int) -> str:
    return content_hash(Path(path))


def of_place(place: str) -> Any:
    """Return what stands for a folder, a file, or the text itself, such as a hub id."""
    path = user_path(place)
    if path.is_file():
        return content(path)
    if path.is_dir():
        found = (file for file in sorted(path.rglob("*")) if file.is_file())
        return {file.relative_to(path).as_posix(): content(file) for file in found}
    return place
