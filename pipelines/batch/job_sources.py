"""What a job file is that has no name: in a pipe, or on standard input (``-``).

A pipe has no suffix that says what is in it, so its first line does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

_KNOWN = (".yaml", ".yml", ".json", ".jsonl", ".ndjson", ".csv", ".tsv")


def suffix_of(path: Path, raw: bytes, keys: Iterable[str]) -> str:
    """Return the suffix of a job file, or for a pipe the one that fits its content.

    ``keys``: what the cells of a table's first row may begin with.
    """
    suffix = path.suffix.lower()
    if suffix in _KNOWN or path.is_file():
        return suffix
    text = raw.decode("utf-8-sig", "replace")
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
