"""From what a browser sends to a job, and back: allow-lists, limits and presets.

A browser chooses models by label, never by path or id, and names no file on this machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from accel.core.atomic_write import write_atomic
from accel.core.validate import text
from accel.pipelines.job import Job, JobError, make_job
from accel.pipelines.load import TINY, local_folder
from accel.pipelines.motion.clocks import Follow
from accel.pipelines.ui.offers import loras_in, read_offers, unlike
from accel.plans import PRESETS, Plan

UNACCELERATED, PLANNED = "none", "planned"  # planned: in the tab Plan
PRESET_CHOICES = (*PRESETS[::-1], UNACCELERATED, PLANNED)


@dataclass(frozen=True)
class Limits:
    """What one browser may ask for.

    Pixels, counts, characters, bytes.
    """

    prompt: int = 2000
    name: int = 80
    side: int = 4096
    volume: int = 1920 * 1088 * 257
    frames: int = 1025
    steps: int = 200
    waiting: int = 200
    upload: int = 256 * 2**20
    picture: int = 16384
    comment: int = 256 * 2**10
    polygons: int = 32
    corners: int = 256
    keys: int = 64
    presets: int = 100


@dataclass(frozen=True)
class Models:
    """What may be chosen: models by label, the embedded one first, and plans beside the presets.

    ``loads``: how to load a model, by label; ``loras``: files by name.
    """

    by_label: Mapping[str, str] = field(default_factory=lambda: {"tiny (embedded)": TINY})
    plans: Mapping[str, Plan] = field(default_factory=dict)
    loads: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    loras: Mapping[str, Path] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        models: Sequence[str],
        plans: Sequence[Path] = (),
        allowed: Path | None = None,
        loras: Path | None = None,
    ) -> Models:
        """Return settings with the embedded model, ``models`` and ``plans``.

        Models are folders or hub ids given on the command line, plans are JSON files, ``allowed``
        is an allow-list file of models, and ``loras`` a folder. Raises FileNotFoundError or
        ValueError for one that cannot be.
        """
        found, named = dict(cls().by_label), dict[str, Plan]()
        loads = dict[str, Mapping[str, Any]]()
        for path in plans:
            plan = Plan.load(path)
            name = unlike(plan.name, {*PRESET_CHOICES, *named})
            named[name] = plan
        for model in models:
            folder = local_folder(model)
            found[unlike(model if folder is None else folder.name, found)] = model
        for label, offer in (read_offers(allowed) if allowed else {}).items():
            label = unlike(label, found)
            found[label] = offer.model
            if offer.load:
                loads[label] = offer.load
        return cls(found, named, loads, loras_in(loras))

    def label(self, model: str, load: Mapping[str, Any] | None = None) -> str | None:
        """Return label of a model with its ``load``, None for one that is not on the list."""
        alike = (label for label, known in self.by_label.items() if known == model)
        return next((label for label in alike if (self.loads.get(label) or None) == load), None)

    @property
    def accelerations(self) -> list[str]:
        """Presets, none, the plan of the tab Plan, and the plans out of files."""
        return [*PRESET_CHOICES, *self.plans]

    def acceleration(self, job: Job) -> str:
        """Return the one of a job."""
        if job.plan is None:
            return job.preset or UNACCELERATED
        plan = job.accel_plan()
        return next((name for name, known in self.plans.items() if known == plan), PLANNED)


def job_from_form(form: Mapping[str, Any], models: Models, limits: Limits) -> Job:
    """Return a checked job.

    ``form``: fields of a Job, with the model by its label and preset "none".

    ``motion`` and ``plan`` must come from this program (``drawing.py``, ``predicted.py``), not from
    the browser. Raises JobError naming the value, the limit and the way out.
    """
    data = {key: value for key, value in form.items() if key in {f.name for f in fields(Job)}}
    label = str(data.get("model"))
    if label not in models.by_label:
        known = ", ".join(models.by_label)
        raise JobError(f"model {label!r} is not offered here; choose one of {known}")
    data |= {"model": models.by_label[label], "load": models.loads.get(label)}
    preset = data.get("preset")
    if preset in models.plans:
        data |= {"preset": None, "plan": models.plans[str(preset)].to_dict()}
    elif preset in (UNACCELERATED, PLANNED):
        data["preset"] = None
    for key in ("width", "height", "frames", "steps", "seed"):
        data[key] = _whole(key, data.get(key))
    if not data.get("motion") or data.get("follow") == Follow().way:
        data["follow"] = None  # the choice stands in the form also where nothing moves
    if data["seed"] is None:
        raise JobError("seed is empty; give a whole number, or take a random one")
    job = make_job(data, "the form")
    check_limits(job, limits)
    return job


def _whole(name: str, value: Any) -> Any:
    """Return a number field as a whole number; None where it is empty."""
    if value is None or value == "":
        return None
    if isinstance(value, float) and value == int(value):
        return int(value)
    return value


def check_limits(job: Job, limits: Limits) -> None:
    """Raise JobError for a job that asks for more than a browser may."""
    for name in ("prompt", "negative_prompt"):
        at_most(f"{name} length", len(getattr(job, name)), limits.prompt)
    if not job.prompt.strip():
        raise JobError("the prompt is empty; describe the video in a few words")
    at_most("name length in bytes", len(job.name.encode()), limits.name)
    for key, limit in (("width", limits.side), ("height", limits.side)):
        at_most(key, getattr(job, key) or 0, limit)
    at_most("frames", job.frames or 0, limits.frames)
    at_most("steps", job.steps or 0, limits.steps)
    volume = (job.width or 0) * (job.height or 0) * (job.frames or 0)
    at_most("width x height x frames", volume, limits.volume)


def at_most(name: str, value: int, limit: int) -> None:
    """Raise JobError for more than ``limit`` of something."""
    if value > limit:
        raise JobError(f"{name} is {value}, at most {limit} here; choose less")


# ------------------------------------------------------------------------------ presets and export


class Presets:
    """Named jobs in one JSON file, each checked when it is read."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self._path, self._limits = path, limits

    def all(self) -> dict[str, Job]:
        """Return by name; entries that are no job are left out."""
        found = {}
        for name, values in self._read().items():
            try:
                text("preset", name)
                found[name] = make_job(values, name)
            except (ValueError, OverflowError):
                continue
        return found

    def _read(self) -> dict[str, Any]:
        """Return what the file holds, also what is no job; nothing if it cannot be read."""
        try:
            data = json.loads(self._path.read_text())
        except (OSError, ValueError, RecursionError):
            return {}
        return data if isinstance(data, dict) else {}

    def save(self, name: str, job: Job) -> None:
        """Keep a job under a name.

        Raises JobError for a bad name or too many.
        """
        name, known = name.strip(), self.all()
        if not name or len(name) > self._limits.name or not name.isprintable():
            raise JobError(f"a preset needs a name of 1 to {self._limits.name} characters")
        if name not in known:
            at_most("number of presets", len(known) + 1, self._limits.presets)
        self._write({**self._read(), name: job.to_dict()})

    def delete(self, name: str) -> None:
        """Forget a preset."""
        self._write({key: values for key, values in self._read().items() if key != name})

    def _write(self, data: Mapping[str, Any]) -> None:
        """Write the file anew; one that cannot be read is kept beside it."""
        if self._path.is_file() and not self._read() and self._path.read_bytes().strip() != b"{}":
            self._path.replace(self._path.with_name(f"{self._path.name}.damaged"))
        write_json(self._path, data)


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file, whole or not at all."""
    write_atomic(path, json.dumps(data, indent=1) + "\n")


def job_file(jobs: list[Job]) -> str:
    """Return YAML for ``accel render``, without what is as by default."""
    plain = Job("").to_dict()
    kept = [{k: v for k, v in job.to_dict().items() if v != plain[k]} for job in jobs]
    data = json.loads(json.dumps({"version": 1, "jobs": kept}))  # tuples become lists
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)
