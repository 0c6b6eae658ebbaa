"""The identity of a job: a hash of everything that decides the bytes of its file.

That is the resolved job without its name, the content of its plan and of every file its motion
names, the model's content (or the commit of a hub model) and the version of accel. The machine, its
device and the versions of torch and diffusers are left out, so that machines of one farm agree;
they are recorded beside each video instead.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import accel
from accel.pipelines.job import Job, JobError
from accel.pipelines.load import local_folder
from accel.pipelines.loading.source import single_file
from accel.pipelines.motion.array_file import named_array
from accel.pipelines.video import files_of

NEWER = ("image", "last_image", "video", "mask", "references", "control", "fit", "loras",
         "arguments", "load")  # fmt: skip
_WHOLE = 64 * 2**20  # bytes up to which a file is hashed whole
_SAMPLES, _SAMPLE = 64, 2**16  # else its size and this many evenly spread blocks of this many bytes


def job_id(job: Job) -> str:
    """Return hex SHA-256 of a job; equal ids give equal files.

    Raises JobError if the model or a file of its motion is missing.
    """
    data = job.resolved().to_dict()
    for key in ("name", "preset", "plan"):
        del data[key]
    for key in NEWER:  # ids of jobs that do not use them stay what they were
        if not data[key] or key == "fit":
            del data[key]
    if "load" in data:
        data["load"] = job.load_options.deciding()
    data["strength"] = None if job.motion is None else _with_files(job.strength)
    data["motion"] = _with_files(job.motion)
    data["plan"] = _plan(job)
    data["model"] = model_fingerprint(job.model)
    data["accel"] = accel.__version__
    return digest(data)


def digest(value: Any) -> str:
    """Return hex SHA-256 of plain JSON values."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def plan_digest(job: Job) -> str:
    """Return short hash of what acceleration does to the job; its name does not count."""
    return digest(_plan(job))[:16]


def _plan(job: Job) -> dict[str, Any] | None:
    plan = job.accel_plan()
    if plan is None:
        return None
    data = {k: v for k, v in plan.to_dict().items() if k != "name"}
    if (attention := data.get("attention")) is not None:
        # 0.5 was the default in the ids that are stored; today's has no number of its own.
        most = attention["max_error"]
        most = 0.5 if most is None else str(most) if most == 0.5 else most
        data["attention"] = {**attention, "max_error": most}
    return data


def _with_files(value: Any) -> Any:
    """``value`` with every text that names a file or a folder replaced by hashes of the content."""
    if isinstance(value, Mapping):
        return {key: _with_files(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_files(inner) for inner in value]
    if isinstance(value, str) and 0 < len(value) < 4096 and Path(value).is_dir():
        # With their names, which give the order of a folder's frames or flows.
        return {"folder": {file.name: _with_files(str(file)) for file in Path(value).iterdir()}}
    if isinstance(value, str) and len(value) < 4096:
        file, key = named_array(value)
        if file.is_file():
            stat = file.stat()
            found = {"file": _hash_file(str(file), stat.st_size, stat.st_mtime_ns)}
            return found | {"array": key} if key else found
    return value


@lru_cache(maxsize=4096)
def _hash_file(path: str, size: int, changed: int) -> str:
    """Return SHA-256 of a file; ``changed`` (ns) only keeps the cache true."""
    state = hashlib.sha256()
    with open(path, "rb") as file:
        if size <= _WHOLE:
            while block := file.read(2**20):
                state.update(block)
        else:
            state.update(str(size).encode())
            for number in range(_SAMPLES):
                file.seek((size - _SAMPLE) * number // (_SAMPLES - 1))
                state.update(file.read(_SAMPLE))
    return state.hexdigest()


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
        return _hash_file(str(file), file.stat().st_size, file.stat().st_mtime_ns)
    if folder is None:
        return f"{model}@{_commit(model)}"
    files = {
        file.relative_to(folder).as_posix(): _hash_file(
            str(file), file.stat().st_size, file.stat().st_mtime_ns
        )
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
