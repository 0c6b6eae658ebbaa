"""What happens while a queue runs: one frozen dataclass per event.

``to_dict`` is the line that ``accel render --progress json`` prints. What stands in an event but
not in that line (reports, tracebacks, pictures) is marked ``SILENT``; what is left out of the line
as long as it has its default is marked ``OPTIONAL``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from enum import StrEnum
from typing import Any, ClassVar


class Part(StrEnum):
    """Which of the two renderings of a compared job a step belongs to."""

    RENDER = "render"
    UNACCELERATED = "unaccelerated"


SILENT = {"silent": True}
OPTIONAL = {"optional": True}


@dataclass(frozen=True)
class _Told:
    """``event`` is the name of the event in JSON."""

    event: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """Return the event as plain JSON values, its name first."""
        shown: dict[str, Any] = {"event": self.event}
        for known in fields(self):
            value = getattr(self, known.name)
            make = known.default_factory
            default = known.default if make is MISSING else make()
            empty = known.metadata.get("optional") and value == default
            if not empty and not known.metadata.get("silent"):
                shown[known.name] = value
        return shown


@dataclass(frozen=True)
class Step(_Told):
    """``step`` of ``steps`` is computed; ``eta_s`` seconds are left of the part, if known."""

    event: ClassVar[str] = "step"
    job: str
    step: int
    steps: int
    part: Part
    slot: int | None = field(default=None, metadata=OPTIONAL)
    eta_s: float | None = None


@dataclass(frozen=True)
class Preview(_Told):
    """A picture of the running denoising as a JPEG file, or why there will be none."""

    event: ClassVar[str] = "preview"
    job: str
    jpeg: bytes = field(default=b"", metadata=SILENT)
    why_not: str = field(default="", metadata=OPTIONAL)
    slot: int | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class Start(_Told):
    """A job starts in a slot."""

    event: ClassVar[str] = "start"
    job: str
    id: str
    slot: int


@dataclass(frozen=True)
class Resume(_Told):
    """The job that just started goes on from a saved step."""

    event: ClassVar[str] = "resume"
    job: str


@dataclass(frozen=True)
class Done(_Told):
    """A job is rendered. ``sidecar``: what was measured, part of the line; ``report``: its text."""

    event: ClassVar[str] = "done"
    job: str
    id: str
    slot: int
    file: str
    sha256: str
    sidecar: Mapping[str, Any]
    report: str = field(default="", metadata=SILENT)

    def to_dict(self) -> dict[str, Any]:
        """Return the event with the measurements beside its own values."""
        shown = super().to_dict()
        shown |= shown.pop("sidecar")
        shown.pop("report", None)
        return shown


@dataclass(frozen=True)
class Skip(_Told):
    """The video of a job was there already."""

    event: ClassVar[str] = "skip"
    job: str
    id: str
    file: str


@dataclass(frozen=True)
class Wait(_Told):
    """Another process renders the job."""

    event: ClassVar[str] = "wait"
    job: str


@dataclass(frozen=True)
class Retry(_Told):
    """A job failed and is tried again; ``how`` completes "trying again"."""

    event: ClassVar[str] = "retry"
    job: str
    error: str
    how: str


@dataclass(frozen=True)
class Failed(_Told):
    """A job is given up; ``reproduce`` is the command that repeats it."""

    event: ClassVar[str] = "failed"
    job: str
    id: str
    slot: int
    error: str
    traceback: str = field(metadata=SILENT)
    reproduce: str


@dataclass(frozen=True)
class Invalid(_Told):
    """Something is no job, or no job for its model. ``where``: the file it stands in."""

    event: ClassVar[str] = "invalid"
    where: str
    error: str


@dataclass(frozen=True)
class Note(_Told):
    """Something worth a line, about a job or about everything."""

    event: ClassVar[str] = "note"
    job: str = field(default="", metadata=OPTIONAL, kw_only=True)
    text: str
    slot: int | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class Stopping(_Told):
    """A signal asked to stop; running jobs save their step first."""

    event: ClassVar[str] = "stopping"
    signal: str


@dataclass(frozen=True)
class End(_Told):
    """Everything is over: counts of jobs, and why nothing more could be written if so.

    ``equal``, ``copied``: how many more jobs there were of a video, that were left out or became
    copies of it.
    """

    event: ClassVar[str] = "end"
    exit_code: int
    done: int
    skipped: int
    failed: int
    invalid: int
    left: int
    disk: str
    equal: Mapping[str, int] = field(default_factory=dict, metadata=OPTIONAL)
    copied: Mapping[str, int] = field(default_factory=dict, metadata=OPTIONAL)


@dataclass(frozen=True)
class Planned(_Told):
    """What a dry run says of a job; it is printed and never emitted."""

    event: ClassVar[str] = "plan"
    job: str
    id: str
    file: str
    action: str
    reason: str
    predicted: Mapping[str, Any]
    settings: Mapping[str, Any]


Event = (
    Step | Preview | Start | Resume | Done | Skip | Wait | Retry | Failed | Invalid | Note
    | Stopping | End
)  # fmt: skip
Emit = Callable[[Event], None]
EmitStep = Callable[[Step | Preview | Note], None]  # what a worker emits
