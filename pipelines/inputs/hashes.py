"""Hashes of the files that a job names, so that their content counts and not their path."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from errno import ENAMETOOLONG
from functools import lru_cache
from pathlib import Path
from typing import Any

from accel.pipelines.motion.array_file import named_array

_WHOLE = 64 * 2**20  # bytes up to which a file is hashed whole
_SAMPLES, _SAMPLE = 64, 2**16  # else its size and this many evenly spread blocks of this many bytes


def digest(value: Any) -> str:
    """Return hex SHA-256 of plain JSON values."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def with_files(value: Any) -> Any:
    """``value`` with every text that names a file or a folder replaced by hashes of the content."""
    if isinstance(value, Mapping):
        return {key: with_files(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [with_files(inner) for inner in value]
    if not isinstance(value, str) or not 0 < len(value) < 4096:
        return value
    try:
        return _content(value)
    except OSError as error:
        if error.errno == ENAMETOOLONG:  # it is a text, no path
            return value
        raise


def _content(text: str) -> Any:
    if Path(text).is_dir():
        # With their names, which give the order of a folder's frames or flows.
        return {"folder": {file.name: with_files(str(file)) for file in Path(text).iterdir()}}
    file, key = named_array(text)
    if not file.is_file():
        return text
    found = {"file": file_hash(file)}
    return found | {"array": key} if key else found


def file_hash(file: Path) -> str:
    """Return SHA-256 of a file; of a large one, that of its size and of evenly spread blocks."""
    stat = file.stat()
    return _hash_file(str(file), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)
def _hash_file(path: str, size: int, changed: int) -> str:
    """Return SHA-256 of a file; ``changed`` (ns) only keeps the cache true."""
    state = hashlib.sha256()
    with open(path, "rb") as file:
        if size <= _WHOLE:
            while block := file.read(2**20):
                state.update(block)
        else:
            state.update(str(size).encode())
            for number in range(_SAMPLES):
                file.seek((size - _SAMPLE) * number // (_SAMPLES - 1))
                state.update(file.read(_SAMPLE))
    return state.hexdigest()


def input_hash(path: Path) -> str:
    """Return the hash of a file, or of a folder's files and their names."""
    return digest(with_files(str(path))) if path.is_dir() else file_hash(path)
