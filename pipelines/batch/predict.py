"""Predicts time and peak memory of a job from jobs that have run, without loading a model.

The nearest measured job of the same model and plan counts: time in proportion to steps and to
pixels times frames, memory in proportion above what the model's weights take. With nothing measured
only the weights are known, and the prediction says so.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accel.pipelines.batch.identity import model_fingerprint, plan_digest
from accel.pipelines.job import Job
from accel.pipelines.load import local_folder


@dataclass(frozen=True)
class Prediction:
    """Seconds (None: unknown), peak bytes, and whether the bytes are only a lower bound."""

    seconds: float | None
    peak_bytes: int
    at_least: bool

    def __str__(self) -> str:
        time = "time unknown" if self.seconds is None else f"~{self.seconds:.1f} s"
        sign = ">" if self.at_least else "~"
        return f"{time}, {sign}{self.peak_bytes / 2**30:.2f} GiB"


class Predictor:
    """Predictions from the rows of manifests (see ``manifest.rows``)."""

    def __init__(self, rows: Iterable[dict[str, Any]]) -> None:
        self._measured: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self._weights: dict[str, int] = {}
        for row in rows:
            if row["seconds"] and row["peak_bytes"] and row["volume"] and row["steps"]:
                self._measured.setdefault((row["model"], row["plan"]), []).append(row)

    def predict(self, job: Job) -> Prediction:
        """For a resolved job."""
        weights = self._weight_bytes(job.model)
        rows = self._measured.get((model_fingerprint(job.model), plan_digest(job)), [])
        if not rows or not job.width or not job.height or not job.steps:
            return Prediction(None, weights, True)
        volume = job.width * job.height * (job.frames or 1)
        near = min(rows, key=lambda r: (abs(r["volume"] - volume), abs(r["steps"] - job.steps)))
        scale = volume / near["volume"]
        above = max(0, near["peak_bytes"] - weights)
        seconds = near["seconds"] * scale * job.steps / near["steps"]
        return Prediction(seconds, int(weights + above * max(1.0, scale)), False)

    def _weight_bytes(self, model: str) -> int:
        if model not in self._weights:
            folder = local_folder(model)
            files = folder.rglob("*.safetensors") if folder is not None else ()
            self._weights[model] = sum(file.stat().st_size for file in files)
        return self._weights[model]


def measured_rows(out: Path) -> Iterator[dict[str, Any]]:
    """Rows of all manifests in ``out``, read without changing anything; damaged ones give none."""
    for path in sorted((out / ".accel").glob("manifest*.sqlite")):
        try:
            base = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=5)
            cursor = base.execute("SELECT * FROM jobs")
            keys = [column[0] for column in cursor.description]
            rows = [dict(zip(keys, row, strict=True)) for row in cursor]
            base.close()
        except sqlite3.Error:
            continue
        yield from rows
