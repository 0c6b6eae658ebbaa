"""Results of the step rehash benchmark: on disk, so that a long run goes on where it ended, and as
the rows of its table.

One JSON line per setting and job. The key holds the model's hash (``rows.weights_of``) and all that
a setting is made of, so results of another model or of other measured weights are never mixed in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rehash_caches import Contender

LIMIT = 1.85
ASKED_FOR = "asked for"
ALL_JOBS = (
    "rehash, measured",
    "rehash, measured, 8 bits",
    "rehash, no map",
    "fewer steps",
    ASKED_FOR,
)


@dataclass
class Result:
    """One job with one setting. ``state`` bytes, None if not weighed; ``failed``: what the setting
    raised.
    """

    computed: float = 0.0
    psnr: float = 0.0
    ssim: float = 0.0
    state: int | None = None
    failed: str = ""


def digest(value: Any) -> str:
    """Short hash of plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


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


@dataclass
class Row:
    """One method at one setting, over all jobs it ran. ``seconds``: full runs' over this one's."""

    contender: Contender
    results: list[Result]
    seconds: list[float] = field(default_factory=list)

    @property
    def method(self) -> str:
        return self.contender.method

    @property
    def setting(self) -> str:
        return self.contender.setting

    @property
    def computed(self) -> float:
        """Mean speed-up in computed work."""
        return float(np.mean([r.computed for r in self.results]))

    @property
    def psnr(self) -> float:
        """Mean in dB."""
        return float(np.mean([r.psnr for r in self.results]))

    @property
    def failed(self) -> str:
        """What the setting raised on the first job where it did."""
        return next((r.failed for r in self.results if r.failed), "")

    def __str__(self) -> str:
        head = f"{self.method:<26}{self.setting:<34}"
        if self.failed:
            return f"{head}does not run: {self.failed}"
        seconds = f"{np.median(self.seconds):7.2f}×" if self.seconds else " " * 8
        worst, like = min(r.psnr for r in self.results), np.mean([r.ssim for r in self.results])
        state = max((r.state for r in self.results if r.state is not None), default=0)
        return (
            f"{head}{self.computed:6.2f}×{seconds}{self.psnr:8.2f}{worst:8.2f}{like:8.4f}"
            f"{state / 1024:9.0f}{len(self.results):5}"
        )

    def to_dict(self) -> dict[str, float]:
        """Its figures over all jobs, state in KiB."""
        state = [r.state for r in self.results if r.state is not None]
        return {
            "computed": self.computed,
            **({"seconds": float(np.median(self.seconds))} if self.seconds else {}),
            "psnr": self.psnr,
            "ssim": float(np.mean([r.ssim for r in self.results])),
            **({"state": max(state) / 1024} if state else {}),
        }


UNITS = {
    "/computed": "×", "/seconds": "×", "/psnr": "dB", "/ssim": "SSIM", "/state": "KiB",
    "/curve/": "dB", "/asked/": "jobs",
}  # fmt: skip


def figures(rows: Sequence[Row], fast: Sequence[Row]) -> dict[str, Any]:
    """The best setting of each method, decibels by work that is left out, and promises kept."""
    curve: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.method in ALL_JOBS and row.method != ASKED_FOR and not row.failed:
            curve.setdefault(row.method, {})[f"{row.computed:.2f}×"] = row.psnr
    asked = {
        row.setting: {"kept": _kept(row), "of": len(row.results)}
        for row in rows
        if row.method == ASKED_FOR
    }
    return {"best": {row.method: row.to_dict() for row in fast}, "curve": curve, "asked": asked}


def _kept(row: Row) -> int:
    """Jobs that reach the decibels asked for."""
    wanted = float(row.setting.split()[0])
    return sum(r.psnr >= wanted for r in row.results)


def promises(rows: Sequence[Row]) -> list[str]:
    """How many jobs reach the decibels asked for."""
    lines = []
    for row in (r for r in rows if r.method == ASKED_FOR):
        reached = [r.psnr for r in row.results]
        lines.append(
            f"{row.setting} asked: {row.computed:.2f}×, {_kept(row)} of "
            f"{len(reached)} jobs reach it, lowest {min(reached):.1f} dB"
        )
    return lines


def monotone(rows: Sequence[Row]) -> str:
    """Whether more speed never has more dB among our measured schedules."""
    ours = sorted((r for r in rows if r.method == "rehash, measured"), key=lambda r: r.computed)
    curve = ", ".join(f"{r.computed:.2f}× {r.psnr:.1f} dB" for r in ours)
    falls = all(a.psnr >= b.psnr for a, b in pairwise(ours))
    return f"curve {'monotone' if falls else 'NOT monotone'}: {curve}"


def _fast(rows: Sequence[Row]) -> list[Row]:
    """Rows that compute at least LIMIT times less, best first."""
    fits = [r for r in rows if not r.failed and r.method != ASKED_FOR and r.computed >= LIMIT]
    return sorted(fits, key=lambda r: -r.psnr)


def best(rows: Sequence[Row]) -> list[Row]:
    """Of each method the row with the highest PSNR among those that are fast enough and ran all
    jobs.
    """
    found: dict[str, Row] = {}
    most = max(len(r.results) for r in rows)
    for row in _fast([r for r in rows if len(r.results) == most]):
        found.setdefault(row.method, row)
    return list(found.values())


def finalists(rows: Sequence[Row]) -> list[Row]:
    """What runs more jobs than the sweep: of other people's methods the two best that are fast
    enough, of our variants the best.
    """
    kept = [r for r in rows if r.method in ALL_JOBS]
    for method in dict.fromkeys(r.method for r in rows if r.method not in ALL_JOBS):
        most = 1 if method.startswith("rehash") else 2
        kept += _fast([r for r in rows if r.method == method])[:most]
    return kept
