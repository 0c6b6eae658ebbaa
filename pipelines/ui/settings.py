"""From what a browser sends to a job, and back: allow-lists, limits, presets, settings of a file.

A browser chooses models by label, never by path or id, and names no file on this machine. Metadata
of an uploaded file is data from anywhere: it is read with a limit, and what names a file is left
out.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from accel.core.atomic_write import write_atomic
from accel.core.validate import text
from accel.pipelines.job import NEWER, Job, JobError, job_from_settings, make_job
from accel.pipelines.load import TINY, local_folder
from accel.pipelines.video import SUFFIXES, read_comment
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
    comment: int = 256 * 2**10
    polygons: int = 32
    corners: int = 256
    keys: int = 64
    presets: int = 100


@dataclass(frozen=True)
class Models:
    """What may be chosen: models by label, the embedded one first, and plans beside the presets."""

    by_label: Mapping[str, str] = field(default_factory=lambda: {"tiny (embedded)": TINY})
    plans: Mapping[str, Plan] = field(default_factory=dict)

    @classmethod
    def of(cls, models: Sequence[str], plans: Sequence[Path] = ()) -> Models:
        """Return settings with the embedded model, ``models`` and ``plans``.

        Models are folders or hub ids given on the command line, plans are JSON files. Raises
        FileNotFoundError or ValueError for one that cannot be.
        """
        found, named = dict(cls().by_label), dict[str, Plan]()
        for path in plans:
            plan = Plan.load(path)
            name = _unlike(plan.name, {*PRESET_CHOICES, *named})
            named[name] = plan
        for model in models:
            folder = local_folder(model)
            found[_unlike(model if folder is None else folder.name, found)] = model
        return cls(found, named)

    def label(self, model: str) -> str | None:
        """Return label of a model, None for one that is not on the list."""
        return next((label for label, m in self.by_label.items() if m == model), None)

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


def _unlike(name: str, taken: Container[str]) -> str:
    """Return the name, with as many primes as make it new."""
    while name in taken:
        name += "'"
    return name


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
    data["model"] = models.by_label[label]
    preset = data.get("preset")
    if preset in models.plans:
        data |= {"preset": None, "plan": models.plans[str(preset)].to_dict()}
    elif preset in (UNACCELERATED, PLANNED):
        data["preset"] = None
    for key in ("width", "height", "frames", "steps", "seed"):
        data[key] = _whole(key, data.get(key))
    if data["seed"] is None:
        raise JobError("seed is empty; give a whole number, or take a random one")
    job = make_job(data, "the form")
    _check_limits(job, limits)
    return job


def _whole(name: str, value: Any) -> Any:
    """Return a number field as a whole number; None where it is empty."""
    if value is None or value == "":
        return None
    if isinstance(value, float) and value == int(value):
        return int(value)
    return value


def _check_limits(job: Job, limits: Limits) -> None:
    for name in ("prompt", "negative_prompt"):
        _at_most(f"{name} length", len(getattr(job, name)), limits.prompt)
    if not job.prompt.strip():
        raise JobError("the prompt is empty; describe the video in a few words")
    _at_most("name length in bytes", len(job.name.encode()), limits.name)
    for key, limit in (("width", limits.side), ("height", limits.side)):
        _at_most(key, getattr(job, key) or 0, limit)
    _at_most("frames", job.frames or 0, limits.frames)
    _at_most("steps", job.steps or 0, limits.steps)
    volume = (job.width or 0) * (job.height or 0) * (job.frames or 0)
    _at_most("width x height x frames", volume, limits.volume)


def _at_most(name: str, value: int, limit: int) -> None:
    if value > limit:
        raise JobError(f"{name} is {value}, at most {limit} here; choose less")


# ------------------------------------------------------------------------------ settings of a file


def settings_of(path: Path, models: Models, limits: Limits) -> tuple[Job, list[str]]:
    """Return the job inside a rendered file, and notes on what was left out of it.

    Raises JobError for a file without our settings, or with settings that cannot be.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise JobError(f"{path.suffix or 'this'} is no rendered video; drop a {' '.join(SUFFIXES)}")
    try:
        comment = read_comment(path)
    except ValueError as error:
        raise JobError("the file cannot be read as a video") from error
    _at_most("the file's comment, in characters,", len(comment), limits.comment)
    try:
        data = json.loads(comment)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise JobError("the file carries no settings: it was not written by accel")
    notes = _leave_out_files(data)
    try:
        job, _ = job_from_settings(json.dumps(data), "the file")
        _check_limits(job, limits)
    except (ValueError, TypeError, RecursionError) as error:
        raise JobError(str(error)) from error
    if models.label(job.model) is None:
        notes.append("its model is not offered here; the embedded one is chosen")
    return job, notes


def _leave_out_files(data: dict[str, Any]) -> list[str]:
    """Take out whatever names a file; what was taken out."""
    notes = []
    motion = data.get("motion")
    if isinstance(motion, dict):
        camera = motion.get("camera")
        for key in ("video", "flow"):
            if motion.pop(key, None) is not None:
                notes.append(f"its motion came from a {key} file, which is left out")
        if isinstance(camera, dict) and camera.pop("depth", None) is not None:
            notes.append("its depth map is left out")
        if not motion:
            data["motion"] = None
    for key in NEWER:
        if data.pop(key, None) and key != "fit":
            notes.append(f"its {key} is left out")
    if isinstance(data.get("strength"), dict) and data["strength"].pop("map", None) is not None:
        notes.append("its strength map is left out")
    if data.get("plan") is not None:
        data["plan"] = None
        notes.append("its plan is left out; its preset is kept")
    return notes


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
            _at_most("number of presets", len(known) + 1, self._limits.presets)
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
