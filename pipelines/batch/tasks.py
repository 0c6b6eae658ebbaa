"""What an engine is given and what it gives back: tasks and outcomes."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from accel.pipelines.job import Job


@dataclass(frozen=True)
class Task:
    """One try of one job.

    ``rung``: how far up the ladder of memory savings. ``preview``: emit pictures of the running
    denoising. ``keep``: with ``compare``, keep the reference as a video of its own and a video of
    the difference (``comparison.py``). ``overwrite``: replace another job's finished video.
    """

    name: str
    id: str
    job: Job
    rung: int = 0
    compare: bool = False
    checkpoint_steps: int = 5
    preview: bool = False
    keep: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class Check:
    """A question instead of a render: do these jobs (by name), loaded alike, fit their model."""

    model: str
    jobs: dict[str, Job]


class Kind(StrEnum):
    """The ways a task can end."""

    DONE = "done"
    FOUND = "found"  # it was complete already
    BUSY = "busy"  # another process has it
    STOPPED = "stopped"
    INVALID = "invalid"
    FAILED = "failed"
    OOM = "oom"  # it ran out of memory
    DISK = "disk"  # nothing more can be written
    DIED = "died"  # its process ended
    LOST = "lost"  # its machine is gone
    CHECKED = "checked"


@dataclass(frozen=True)
class Outcome:
    """How a task ended.

    ``sidecar`` is what was written beside the video.
    """

    kind: Kind
    error: str = ""
    traceback: str = ""
    sha256: str = ""
    sidecar: dict[str, Any] = field(default_factory=dict)
    report: str = ""
    rungs_left: int = 0
    invalid: dict[str, str] = field(default_factory=dict)
    content: dict[str, bytes] = field(default_factory=dict)
