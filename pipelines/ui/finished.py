"""The finished videos of the output folder, as far as its files can be trusted.

The folder may hold anything: files of other programs, sidecars that were edited or cut off, videos
that were moved away. What is odd is left out with a reason, and ends nothing else.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from accel.pipelines.batch.comparison import CEILING
from accel.pipelines.batch.output import Output
from accel.pipelines.batch.sidecar import load_sidecar
from accel.pipelines.job import Job
from accel.pipelines.job_settings import job_made
from accel.pipelines.video import files_of


@dataclass(frozen=True)
class Finished:
    """A video in the output folder with its sidecar.

    ``changed``: when it was finished, in nanoseconds since 1970.
    """

    name: str
    video: Path
    job: Job
    sidecar: Mapping[str, Any] = field(repr=False)
    changed: int = 0

    @property
    def comparison(self) -> Mapping[str, Any]:
        """What was measured against the reference, empty if nothing was."""
        return self.sidecar.get("comparison") or {}

    @property
    def reference(self) -> str:
        """Name of the video that it was compared with, "" without one."""
        return str(self.comparison.get("reference") or "")

    @property
    def db(self) -> float | None:
        """PSNR against the reference in dB, at most ``CEILING``; None if it was not measured."""
        value = self.comparison.get("psnr_db")
        return CEILING if value == math.inf else _number(value, CEILING)

    @property
    def frames_db(self) -> list[float]:
        """PSNR of each frame, at most ``CEILING``."""
        found = (_number(v, CEILING) for v in self.comparison.get("psnr_frames") or ())
        return [value for value in found if value is not None]

    @property
    def seconds(self) -> float | None:
        """Seconds of the run, None if they are not known."""
        return _positive(self.sidecar.get("seconds"))

    @property
    def gib(self) -> float | None:
        """Peak memory in GiB, None if it is not known."""
        peak = _positive(self.sidecar.get("peak_bytes"))
        return None if peak is None else peak / 2**30

    @property
    def prompt_cut(self) -> str:
        """What the tokenizers cut off the prompts, "" if nothing."""
        return "; ".join(self.sidecar.get("prompt_cut") or ())

    @property
    def phases(self) -> dict[str, int]:
        """Peak bytes by phase."""
        peaks = (self.sidecar.get("phase_peak_bytes") or {}).items()
        known = {phase: _positive(value) for phase, value in peaks}
        return {phase: round(value) for phase, value in known.items() if value}

    @property
    def reference_seconds(self) -> float | None:
        """Seconds of the reference's run, None if they are not known."""
        return _positive(self.comparison.get("reference_seconds"))


def _number(value: Any, most: float = math.inf) -> float | None:
    """Return a finite number, at most ``most``; None for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return min(number, most) if math.isfinite(number) else None


def _positive(value: Any) -> float | None:
    number = _number(value)
    return number if number and number > 0 else None


class FinishedVideos:
    """Reads the sidecars of a folder, each again only when it changed."""

    def __init__(self, out: Path) -> None:
        self._out, self._lock = out, threading.Lock()
        self._cache: dict[Path, tuple[Any, Finished | str]] = {}
        self._told: set[str] = set()
        self.notes: list[str] = []

    def read(self) -> list[Finished]:
        """Return finished videos, the newest first.

        ``notes`` then says what is left out and why; each of them is printed once.
        """
        with self._lock:
            return self._read_all()

    def _read_all(self) -> list[Finished]:
        files = sorted(self._out.glob("*.json"), key=changed_at, reverse=True)
        self._cache = {file: self._cache[file] for file in files if file in self._cache}
        found, notes = [], []
        for file in files:
            video = self._read(file)
            if isinstance(video, Finished) and not is_there(video.video):
                video = f"its video {video.video.name} is missing"
            if isinstance(video, Finished):
                found.append(video)
            else:
                notes.append(f"{ascii(file.name)[1:-1]} is left out: {video}")
        self.notes = notes
        for note in notes:
            if note not in self._told:
                self._told.add(note)
                print(f"accel ui: {note}", file=sys.stderr, flush=True)
        return found

    def _read(self, file: Path) -> Finished | str:
        """Return a video by its sidecar, or why there is none."""
        try:
            now = file.stat()
        except OSError as error:
            return str(error)
        known, stamp = self._cache.get(file), (now.st_mtime_ns, now.st_ctime_ns, now.st_size)
        if known is None or known[0] != stamp:
            known = self._cache[file] = (stamp, self._parsed(file, now.st_mtime_ns))
        return known[1]

    def _parsed(self, file: Path, changed: int) -> Finished | str:
        try:
            file.name.encode()  # a name that is no UTF-8 has no address
            data = load_sidecar(file)
            job = replace(job_made(data["job"], "its job"), name=file.stem)
        except UnicodeEncodeError:
            return "its name is no UTF-8"
        except KeyError as error:
            return f"it holds no {error.args[0]}"
        except Exception as error:  # whatever is odd about one file ends nothing else
            return str(error) or type(error).__name__
        return Finished(file.stem, Output(self._out, file.stem, job.format).video, job, data,
                        changed)  # fmt: skip


def is_there(video: Path) -> bool:
    """Tell whether a video is a file, or a folder with frames."""
    try:
        return video.is_file() or (video.is_dir() and bool(files_of(video)))
    except OSError:
        return False


def changed_at(path: Path) -> int:
    """Return when a file was changed, in nanoseconds since 1970; 0 if it is not there."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
