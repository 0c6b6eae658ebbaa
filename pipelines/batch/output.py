"""What lies in the output folder, and the order in which it appears.

    NAME.mp4            the video, complete from its first moment under this name
    NAME.json           the sidecar, last: job, id, hash of the video, report. It means done
    .accel/             manifest, leases, saved steps, failures

Video and sidecar are written as ``.part`` and forced to the disk; then the video gets its name,
then the sidecar. A process that dies between the two leaves a whole sidecar ``.part`` whose hash
fits the video: the next one only renames it.
"""

from __future__ import annotations

import os
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import numpy as np

from accel.core.strict_json import dumps
from accel.pipelines.batch.identity import content_hash
from accel.pipelines.batch.sidecar import read_sidecar
from accel.pipelines.job import Job, JobError, job_from_settings, settings_text
from accel.pipelines.video import SUFFIX, encode, read_comment, remove, replace, sync


def prepare_folder(out: Path) -> None:
    """Create the output folder and prove that it can be written.

    Raises JobError if not.
    """
    probe = out / ".accel" / f"write-test-{os.getpid()}"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.write_text("x")
        probe.unlink()
    except OSError as error:
        raise JobError(
            f"cannot write to {out}: {error.strerror}; choose another folder with --out"
        ) from error


class Output:
    """The files of one job in the folder ``out``."""

    def __init__(self, out: Path, name: str, format: str) -> None:
        self.out, self.name, self.format = out, name, format
        self.video = out / f"{name}{SUFFIX[format]}"
        self.sidecar = out / f"{name}.json"
        self.lease = out / ".accel" / "leases" / f"{name}.lock"

    @property
    def steps(self) -> Path:
        """File for the saved steps of a run."""
        return self.out / ".accel" / "steps" / f"{self.name}.ckpt"

    def why_not_done(self, job_id: str, compare: bool = False) -> str:
        """Return why the job has to be rendered, "" if its file is there, verified by its hash."""
        data = read_sidecar(self.sidecar)
        if data is None or not (self.video.exists()):
            return "not rendered yet"
        if data["id"] != job_id:
            return "rendered from other settings"
        if compare and data.get("comparison") is None:
            return "rendered without a comparison"
        if content_hash(self.video) != data["video"]["sha256"]:
            return "the file was damaged or changed since"
        return ""

    def check_ours(self) -> None:
        """Raise JobError if a file of somebody else stands where the job's files go."""
        if self.sidecar.exists() and read_sidecar(self.sidecar) is None:
            raise JobError(f"{self.sidecar} is not from accel render; move it or rename the job")
        if self.video.exists() and not self.sidecar.exists():
            first = self.video
            if first.is_dir():
                first = min(first.iterdir(), default=first)
            try:
                job_from_settings(read_comment(first), str(first))
            except ValueError as error:
                raise JobError(
                    f"{self.video} is not from accel render; move it or rename the job"
                ) from error

    def write(self, frames: np.ndarray, job: Job, job_id: str, sidecar: dict[str, Any]) -> str:
        """Write both files and give them their names; returns the video's hash.

        ``frames`` uint8 [F, H, W, 3]. Raises OSError, and leaves nothing half-written then.
        """
        try:
            encode(
                _part(self.video),
                frames,
                fps=job.fps or 16.0,
                comment=settings_text(job, job_id),
                format=self.format,
            )
            return self._publish(job, job_id, sidecar)
        except BaseException:
            self.remove_parts()
            raise

    def take(self, content: dict[str, bytes], job: Job, job_id: str, data: dict[str, Any]) -> str:
        """Like ``write`` for files rendered elsewhere: name in a folder (or "") to content."""
        part = _part(self.video)
        try:
            remove(part)
            for name, block in content.items():
                file = part / name if name else part
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(block)
                sync(file)
            return self._publish(job, job_id, data)
        except BaseException:
            self.remove_parts()
            raise

    def _publish(self, job: Job, job_id: str, data: dict[str, Any]) -> str:
        sha256 = content_hash(_part(self.video))
        data = {
            **data,
            "id": job_id,
            "job": changed(job, name=self.name).to_dict(),
            "video": {"file": self.video.name, "sha256": sha256},
        }
        part = _part(self.sidecar)
        part.write_text(dumps(data, indent=2) + "\n")
        sync(part)
        replace(_part(self.video), self.video)
        replace(part, self.sidecar)
        return sha256

    def finish(self, job_id: str) -> bool:
        """Complete what a process that died had written whole; True if the job is done by that."""
        data = read_sidecar(_part(self.sidecar))
        if data is None or data["id"] != job_id:
            return False
        part, sha256 = _part(self.video), data["video"]["sha256"]
        if part.exists() and content_hash(part) == sha256:
            replace(part, self.video)
        elif not self.video.exists() or content_hash(self.video) != sha256:
            return False
        replace(_part(self.sidecar), self.sidecar)
        return True

    def remove(self) -> None:
        """Delete the job's files."""
        remove(self.sidecar)
        remove(self.video)

    def remove_parts(self) -> None:
        """Delete what is half-written."""
        remove(_part(self.video))
        remove(_part(self.sidecar))


def copy_of(first: Output, second: Output) -> str:
    """Make ``second`` a copy of the finished ``first``; the hash, "" if that is not finished."""
    data = read_sidecar(first.sidecar)
    if data is None or first.why_not_done(data["id"]):
        return ""
    job = Job(**data["job"])
    return second.take(file_bytes(first.video), job, data["id"], data)


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def file_bytes(path: Path) -> dict[str, bytes]:
    """Content of a video (under "") or of a folder of frames, as ``Output.take`` wants it."""
    if path.is_dir():
        return {file.name: file.read_bytes() for file in sorted(path.iterdir())}
    return {"": path.read_bytes()}
