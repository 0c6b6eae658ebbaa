"""A queue that stays open: jobs come, go and change places while others run.

The thread that calls ``serve`` talks to the engine; every other method may be called from any
thread. All of them take ``lock``, which is never held while the engine waits.
"""

from __future__ import annotations

import json
import threading
import traceback
from collections import deque
from collections.abc import Callable

from accel.pipelines.batch.engines import Engine
from accel.pipelines.batch.events import Emit, Event
from accel.pipelines.batch.items import Item, identified, make_item
from accel.pipelines.batch.jobfile import Invalid
from accel.pipelines.batch.manifest import Manifest, State
from accel.pipelines.batch.naming import Naming
from accel.pipelines.batch.queue import Options, Queue
from accel.pipelines.job import Job, JobError, make_job
from accel.pipelines.ui.entry import Entry, EntryState
from accel.pipelines.ui.live_policy import LivePolicy

_STATES = {
    State.PENDING: EntryState.WAITING,
    State.RUNNING: EntryState.WAITING,
    State.STOPPED: EntryState.STOPPED,
}


class LiveQueue:
    """A queue by the page's policy, and what visitors do to it."""

    def __init__(
        self, options: Options, make_engine: Callable[[Emit], Engine], manifest: Manifest
    ) -> None:
        self.lock = threading.RLock()
        self._policy = LivePolicy(
            options.checkpoint_steps, notice=manifest.note, naming=Naming(options.out)
        )
        engine = make_engine(self._tell)
        self._queue = Queue(options, engine, manifest, self._tell, self._policy, lock=self.lock)
        self._manifest, self._engine = manifest, engine

    def _tell(self, event: Event) -> None:
        with self.lock:
            self._policy.tell(event)

    # -------------------------------------------------------------------------------------- shown

    @property
    def entries(self) -> dict[str, Entry]:
        """Return everything that is not done, by name."""
        return self._policy.entries

    @property
    def version(self) -> int:
        """Return a count of changes."""
        return self._policy.version

    @property
    def notice(self) -> str:
        """Return why the queue paused by itself, or ""."""
        return self._policy.broken or self._policy.notice

    @property
    def paused(self) -> bool:
        """Tell whether no further job starts."""
        return self._policy.paused

    def order(self) -> list[Entry]:
        """Return running jobs, then waiting ones in their order, then the rest."""
        with self.lock:
            running = [item.name for item in self._queue.running.values()]
            waiting = [item.name for item in self._queue.pending]
            names = dict.fromkeys([*running, *waiting, *self.entries])
            return [self.entries[name] for name in names if name in self.entries]

    # ------------------------------------------------------------------------------------ serving

    def serve(self) -> None:
        """Render until ``close``; the jobs that run then save their step and go on next time.

        What ends it before is told on the page, which would wait for ever otherwise.
        """
        try:
            self._queue.run()
        except Exception as error:
            with self.lock:
                self._policy.broken = (
                    f"The queue has stopped: {type(error).__name__}: {error}. End accel ui and "
                    "start it again; the queue goes on where it was."
                )
                self._policy.changed()
            traceback.print_exc()
        finally:
            self._engine.close()

    def close(self) -> None:
        """Let ``serve`` end."""
        with self.lock:  # what starts before is stopped, and nothing starts after
            self._policy.closing.set()
            self._engine.stop()

    # ----------------------------------------------------------------------------------- commands

    def pause(self) -> None:
        """Start no further job, or go on."""
        with self.lock:
            self._policy.paused, self._policy.notice = not self.paused, ""
            self._policy.changed()

    def add(self, job: Job, *, compare: bool = False) -> Entry:
        """Enter a job at the end.

        Raises:
            JobError: it is there already, or cannot be.
        """
        with self.lock:
            found = identified(job, "the form")
            if isinstance(found, Invalid):
                raise JobError(found.message)
            item = make_item(found, self._policy.naming)
            if item is None:
                raise JobError(
                    "this very job is in the queue or the gallery already; change a value"
                )
            self._manifest.add([(item.name, item.id, item.job)])
            entry = Entry(item, compare)
            self._policy.request(entry)
            return self._enter(entry)

    def _enter(self, entry: Entry) -> Entry:
        self.entries[entry.item.name] = entry
        if entry.state == EntryState.WAITING:
            self._queue.pending.append(entry.item)
        self._policy.changed()
        return entry

    def restore(self, compared: set[str], order: list[str], taken: dict[str, str]) -> None:
        """Take over what an earlier run of the page left in the manifest.

        A job that can be none any more is told, and stays in the manifest.

        Args:
            compared: names of jobs that are rendered with their reference.
            order: names in the order of the queue.
            taken: names of finished files and their ids.
        """
        naming = self._policy.naming
        for name, key in taken.items():
            naming.take(name, key)
        rows = {row["name"]: row for row in self._manifest.rows() if row["id"]}
        for name in dict.fromkeys([*(n for n in order if n in rows), *rows]):
            row = rows[name]
            try:
                job = make_job(json.loads(row["job"]), name)
            except (ValueError, OverflowError) as why:
                if row["state"] != State.DONE:
                    text = f"{name} was not taken over from the last time: {why}"
                    self._policy.notice = f"{self._policy.notice}\n{text}".strip()
                continue
            naming.take(name, row["id"], job.format)
            if row["state"] == State.DONE:
                continue
            if row["state"] == State.RUNNING:
                self._manifest.cut_off(name)
            state = _STATES.get(row["state"], EntryState.FAILED)
            item, error = Item(job, row["id"], name, "the queue"), _last_line(row["error"])
            self._enter(Entry(item, name in compared, state, error=error))

    def stop_job(self, name: str) -> None:
        """Stop a job: a running one after its current step, which is saved."""
        with self.lock:
            entry = self.entries.get(name)
            if entry is None:
                return
            for slot, item in self._queue.running.items():
                if item.name == name:
                    entry.cancelled = True
                    self._engine.cancel(slot)
            if entry.state == EntryState.WAITING:
                self._queue.drop(name)
                entry.state = EntryState.STOPPED
                self._manifest.log(name, "stopped", State.STOPPED)
            self._policy.changed()

    def retry(self, name: str) -> None:
        """Let a stopped or failed job run again, from its last saved step."""
        with self.lock:
            entry = self.entries.get(name)
            if entry is None or entry.state not in (EntryState.STOPPED, EntryState.FAILED):
                return
            item = entry.item
            entry.item = Item(item.job, item.id, item.name, item.where, item.twin)
            entry.state, entry.error = EntryState.WAITING, ""
            self._policy.request(entry)
            self._queue.pending.append(entry.item)
            self._manifest.log(name, "retry", State.PENDING, "asked for")
            self._policy.changed()

    def dismiss(self, name: str) -> None:
        """Show no longer on the first tab that a job failed; it stays in the list."""
        with self.lock:
            if entry := self.entries.get(name):
                entry.failure = None
                self._policy.changed()

    def remove(self, name: str) -> bool:
        """Take a job that does not run out of the list; return False if it runs."""
        with self.lock:
            entry = self.entries.get(name)
            if entry is not None and entry.state == EntryState.RUNNING:
                return False
            self._queue.drop(name)
            self.entries.pop(name, None)
            self._manifest.remove(name)
            self._policy.naming.forget(name)
            self._policy.changed()
            return True

    def move(self, name: str, by: int) -> None:
        """Move a waiting job ``by`` places, negative is earlier."""
        with self.lock:
            names = [item.name for item in self._queue.pending]
            if name not in names:
                return
            items, at = list(self._queue.pending), names.index(name)
            item = items.pop(at)
            items.insert(max(0, at + by), item)
            self._queue.pending = deque(items)
            self._policy.changed()


def _last_line(text: str | None) -> str:
    lines = (text or "").strip().splitlines()
    return lines[-1] if lines else ""
