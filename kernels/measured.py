"""What was measured on this machine, kept as JSON in the user's cache for later processes.

A file's name says what its figures hold for: the device, the versions, and a hash of the code that
was timed, so that changed code is measured again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def cache_file(kind: str, holds_for: str, code: Iterable[Path]) -> Path:
    """Return ``$XDG_CACHE_HOME/accel-diffusion/<kind>-<what it holds for>-<hash of code>.json``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    own = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(code))).hexdigest()[:8]
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{holds_for} {own}")
    return Path(base) / "accel-diffusion" / f"{kind}-{name}.json"


def read(path: Path) -> dict[str, Any]:
    """Return what a file holds; one that cannot be read counts as empty."""
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def write(path: Path, data: dict[str, Any]) -> None:
    """Store ``data``; a folder that cannot be written to costs a measurement per process."""
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(data, indent=2) + "\n")
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
