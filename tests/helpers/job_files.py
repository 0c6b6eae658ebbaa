"""Job files of short runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

QUICK: dict[str, Any] = {"steps": 2, "frames": 5, "width": 64, "height": 64}


def write_jobs(folder: Path, *entries: Any, **defaults: Any) -> str:
    """Write a file of quick jobs; its path."""
    path = folder / "jobs.json"
    path.write_text(json.dumps({"defaults": {**QUICK, **defaults}, "jobs": list(entries)}))
    return str(path)
