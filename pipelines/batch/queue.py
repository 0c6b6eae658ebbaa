"""A queue of jobs on an engine: what every outcome leads to, and what is kept.

Only this process writes the manifest. What batch and page decide differently (which job comes next,
whether one may start, when it is over, what a failure means to the rest) is asked of a ``Policy``.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, assert_never

from accel.pipelines.batch import events
from accel.pipelines.batch.engines import Engine
from accel.pipelines.batch.failures import keep_failure
from accel.pipelines.batch.items import Item
from accel.pipelines.batch.ladder import next_rung
from accel.pipelines.batch.manifest import Manifest, State
from accel.pipelines.batch.output import Output, copy_of
from accel.pipelines.batch.tasks import Kind, Outcome, Task
from accel.pipelines.job import JobError

_MAX_DEATHS = 2  # processes one job may take down beyond its retries; lost machines do not count
_POLL = 1.0  # seconds between looks at a job that another process renders


@dataclass(frozen=True)
class Options:
    """``compare``: render each job also without acceleration and measure the difference.

    ``retries``: further tries of a job that failed. ``checkpoint_steps``: steps between two saved
    ones, 0 for none. ``overwrite``: replace finished videos of other jobs of the same names.
    """

    out: Path
    compare: bool = False
    fail_fast: bool = False
    retries: int = 1
    checkpoint_steps: int = 5
    overwrite: bool = False


class Policy(Protocol):
    """What a queue asks of whoever runs it, and tells it; always under the queue's lock."""

    @property
    def poll(self) -> float:
        """Seconds in which the queue looks again while nothing comes from the engine."""

    def over(self, waiting: int) -> bool:
        """Tell whether to end, where nothing runs and so many items wait."""

    def may_start(self) -> bool:
        """Tell whether a further item may start now."""

    def choose(self, free: Sequence[Item], loaded: str) -> Item:
        """Return the one of ``free`` that comes next in a slot that has ``loaded``.

        That is a job's ``loaded_as``.
        """

    def task(self, item: Item) -> Task:
        """Return the next try of an item, which starts now."""

    def try_ended(self, item: Item) -> None:
        """Take note that a try of an item ended; what comes of it follows."""

    def sets_aside(self, item: Item) -> bool:
        """Tell whether an item that stopped is set aside, or else waits again as the first."""

    def done(self, item: Item, sidecar: Mapping[str, Any]) -> None:
        """Take note of a rendered or copied video; ``sidecar`` is empty for a copy."""

    def skipped(self, item: Item) -> None:
        """Take note of a video that was there already."""

    def failed(self, item: Item, error: str) -> None:
        """Take note of an item that is given up."""

    def unfit(self, item: Item, error: str) -> None:
        """Take note of an item that does not fit its model."""

    def disk_full(self, error: str) -> None:
        """Take note that nothing more can be written; the item waits as the first."""


@dataclass
class Queue:
    """Items on their way to videos.

    ``lock`` is held whenever items change, never while the engine waits.
    """

    options: Options
    engine: Engine
    manifest: Manifest
    progress: events.Emit
    policy: Policy
    lock: AbstractContextManager[Any] = field(default_factory=threading.RLock)
    pending: deque[Item] = field(default_factory=deque)
    running: dict[int, Item] = field(default_factory=dict)
    loaded: dict[int, str] = field(default_factory=dict)  # slot to ``loaded_as``
    copied: Counter[str] = field(default_factory=Counter)  # videos to copies of them
    _elsewhere: deque[tuple[float, Item]] = field(default_factory=deque)

    def run(self) -> None:
        """Render until the policy says that it is over."""
        while self.running or not self.policy.over(self.waiting):
            with self.lock:
                self._start_some()
            for slot, outcome in self.engine.wait(self.policy.poll):
                with self.lock:
                    self._settle(self.running.pop(slot), outcome, slot)

    @property
    def waiting(self) -> int:
        """Count the items that are neither running nor settled."""
        return len(self.pending) + len(self._elsewhere)

    def drop(self, name: str) -> None:
        """Take an item that waits out of the queue."""
        self.pending = deque(item for item in self.pending if item.name != name)
        self._elsewhere = deque(pair for pair in self._elsewhere if pair[1].name != name)

    def output(self, item: Item) -> Output:
        """Return the files of an item."""
        return Output(self.options.out, item.name, item.job.format, self.options.overwrite)

    # ------------------------------------------------------------------------------------- starts

    def _start_some(self) -> None:
        usable = [slot for slot in range(self.engine.slots) if self.engine.usable(slot)]
        if not usable:
            raise OSError(
                "every machine of the cluster is gone; the same command goes on from here"
            )
        for slot in usable:
            if slot in self.running or not self.policy.may_start():
                continue
            item = self._take(slot)
            if item is None:
                continue
            self.running[slot], self.loaded[slot] = item, item.job.loaded_as
            self.manifest.log(item.name, "started", State.RUNNING, f"rung {item.rung}")
            self.progress(events.Start(item.name, item.id, slot))
            if self.output(item).steps.exists():
                self.progress(events.Resume(item.name))
            self.engine.submit(slot, self.policy.task(item))

    def _take(self, slot: int) -> Item | None:
        now = time.monotonic()
        if not self.pending and self._elsewhere and self._elsewhere[0][0] <= now:
            self.pending.append(self._elsewhere.popleft()[1])
        busy = {item.id for item in self.running.values()}
        free = [item for item in self.pending if item.id not in busy]
        if not free:
            return None
        item = self.policy.choose(free, self.loaded.get(slot, ""))
        self.pending.remove(item)
        try:
            return self._take(slot) if item.twin and self._copy(item) else item
        except JobError as error:
            self.unfit(item, str(error))
            return self._take(slot)

    def _copy(self, item: Item) -> bool:
        """Make an item that is the same video as a finished one a copy of it."""
        first = Output(self.options.out, item.twin, item.job.format)
        second, compare = self.output(item), self.options.compare
        if sha256 := copy_of(first, second, item.job, item.id, compare):
            self.manifest.log(item.name, "copied", State.DONE, item.twin, sha256=sha256)
            self.policy.done(item, {})
            self.copied[item.twin] += 1
            text = f"{item.name}: the same video as {item.twin}, copied"
            self.progress(events.Note(text, job=item.name))
        return bool(sha256)

    # --------------------------------------------------------------------------------------- ends

    def _settle(self, item: Item, outcome: Outcome, slot: int) -> None:
        """Write down how a task ended, and decide what comes of it."""
        self.policy.try_ended(item)
        match outcome.kind:
            case Kind.DONE:
                self._done(item, outcome, slot)
            case Kind.FOUND:
                self.found(item)
            case Kind.BUSY:
                self._busy(item)
            case Kind.STOPPED:
                self._stopped(item)
            case Kind.INVALID:
                self.unfit(item, outcome.error)
            case Kind.DISK:
                self._disk_full(item, outcome)
            case Kind.DIED | Kind.LOST:
                item.deaths += outcome.kind == Kind.DIED
                given_up = item.deaths > self.options.retries + _MAX_DEATHS
                self._failed(item, outcome, slot, None if given_up else item.rung)
            case Kind.FAILED | Kind.OOM:
                item.failures += outcome.kind == Kind.FAILED
                tries = item.failures, self.options.retries
                rung = next_rung(outcome.kind, item.rung, outcome.rungs_left, *tries)
                self._failed(item, outcome, slot, rung)
            case Kind.CHECKED:
                raise ValueError(f"{item.name} was rendered, and answered as a check")
            case _:
                assert_never(outcome.kind)

    def _done(self, item: Item, outcome: Outcome, slot: int) -> None:
        data = outcome.sidecar
        whole = not data["resumed_from_step"] and not data["memory"]
        self.manifest.log(
            item.name, "done", State.DONE, sha256=outcome.sha256, error=None,
            peak_bytes=data["peak_bytes"], seconds=data["seconds"] if whole else None,
        )  # fmt: skip
        self.policy.done(item, data)
        file = str(self.output(item).video)
        told = events.Done(item.name, item.id, slot, file, outcome.sha256, data, outcome.report)
        self.progress(told)

    def found(self, item: Item) -> None:
        """Settle an item whose video is there."""
        self.manifest.log(item.name, "found", State.DONE)
        self.policy.skipped(item)
        self.progress(events.Skip(item.name, item.id, str(self.output(item).video)))

    def _busy(self, item: Item) -> None:
        if not item.waiting:
            item.waiting = True
            self.manifest.log(item.name, "elsewhere", State.PENDING)
            self.progress(events.Wait(item.name))
        self._elsewhere.append((time.monotonic() + _POLL, item))

    def _stopped(self, item: Item) -> None:
        aside = self.policy.sets_aside(item)
        self.manifest.log(item.name, "stopped", State.STOPPED if aside else State.PENDING)
        if not aside:
            self.pending.appendleft(item)

    def _failed(self, item: Item, outcome: Outcome, slot: int, rung: int | None) -> None:
        """Try a failed item again on ``rung``, or give it up."""
        if rung is not None:
            how = " with less memory" if rung > item.rung else ""
            self.progress(events.Retry(item.name, outcome.error, how))
            self.manifest.log(item.name, "retry", State.PENDING, outcome.error)
            item.rung = rung
            self.pending.append(item)
            return
        command = keep_failure(self.options.out, item, outcome)
        why = outcome.traceback or outcome.error
        self.manifest.log(item.name, "failed", State.FAILED, outcome.error, error=why)
        self.policy.failed(item, outcome.error)
        self.progress(
            events.Failed(item.name, item.id, slot, outcome.error, outcome.traceback, command)
        )

    def unfit(self, item: Item, message: str) -> None:
        """Settle an item that does not fit its model."""
        self.manifest.log(item.name, "invalid", State.INVALID, message, error=message)
        self.policy.unfit(item, message)
        self.progress(events.Invalid(item.where, message))

    def _disk_full(self, item: Item, outcome: Outcome) -> None:
        """Keep the item as the first: nothing that comes after could be written either."""
        self.policy.disk_full(outcome.error)
        self.pending.appendleft(item)
        try:
            self.manifest.log(item.name, "stopped", State.PENDING, outcome.error)
        except Exception as error:  # the manifest is on the same disk
            self.progress(events.Note(f"the manifest could not be written: {error}"))
