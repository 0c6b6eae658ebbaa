"""One generation job: everything that decides the pixels of one video (or image)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from typing import Any

from accel.core.validate import from_dict, one_of
from accel.pipelines.load import TINY, defaults
from accel.plans import PRESETS, Plan

FORMATS = ("mp4", "webm", "gif", "png", "lossless")
SETTINGS_VERSION = 1


class JobError(ValueError):
    """A job or job file that cannot be run; the message says what, where, and the way out."""


@dataclass(frozen=True)
class Job:
    """Everything that decides the pixels of one video.

    ``width``, ``height`` in pixels, ``frames`` and ``steps`` counts, ``fps`` frames per second;
    what is None takes the model's default. ``preset`` None and no ``plan``: not accelerated.
    ``plan`` is a plan file or a mapping. ``motion``: see ``pipelines/motion/flows.py``;
    ``strength`` 0 follows it, 1 ignores it, or a mapping as in ``pipelines/motion/strength.py``.
    ``format``: see ``pipelines/video.py``. ``name`` only names the output.
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
    format: str = "mp4"
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
        one_of("format", self.format, FORMATS)
        if self.preset is not None:
            one_of("preset", self.preset, PRESETS)
        if self.motion is not None and not isinstance(self.motion, Mapping):
            raise JobError(f"motion must be a mapping, got {self.motion!r}")

    def resolved(self) -> Job:
        """The job with the model's defaults filled in where it left something open."""
        known = asdict(defaults(self.model))
        return replace(self, **{k: v for k, v in known.items() if getattr(self, k) is None})

    def accel_plan(self) -> Plan | None:
        """The plan to patch with, None for a run without acceleration."""
        if isinstance(self.plan, str):
            return _plan_file(self.plan)
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
        return re.sub(r"[^\w.-]+", "-", text).strip("-.")[:120] or f"job-{self.seed}"


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@lru_cache(maxsize=64)
def _plan_file(path: str) -> Plan:
    """A plan file, read once: ten thousand jobs may share it."""
    return Plan.load(path)


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


def settings_text(job: Job, job_id: str = "") -> str:
    """The job as one line of JSON for a video's ``comment`` tag.

    It holds what decides the bytes of the file, not its name; a plan file goes in with its content.
    """
    data = job.to_dict()
    del data["name"]
    if isinstance(job.plan, str):
        plan = job.accel_plan()
        data["plan"] = None if plan is None else plan.to_dict()
    head = {"accel_job": SETTINGS_VERSION, **({"id": job_id} if job_id else {})}
    return json.dumps({**head, **data}, sort_keys=True)


def job_from_settings(text: str, where: str) -> tuple[Job, str]:
    """Job and id from ``settings_text``. Raises JobError for any other text."""
    try:
        data = json.loads(text)
    except json.JSONDecodeError:
        data = None
    if not isinstance(data, dict) or "accel_job" not in data:
        raise JobError(f"{where} was not written by accel render: it carries no settings")
    version, job_id = data.pop("accel_job"), str(data.pop("id", ""))
    if version != SETTINGS_VERSION:
        raise JobError(
            f"{where} carries settings of version {version!r}; this accel reads {SETTINGS_VERSION}"
        )
    return make_job(data, where), job_id
