"""What lies in the output folder, and the order in which it appears.

    NAME.mp4            the video, complete from its first moment under this name
    NAME.json           the sidecar, last: job, id, hash of the video, report. It means done
    .accel/             manifest, leases, saved steps, failures

Video and sidecar are written under names of their own (``part_of``) and forced to the disk; then
the video gets its name, then the sidecar. A process that dies between the two leaves a whole part
of a sidecar whose hash fits the video: the next one only renames it. What belongs to another job
(``owners.py``) is replaced only where ``overwrite`` asks for it, and what is not ours never.
"""

from __future__ import annotations

import os
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import numpy as np

from accel.core.atomic_write import part_of
from accel.core.strict_json import dumps
from accel.pipelines.batch.identity import content_hash
from accel.pipelines.batch.lease import lease_path
from accel.pipelines.batch.owners import owner_of, paths_of
from accel.pipelines.batch.sidecar import read_sidecar
from accel.pipelines.job import Job, JobError
from accel.pipelines.job_settings import made_as, settings_text
from accel.pipelines.video import SUFFIX, encode, remove, replace, sync


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
    """The files of one job in the folder ``out``.

    ``overwrite``: a finished video of another job under the same name may be replaced.
    """

    def __init__(self, out: Path, name: str, format: str, overwrite: bool = False) -> None:
        self.out, self.name, self.format, self.overwrite = out, name, format, overwrite
        self.sidecar, self.video = (out / path for path in paths_of(name, format))
        self.lease = lease_path(out, name)

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

    def check_ours(self, job_id: str) -> None:
        """Raise JobError if a file of somebody else stands where the job's files go."""
        for path in (self.sidecar, self.video):
            if not os.path.lexists(path):
                continue
            owner = owner_of(path)
            if owner is None:
                raise JobError(f"{path} is not from accel render; move it or rename the job")
            if owner.id != job_id and not (self.overwrite and owner.name == self.name):
                raise JobError(
                    f"{path} is the finished video of another job; rename this one, or give "
                    "--overwrite to replace a video of the same name"
                )

    def write(self, frames: np.ndarray, job: Job, job_id: str, sidecar: dict[str, Any]) -> str:
        """Write both files and give them their names; returns the video's hash.

        ``frames`` uint8 [F, H, W, 3]. Raises OSError, and leaves nothing half-written then.
        """
        try:
            encode(
                part_of(self.video),
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
        part = part_of(self.video)
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
        sha256 = content_hash(part_of(self.video))
        self.check_ours(job_id)
        old = read_sidecar(self.sidecar)
        data = {
            **data,
            "id": job_id,
            "job": made_as(changed(job, name=self.name)),
            "video": {"file": self.video.name, "sha256": sha256},
        }
        part = part_of(self.sidecar)
        part.write_text(dumps(data, indent=2) + "\n")
        sync(part)
        replace(part_of(self.video), self.video)
        replace(part, self.sidecar)
        self._remove_old(old)
        return sha256

    def _remove_old(self, old: dict[str, Any] | None) -> None:
        """Delete the video that was replaced, where it had another suffix and is unchanged."""
        video = {} if old is None else old["video"]
        path = self.out / str(video.get("file", self.video.name))
        others = {paths_of(self.name, format)[1] for format in SUFFIX} - {self.video.name}
        if path.name in others and path.exists() and content_hash(path) == video["sha256"]:
            remove(path)

    def finish(self, job_id: str) -> bool:
        """Complete what a process that died had written whole; True if the job is done by that."""
        data = read_sidecar(part_of(self.sidecar))
        if data is None or data["id"] != job_id:
            return False
        self.check_ours(job_id)
        part, sha256 = part_of(self.video), data["video"]["sha256"]
        if part.exists() and content_hash(part) == sha256:
            replace(part, self.video)
        elif not self.video.exists() or content_hash(self.video) != sha256:
            return False
        replace(part_of(self.sidecar), self.sidecar)
        return True

    def remove(self) -> None:
        """Delete the job's files."""
        remove(self.sidecar)
        remove(self.video)

    def remove_parts(self) -> None:
        """Delete what is half-written."""
        remove(part_of(self.video))
        remove(part_of(self.sidecar))


def copy_of(first: Output, second: Output, job: Job, job_id: str, compare: bool = False) -> str:
    """Make ``second`` a copy of ``first``; its hash, "" if that is not the finished job.

    Raises JobError if a file of somebody else stands where the copy goes.
    """
    data = read_sidecar(first.sidecar)
    if data is None or first.why_not_done(job_id, compare):
        return ""
    second.check_ours(job_id)
    return second.take(file_bytes(first.video), job, job_id, data)


def file_bytes(path: Path) -> dict[str, bytes]:
    """Content of a video (under "") or of a folder of frames, as ``Output.take`` wants it."""
    if path.is_dir():
        return {file.name: file.read_bytes() for file in sorted(path.iterdir())}
    return {"": path.read_bytes()}
