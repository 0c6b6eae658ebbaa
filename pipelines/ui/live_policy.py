"""The policy of the page's queue: the visitor's order counts, and nothing ends but the page.

It also holds what the page shows of the queue. Whoever reads or changes it holds the queue's lock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, assert_never

from accel.pipelines.batch import events
from accel.pipelines.batch.items import Item
from accel.pipelines.batch.naming import Naming
from accel.pipelines.batch.progress import Pace
from accel.pipelines.batch.tasks import Task
from accel.pipelines.ui.entry import Entry, EntryState, Failure


@dataclass
class LivePolicy:
    """The policy of the page's queue.

    ``entries``: everything that is not done, by name; ``version`` counts changes, ``requests`` the
    jobs that were asked for; ``notice``: why the queue is paused by itself; ``broken``: why it
    will never go on; ``closing``: the page goes.
    """

    checkpoint_steps: int
    entries: dict[str, Entry] = field(default_factory=dict)
    version: int = 0
    requests: int = 0
    notice: str = ""
    broken: str = ""
    paused: bool = False
    closing: threading.Event = field(default_factory=threading.Event)
    naming: Naming = field(default_factory=Naming)
    poll: float = 0.2
    _pace: Pace = field(default_factory=Pace)

    def over(self, waiting: int) -> bool:
        return self.closing.is_set()

    def may_start(self) -> bool:
        return not self.paused and not self.closing.is_set()

    def choose(self, free: Sequence[Item], loaded: str) -> Item:
        return free[0]

    def task(self, item: Item) -> Task:
        entry = self.entries[item.name]
        entry.state, entry.step, entry.error, entry.note = EntryState.RUNNING, 0, "", ""
        entry.cancelled = False
        for other in self.entries.values():
            if other.failure and other.failure.requests < entry.request:
                other.failure = None
        return Task(
            item.name, item.id, item.job, item.rung, entry.compare, self.checkpoint_steps,
            preview=True, keep=entry.compare,
        )  # fmt: skip

    def try_ended(self, item: Item) -> None:
        self._pace.forget(item.name)
        entry = self.entries[item.name]
        entry.state, entry.jpeg = EntryState.WAITING, b""
        self.changed()

    def sets_aside(self, item: Item) -> bool:
        entry = self.entries[item.name]
        if entry.cancelled:
            entry.state = EntryState.STOPPED
        return entry.cancelled

    def done(self, item: Item, sidecar: Mapping[str, Any]) -> None:
        self.entries.pop(item.name, None)
        reference = (sidecar.get("comparison") or {}).get("reference")
        if reference:  # its name is taken too
            self.naming.take(reference, f"reference of {item.name}")

    def skipped(self, item: Item) -> None:
        self.entries.pop(item.name, None)

    def failed(self, item: Item, error: str) -> None:
        if entry := self.entries.get(item.name):
            entry.state, entry.error = EntryState.FAILED, error
            entry.failure = Failure(time.time(), self.requests)

    def unfit(self, item: Item, error: str) -> None:
        self.failed(item, error)

    def disk_full(self, error: str) -> None:
        self.paused = True
        self.notice = f"Paused: {error}. Make room, then let the queue go on."

    def request(self, entry: Entry) -> None:
        """Take note that a visitor asks for a job now."""
        self.requests += 1
        entry.request, entry.failure = self.requests, None

    def changed(self) -> None:
        """Let every tab look again."""
        self.version += 1

    def tell(self, event: events.Event) -> None:
        """Take note of what the queue and its workers tell."""
        match event:
            case events.Step():
                if entry := self.entries.get(event.job):
                    entry.step, entry.steps, entry.part = event.step, event.steps, event.part
                    entry.eta = self._pace(event).eta_s
            case events.Preview():
                if entry := self.entries.get(event.job):
                    entry.jpeg = event.jpeg
            case events.Retry():
                if entry := self.entries.get(event.job):
                    entry.error = f"{event.error}; trying again{event.how}"
            case events.Note():
                if entry := self.entries.get(event.job):
                    entry.note = f"{entry.note}\n{event.text}".strip()
            case events.Wait():
                if entry := self.entries.get(event.job):
                    entry.note = "another process renders it"
            case (
                events.Start() | events.Resume() | events.Done() | events.Skip()
                | events.Failed() | events.Invalid() | events.Stopping() | events.End()
            ):  # fmt: skip
                pass  # the methods above are told as well, or the page does not show it
            case _:
                assert_never(event)
        self.changed()
