"""A queue that stays open: jobs come, go and change places while others run.

The thread that calls ``serve`` talks to the engine; every other method may be called from any
thread. All of them take ``lock``, which is never held while the engine waits.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from accel.pipelines.batch.engines import Stop
from accel.pipelines.batch.items import Item, Naming, make_item
from accel.pipelines.batch.jobfile import Invalid
from accel.pipelines.batch.manifest import Manifest
from accel.pipelines.batch.progress import Pace
from accel.pipelines.batch.queue import Options, Queue
from accel.pipelines.batch.worker import Outcome, Task
from accel.pipelines.job import Job, JobError, make_job

WAITING, RUNNING, STOPPED, FAILED = "waiting", "running", "stopped", "failed"
_POLL = 0.2  # seconds between looks at the list while nothing comes from the engine


@dataclass
class Entry:
    """One job as the page shows it. ``part``: render, or unaccelerated for the reference."""

    item: Item
    compare: bool = False
    state: str = WAITING
    step: int = 0
    steps: int = 0
    part: str = ""
    eta: float | None = None
    error: str = ""
    jpeg: bytes = field(default=b"", repr=False)


class LiveQueue(Queue):
    """See ``Queue``. ``entries`` holds everything that is not done, ``version`` counts changes."""

    def __init__(self, options: Options, make_engine: Any, manifest: Manifest) -> None:
        self.lock = threading.RLock()
        self.entries: dict[str, Entry] = {}
        self.version, self.notice, self.paused = 0, "", False
        self._cancelled: set[str] = set()
        self._naming = Naming({})
        self._pace = Pace()
        self._closing = threading.Event()
        super().__init__(options, make_engine(self._event), manifest, self._event, Stop())

    # ------------------------------------------------------------------------------------ serving

    def serve(self) -> None:
        """Render until ``close``; the jobs that run then save their step and go on next time."""
        asked = False
        while not (self._closing.is_set() and not self._running):
            with self.lock:
                if self._closing.is_set() and not asked:
                    self.engine.stop()
                    asked = True
                if not self.paused and not self._closing.is_set():
                    self._start_some()
            for slot, outcome in self.engine.wait(_POLL):
                with self.lock:
                    self._settle(self._running.pop(slot), outcome, slot)
        self.engine.close()

    def close(self) -> None:
        """Let ``serve`` end."""
        self._closing.set()

    # ----------------------------------------------------------------------------------- commands

    def add(self, job: Job, *, compare: bool = False, state: str = WAITING) -> Entry:
        """Enter a job at the end. Raises JobError for one that is there already or cannot be."""
        with self.lock:
            item = make_item(job, "the form", self._naming)
            if item is None:
                raise JobError(
                    "this very job is in the queue or the gallery already; change a value"
                )
            if isinstance(item, Invalid):
                raise JobError(item.message)
            self.manifest.add([(item.name, item.id, item.job)])
            return self._enter(Entry(item, compare, state))

    def _enter(self, entry: Entry) -> Entry:
        self.entries[entry.item.name] = entry
        if entry.state == WAITING:
            self._pending.append(entry.item)
        self._changed()
        return entry

    def restore(self, compared: set[str], order: list[str], taken: dict[str, str]) -> None:
        """Take over what an earlier run of the page left in the manifest. ``taken``: names of
        finished files and their ids.
        """
        for name, key in taken.items():
            self._naming.take(name, key)
        states = {"pending": WAITING, "running": WAITING, "stopped": STOPPED}
        rows = {row["name"]: row for row in self.manifest.rows() if row["id"]}
        for name in dict.fromkeys([*(n for n in order if n in rows), *rows]):
            row = rows[name]
            try:
                job = make_job(json.loads(row["job"]), name)
            except (JobError, ValueError):
                continue
            self._naming.take(name, row["id"])
            if row["state"] == "done":
                continue
            if row["state"] == "running":
                self.manifest.cut_off(name)
            state = states.get(row["state"], FAILED)
            item = Item(job, row["id"], name, "the queue")
            self._enter(Entry(item, name in compared, state, error=_first_line(row["error"])))

    def stop_job(self, name: str) -> None:
        """Stop a job: a running one after its current step, which is saved."""
        with self.lock:
            entry = self.entries.get(name)
            if entry is None:
                return
            for slot, item in self._running.items():
                if item.name == name:
                    self._cancelled.add(name)
                    self.engine.cancel(slot)  # type: ignore[attr-defined]
            if entry.state == WAITING:
                self._drop(name)
                entry.state = STOPPED
                self.manifest.log(name, "stopped", "stopped")
            self._changed()

    def retry(self, name: str) -> None:
        """Let a stopped or failed job run again, from its last saved step."""
        with self.lock:
            entry = self.entries.get(name)
            if entry is None or entry.state not in (STOPPED, FAILED):
                return
            item = entry.item
            entry.item = Item(item.job, item.id, item.name, item.where, item.twin)
            entry.state, entry.error = WAITING, ""
            self._pending.append(entry.item)
            self.manifest.log(name, "retry", "pending", "asked for")
            self._changed()

    def remove(self, name: str) -> bool:
        """Take a job that does not run out of the list; False if it runs."""
        with self.lock:
            entry = self.entries.get(name)
            if entry is not None and entry.state == RUNNING:
                return False
            self._drop(name)
            self.entries.pop(name, None)
            self.manifest.remove(name)
            self._naming.forget(name)
            self._changed()
            return True

    def move(self, name: str, by: int) -> None:
        """Move a waiting job ``by`` places, negative is earlier."""
        with self.lock:
            names = [item.name for item in self._pending]
            if name not in names:
                return
            items, at = list(self._pending), names.index(name)
            item = items.pop(at)
            items.insert(max(0, at + by), item)
            self._pending = deque(items)
            self._changed()

    def order(self) -> list[Entry]:
        """Running jobs, then waiting ones in their order, then the rest."""
        with self.lock:
            running = [item.name for item in self._running.values()]
            waiting = [item.name for item in self._pending]
            names = dict.fromkeys([*running, *waiting, *self.entries])
            return [self.entries[name] for name in names if name in self.entries]

    def _drop(self, name: str) -> None:
        self._pending = deque(item for item in self._pending if item.name != name)
        self._elsewhere = deque(pair for pair in self._elsewhere if pair[1].name != name)

    # ------------------------------------------------------------------------------ from the queue

    def _choose(self, free: list[Item], slot: int) -> Item:
        return free[0]  # the order on the page counts

    def _task(self, item: Item) -> Task:
        entry = self.entries[item.name]
        entry.state, entry.step, entry.error = RUNNING, 0, ""
        every = self.options.checkpoint_steps
        return Task(
            item.name, item.id, item.job, item.rung, entry.compare, every,
            preview=True, keep=entry.compare,
        )  # fmt: skip

    def _settle(self, item: Item, outcome: Outcome, slot: int) -> None:
        entry, wanted = self.entries[item.name], item.name in self._cancelled
        self._cancelled.discard(item.name)
        self._pace.forget(item.name)
        entry.jpeg = b""
        if outcome.kind == "stopped" and wanted:
            entry.state = STOPPED
            self.manifest.log(item.name, "stopped", "stopped")
        else:
            entry.state = WAITING
            super()._settle(item, outcome, slot)
        self._changed()

    def _disk_full(self, item: Item, outcome: Outcome) -> None:
        super()._disk_full(item, outcome)
        self._ended, self.paused = False, True
        self.notice = f"Paused: {outcome.error}. Make room, then let the queue go on."

    def _unfit(self, item: Item, message: str) -> None:
        super()._unfit(item, message)
        self._fail(item.name, message)

    def _fail(self, name: str, message: str) -> None:
        if name in self.entries:
            self.entries[name].state, self.entries[name].error = FAILED, message

    def _event(self, event: dict[str, Any]) -> None:
        """What the queue and its workers tell."""
        with self.lock:
            kind, name = event["event"], event.get("job", "")
            entry = self.entries.get(name)
            if kind in ("done", "skip") or (kind == "note" and name):  # a note: it was copied
                self.entries.pop(name, None)
                reference = (event.get("comparison") or {}).get("reference")
                if reference:  # its name is taken too
                    self._naming.take(reference, f"reference of {name}")
            elif entry is not None and kind == "step":
                entry.step, entry.steps, entry.part = event["step"], event["steps"], event["part"]
                entry.eta = self._pace(event)["eta_s"]
            elif entry is not None and kind == "preview":
                entry.jpeg = event.get("jpeg", b"")
            elif kind == "failed":
                self._fail(name, event["error"])
            elif entry is not None and kind == "retry":
                entry.error = f"{event['error']}; trying again{event['how']}"
            self._changed()

    def _changed(self) -> None:
        self.version += 1


def _first_line(text: str | None) -> str:
    lines = (text or "").strip().splitlines()
    return lines[-1] if lines else ""
