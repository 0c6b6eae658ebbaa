"""Opens a job file wherever it stands: on a disk, in a pipe, on standard input (``-``).

What cannot be read twice is read once, into memory. A pipe has no suffix that says what is in it,
so its first line does.
"""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from accel.pipelines.job import JobError

LARGEST = 2**28  # bytes of a pipe
_KNOWN = (".yaml", ".yml", ".json", ".jsonl", ".ndjson", ".csv")


def open_source(path: Path) -> IO[str]:
    """Open a job file for reading from its beginning as often as its reader wants.

    Raises OSError, UnicodeDecodeError, or JobError for a pipe of more than ``LARGEST`` bytes.
    """
    if str(path) != "-" and (path.is_file() or path.is_dir() or not path.exists()):
        return path.open(encoding="utf-8-sig", newline="")
    with sys.stdin.buffer if str(path) == "-" else path.open("rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise JobError(f"{path} has more than {LARGEST >> 20} MiB; write it to a file first")
    return io.StringIO(content.decode("utf-8-sig"), newline="")


def suffix_of(path: Path, file: IO[str], keys: Iterable[str]) -> str:
    """Return the suffix of a job file, or for a pipe the one that fits its content.

    ``keys``: what the cells of a table's first row may begin with.
    """
    suffix = path.suffix.lower()
    if suffix in _KNOWN or not isinstance(file, io.StringIO):
        return suffix
    text = file.getvalue()
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return ".yaml"
    first = _json(lines[0])
    if isinstance(first, dict) and (len(lines) > 1 or "prompt" in first):
        return ".jsonl"
    cells = [cell.strip('" ').split(".")[0] for cell in re.split(r"[,;\t]", lines[0])]
    if set(cells) <= set(keys):
        return ".csv"
    return ".json" if isinstance(_json(text), dict) else ".yaml"


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
