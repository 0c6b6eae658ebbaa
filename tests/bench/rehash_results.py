"""Results of the step rehash benchmark on disk, so that a long run goes on where it ended.

One JSON line per setting and job. The key holds a digest of the model's weights and everything that
a setting is made of, so results of another model or of other measured weights are never mixed in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn


@dataclass
class Result:
    """One job with one setting. ``seconds``: full run's over this one's, None if not timed;
    ``state`` bytes, None if not weighed; ``failed``: what the setting raised.
    """

    computed: float = 0.0
    psnr: float = 0.0
    ssim: float = 0.0
    seconds: float | None = None
    state: int | None = None
    failed: str = ""


def digest(value: Any) -> str:
    """Short hash of plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def model_digest(pipe: Any) -> str:
    """Short hash of all weights and of the scheduler's settings."""
    found = hashlib.sha256(json.dumps(dict(pipe.scheduler.config), default=str).encode())
    for part in (p for p in pipe.components.values() if isinstance(p, nn.Module)):
        for tensor in part.state_dict().values():
            found.update(np.ascontiguousarray(tensor.float().numpy()).tobytes())
    return found.hexdigest()[:16]


class Results:
    """Results in ``folder``, appended to as they come."""

    def __init__(self, folder: Path, model: str) -> None:
        self.file, self.frames = folder / "results.jsonl", folder / f"full-{model}"
        self.model = model
        self.frames.mkdir(parents=True, exist_ok=True)
        self._known: dict[str, Result] = {}
        lines = self.file.read_text().splitlines() if self.file.is_file() else []
        for line in lines:
            try:
                data = json.loads(line)
            except json.JSONDecodeError:
                continue  # cut off where an earlier run was killed: it is measured again
            key = data.pop("key")
            self._known[key] = Result(**data)

    def _key(self, setting: Any, job: Mapping[str, Any]) -> str:
        return digest([self.model, setting, dict(job)])

    def get(self, setting: Any, job: Mapping[str, Any]) -> Result | None:
        """What is known of a setting on a job."""
        return self._known.get(self._key(setting, job))

    def add(self, setting: Any, job: Mapping[str, Any], result: Result) -> None:
        """Keep a result."""
        key = self._key(setting, job)
        self._known[key] = result
        with self.file.open("a") as out:
            out.write(json.dumps({"key": key, **asdict(result)}) + "\n")

    def full(self, job: Mapping[str, Any]) -> Path:
        """Where the plain run of a job lies, frames and work."""
        return self.frames / f"{digest(dict(job))}.npz"
