"""One job as the page shows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from accel.pipelines.batch.items import Item


class EntryState(StrEnum):
    """What the page says of a job that is not done; also a class of its style sheet."""

    WAITING = "waiting"
    RUNNING = "running"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True)
class Failure:
    """When a job failed: seconds since 1970, and how many jobs had been asked for by then."""

    time: float
    requests: int


@dataclass
class Entry:
    """One job of the page.

    ``part``: render, or unaccelerated for the reference; ``eta``: seconds left of it; ``note``:
    what its worker found worth telling;
    ``cancelled``: a visitor stops it while it runs; ``request``: the how-manieth job that was asked
    for it is; ``failure``: shown on the first tab until it is dismissed or a later request starts.
    """

    item: Item
    compare: bool = False
    state: EntryState = EntryState.WAITING
    step: int = 0
    steps: int = 0
    part: str = ""
    eta: float | None = None
    error: str = ""
    note: str = ""
    cancelled: bool = False
    request: int = 0
    failure: Failure | None = None
    jpeg: bytes = field(default=b"", repr=False)
