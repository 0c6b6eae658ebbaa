"""Predicts time and peak memory of a job, without loading a model.

Time comes from jobs that have run: the nearest measured one of the same model and plan, in
proportion to steps and to pixels times frames. Memory is simulated (``simulated.py``): weights and
live tensors, not what the process needs besides. What cannot be predicted is said to be unknown.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accel.pipelines.batch.identity import model_fingerprint, plan_digest
from accel.pipelines.batch.simulated import Answer, Simulator
from accel.pipelines.job import Job
from accel.pipelines.limits import of_model


@dataclass(frozen=True)
class Prediction:
    """Seconds, None if no like job has run, and what is known of the peak.

    ``unchecked``: why the model's limits are known only when it is loaded.
    """

    seconds: float | None
    memory: Answer
    unchecked: str = ""

    def __str__(self) -> str:
        time = "time unknown" if self.seconds is None else f"~{self.seconds:.1f} s"
        limits = f", limits unknown: {self.unchecked}" if self.unchecked else ""
        return f"predicted {time}, {memory_text(self.memory)}{limits}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; what is unknown is None, with the reason."""
        known = not self.memory.why_not
        return {
            "seconds": self.seconds,
            "peak_bytes": self.memory.peak if known else None,
            "peak_at_least": self.memory.at_least,
            "peak_unknown": self.memory.why_not,
            "placement": self.memory.way,
            "no_placement": self.memory.no_way,
            "limits_unknown": self.unchecked,
        }


def memory_text(memory: Answer) -> str:
    """Such as "~1.50 GiB", "more than 1.50 GiB" or "memory unknown: config not local"."""
    if memory.why_not:
        return f"memory unknown: {memory.why_not}"
    size = f"{'more than ' if memory.at_least else '~'}{memory.peak / 2**30:.2f} GiB"
    if memory.no_way:
        return f"{size}, and no way to place it fits here: {memory.no_way}"
    return f"{size}, weights placed: {memory.way}" if memory.way else size


class Predictor:
    """Predictions from the rows of manifests (see ``manifest.rows``) and a simulator."""

    def __init__(self, rows: Iterable[dict[str, Any]], simulator: Simulator) -> None:
        self._simulator = simulator
        self._measured: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in rows:
            if row["seconds"] and row["volume"] and row["steps"]:
                self._measured.setdefault((row["model"], row["plan"]), []).append(row)

    def predict(self, job: Job) -> Prediction:
        """For a resolved job."""
        return Prediction(
            self._seconds(job),
            self._simulator(job),
            of_model(job.model, job.load_options.pipeline).unknown,
        )

    def _seconds(self, job: Job) -> float | None:
        if not self._measured or not job.width or not job.height or not job.steps:
            return None
        rows = self._measured.get((model_fingerprint(job.model), plan_digest(job)), [])
        volume = job.width * job.height * (job.frames or 1)
        near = min(
            rows,
            key=lambda r: (abs(r["volume"] - volume), abs(r["steps"] - job.steps)),
            default=None,
        )
        if near is None:
            return None
        return float(near["seconds"] * volume / near["volume"] * job.steps / near["steps"])


@dataclass
class Totals:
    """Sums over the jobs of a dry run."""

    render: int = 0
    skip: int = 0
    invalid: int = 0
    seconds: float = 0.0
    untimed: int = 0
    unsized: int = 0
    most: Answer | None = None

    def add(self, prediction: Prediction, *, wanted: bool) -> None:
        """One job; only those that would be rendered count."""
        if not wanted:
            self.skip += 1
            return
        self.render += 1
        self.seconds += prediction.seconds or 0.0
        self.untimed += prediction.seconds is None
        if prediction.memory.why_not:
            self.unsized += 1
        elif self.most is None or prediction.memory.peak > self.most.peak:
            self.most = prediction.memory

    def __str__(self) -> str:
        time = f"~{self.seconds:.0f} s on one device"
        if self.untimed:
            known = f"; {time} for the others" if self.untimed < self.render else ""
            time = f"time unknown for {self.untimed} (no like job has run here){known}"
        memory = "unknown" if self.most is None else memory_text(self.most)
        memory += f", unknown for {self.unsized}" if self.unsized and self.most else ""
        counts = f"{self.render} to render, {self.skip} already done, {self.invalid} invalid"
        return f"{counts}; predicted: {time}; peak memory {memory}" if self.render else counts


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
