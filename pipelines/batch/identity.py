"""The identity of a job: a hash of everything that decides the bytes of its file.

That is the resolved job without its name, the content of its plan and of every file its motion
names, the model's content (or the commit of a hub model) and the version of accel. The machine, its
device and the versions of torch and diffusers are left out, so that machines of one farm agree;
they are recorded beside each video instead.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import accel
from accel.pipelines.inputs.hashes import digest, file_hash, with_files
from accel.pipelines.job import FITTED, NEWER, Job, JobError
from accel.pipelines.job_settings import versioned
from accel.pipelines.load import local_folder
from accel.pipelines.loading.source import single_file
from accel.pipelines.paths import with_home
from accel.pipelines.video import files_of

__all__ = ["content_hash", "digest", "job_id", "load_content", "model_fingerprint", "plan_digest"]


def job_id(job: Job) -> str:
    """Return hex SHA-256 of a job; equal ids give equal files.

    Raises JobError if the model or a file of its motion is missing.
    """
    data = job.resolved().to_dict()
    for key in ("name", "preset", "plan"):
        del data[key]
    for key in NEWER:  # ids of jobs that do not use them stay what they were
        if not data[key]:
            del data[key]
    if not any(getattr(job, key) for key in FITTED):
        del data["fit"]
    for key in set(data) & {*FITTED, "references", "loras", "arguments"}:
        data[key] = with_files(data[key])
    if load := load_content(job):
        data["load"] = load
    else:
        data.pop("load", None)
    data["strength"] = None if job.motion is None else with_files(job.strength)
    data["motion"] = with_files(versioned(job.motion))
    data["plan"] = _plan(job)
    data["model"] = model_fingerprint(job.model)
    data["accel"] = accel.__version__
    return digest(data)


def load_content(job: Job) -> dict[str, Any]:
    """Return what of the job's ``load`` decides pixels, its files by their content."""
    data = job.load_options.deciding()
    if "weights" in data:
        data["weights"] = {
            name: [word, with_files(with_home(file.strip()))] if file else word
            for name, kind in data["weights"].items()
            for word, _, file in [kind.partition(" ")]
        }
    places = {k: with_home(data[k]) for k in ("components", "config") if k in data}
    return data | with_files(places)


def plan_digest(job: Job) -> str:
    """Return short hash of what acceleration does to a job; not of a plan's name and origin."""
    return digest(_plan(job))[:16]


def _plan(job: Job) -> dict[str, Any] | None:
    plan = job.accel_plan()
    if plan is None:
        return None
    data = {k: v for k, v in plan.to_dict().items() if k not in ("name", "origin")}
    if (attention := data.get("attention")) is not None:
        # 0.5 was the default in the ids that are stored; today's has no number of its own.
        most = attention["max_error"]
        most = 0.5 if most is None else str(most) if most == 0.5 else most
        data["attention"] = {**attention, "max_error": most}
    return data


@lru_cache(maxsize=256)
def model_fingerprint(model: str) -> str:
    """Return what stands for a model's content: a hash of its folder or file, or hub id and commit.

    Raises JobError for a folder that is missing or holds no pipeline. A hub model that has not been
    downloaded yet has no commit here; its jobs get other ids once it has.
    """
    try:
        folder, file = local_folder(model), single_file(model)
    except FileNotFoundError as error:
        raise JobError(str(error)) from error
    if file is not None:
        return file_hash(file)
    if folder is None:
        return f"{model}@{_commit(model)}"
    files = {
        file.relative_to(folder).as_posix(): file_hash(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.suffix in {".json", ".safetensors", ".bin", ".model", ".txt"}
    }
    return digest(files)


def _commit(model: str) -> str:
    """Commit of a hub model in the local cache, "unknown" before its download."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, "model_index.json")
    return Path(found).parent.name if isinstance(found, str) else "unknown"


def content_hash(path: Path) -> str:
    """Return hex SHA-256 of a finished file, or of all frames of a folder."""
    if path.is_dir():
        return digest({file.name: content_hash(file) for file in files_of(path)})
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
