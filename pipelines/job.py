"""One generation job, and the job files that hold many of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from accel.config import choose, from_dict
from accel.pipelines.load import TINY, defaults
from accel.plan import PRESETS, Plan


class JobError(ValueError):
    """A job or job file that cannot be run; the message says what, where, and the way out."""


@dataclass(frozen=True)
class Job:
    """Everything that decides the pixels of one video.

    ``width``, ``height`` in pixels, ``frames`` and ``steps`` counts, ``fps`` frames per second;
    what is None takes the model's default. ``preset`` None and no ``plan``: not accelerated.
    ``plan`` is a plan file or a mapping. ``motion``: see ``pipelines/motion/flows.py``;
    ``strength`` 0 follows it, 1 ignores it, or a mapping as in ``pipelines/motion/strength.py``.
    """

    prompt: str
    negative_prompt: str = ""
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    width: int | None = None
    height: int | None = None
    frames: int | None = None
    fps: float | None = None
    model: str = TINY
    preset: str | None = "balanced"
    plan: str | Mapping[str, Any] | None = None
    motion: Mapping[str, Any] | None = None
    strength: float | Mapping[str, Any] = 0.2
    name: str = ""

    def __post_init__(self) -> None:
        for text in ("prompt", "negative_prompt", "model", "name"):
            if not isinstance(getattr(self, text), str):
                raise JobError(f"{text} must be text, got {getattr(self, text)!r}")
        for count in ("steps", "width", "height", "frames"):
            value = getattr(self, count)
            if value is not None and (not _is_int(value) or value < 1):
                raise JobError(f"{count} must be a whole number from 1, got {value!r}")
        if not _is_int(self.seed) or not 0 <= self.seed < 2**63:
            raise JobError(f"seed must be a whole number from 0 to 2^63 - 1, got {self.seed!r}")
        for number, low, high in (
            ("guidance", 0.0, 1e3),
            ("fps", 1e-3, 1e3),
            ("strength", 0.0, 1.0),
        ):
            value = getattr(self, number)
            if (value is None and number != "strength") or (
                number == "strength" and isinstance(value, Mapping)
            ):
                continue
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not low <= value <= high
            ):
                raise JobError(f"{number} must be a number from {low} to {high}, got {value!r}")
        if self.preset is not None:
            choose("preset", self.preset, PRESETS)
        if self.motion is not None and not isinstance(self.motion, Mapping):
            raise JobError(f"motion must be a mapping, got {self.motion!r}")

    def resolved(self) -> Job:
        """The job with the model's defaults filled in where it left something open."""
        known = asdict(defaults(self.model))
        return replace(self, **{k: v for k, v in known.items() if getattr(self, k) is None})

    def accel_plan(self) -> Plan | None:
        """The plan to patch with, None for a run without acceleration."""
        if isinstance(self.plan, str):
            return Plan.load(self.plan)
        if self.plan is not None:
            return Plan.from_dict(dict(self.plan))
        return None if self.preset is None else Plan.preset(self.preset)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; ``Job(**job.to_dict())`` is the job again."""
        return asdict(self)

    @property
    def file_name(self) -> str:
        """Name of the output without suffix: ``name``, else words of the prompt and the seed."""
        text = self.name or f"{self.prompt[:48]}-{self.seed}"
        return re.sub(r"[^\w.-]+", "-", text).strip("-.") or f"job-{self.seed}"


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def read_jobs(path: str | Path) -> list[Job]:
    """Jobs of a YAML or JSON job file: top-level ``defaults:`` (optional) and ``jobs:``.

    Raises JobError naming the file, the job and the key; every job is checked before any is
    returned.
    """
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text())
    except OSError as error:
        raise JobError(f"cannot read job file {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise JobError(f"{path} is not a YAML or JSON job file: {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get("jobs"), list) or not data["jobs"]:
        raise JobError(f"{path} needs a top-level 'jobs:' with at least one job")
    extra = set(data) - {"defaults", "jobs"}
    if extra:
        raise JobError(f"{path} has unknown top-level keys {sorted(extra)}; known: defaults, jobs")
    shared = data.get("defaults") or {}
    jobs = []
    for number, entry in enumerate(data["jobs"], 1):
        where = f"{path}, job {number}"
        if not isinstance(entry, dict):
            raise JobError(f"{where} must be a mapping, got {entry!r}")
        jobs.append(make_job({**shared, **entry}, where))
    return _with_file_names(jobs)


def make_job(data: Mapping[str, Any], where: str = "job") -> Job:
    """A job from plain values. Raises JobError for an unknown key (with the nearest known one) or a
    bad value.
    """
    if "prompt" not in data and set(data) <= {f.name for f in fields(Job)}:
        raise JobError(f"{where} has no prompt")
    try:
        job = from_dict(Job, dict(data), where)
        job.accel_plan()
    except (ValueError, OSError, TypeError) as error:
        text = str(error)
        raise JobError(text if text.startswith(where) else f"{where}: {text}") from error
    return job


def _with_file_names(jobs: list[Job]) -> list[Job]:
    """Give every job its own output name: the second of two equal ones gets ``-2``."""
    used: dict[str, int] = {}
    named = []
    for job in jobs:
        stem = job.file_name
        used[stem] = used.get(stem, 0) + 1
        number = used[stem]
        named.append(replace(job, name=stem if number == 1 else f"{stem}-{number}"))
    return named


def settings_text(job: Job) -> str:
    """The job as one line of JSON, as it is written into a video's ``comment`` tag."""
    return json.dumps({"accel_job": 1, **job.to_dict()}, sort_keys=True)
