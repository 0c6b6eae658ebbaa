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


@dataclass
class Entry:
    """One job of the page.

    ``part``: render, or unaccelerated for the reference; ``eta``: seconds left of it;
    ``cancelled``: a visitor stops it while it runs.
    """

    item: Item
    compare: bool = False
    state: EntryState = EntryState.WAITING
    step: int = 0
    steps: int = 0
    part: str = ""
    eta: float | None = None
    error: str = ""
    cancelled: bool = False
    jpeg: bytes = field(default=b"", repr=False)
