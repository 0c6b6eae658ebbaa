"""Runs a queue of jobs on an engine: what starts when, what a failure leads to, what is kept.

Only this process writes the manifest. Jobs of one model are kept together, since loading takes
long; a job that was cut off more than once goes last, lest it takes the machine down again first.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from accel.pipelines.batch.engines import Engine, Stop
from accel.pipelines.batch.failures import keep_failure
from accel.pipelines.batch.items import Item
from accel.pipelines.batch.jobfile import Invalid
from accel.pipelines.batch.ladder import next_rung
from accel.pipelines.batch.lease import is_held
from accel.pipelines.batch.manifest import Manifest
from accel.pipelines.batch.output import Output, copy_of
from accel.pipelines.batch.worker import Check, Emit, Outcome, Task

_MAX_DEATHS = 2  # processes one job may take down beyond its retries; lost machines do not count
_POLL = 1.0  # seconds between looks at a job that another process renders


@dataclass(frozen=True)
class Options:
    """``compare``: render each job also without acceleration and measure the difference.

    ``retries``: further tries of a job that failed. ``checkpoint_steps``: steps between two saved
    ones, 0 for none.
    """

    out: Path
    compare: bool = False
    fail_fast: bool = False
    retries: int = 1
    checkpoint_steps: int = 5


@dataclass
class Summary:
    """Counts of jobs at the end. ``disk``: why nothing more could be written."""

    done: int = 0
    skipped: int = 0
    failed: int = 0
    invalid: int = 0
    left: int = 0
    disk: str = ""


@dataclass
class Queue:
    """One run over a queue; ``stop`` may be set at any time."""

    options: Options
    engine: Engine
    manifest: Manifest
    progress: Emit
    stop: Stop
    summary: Summary = field(default_factory=Summary)
    _pending: deque[Item] = field(default_factory=deque)
    _elsewhere: deque[tuple[float, Item]] = field(default_factory=deque)
    _running: dict[int, Item] = field(default_factory=dict)
    _model: dict[int, str] = field(default_factory=dict)
    _ended: bool = False

    def run(self, entries: Iterable[Item | Invalid]) -> Summary:
        """Render everything; returns when all is done, or on a signal, or a full disk."""
        try:
            self._collect(entries)
            self._check_all()
            while not self._over():
                self._start_some()
                for slot, outcome in self.engine.wait(0.5):
                    self._settle(self._running.pop(slot), outcome, slot)
        finally:
            self.engine.close()
        self.summary.left = len(self._pending) + len(self._elsewhere)
        return self.summary

    # ------------------------------------------------------------------------------------ before

    def _collect(self, entries: Iterable[Item | Invalid]) -> None:
        """Sort the entries into invalid ones, finished ones and those to render."""
        found: list[Item] = []
        self.manifest.forget_invalid()
        for entry in entries:
            if isinstance(entry, Invalid):
                self._invalid(entry)
            else:
                found.append(entry)
        self.manifest.add((item.name, item.id, item.job) for item in found)
        for name in self.manifest.running():
            if not is_held(Output(self.options.out, name, "mp4").lease):
                self.manifest.cut_off(name)
        models: dict[str, int] = {}
        for item in found:
            models.setdefault(item.job.model, len(models))
            output = self._output(item)
            if output.finish(item.id) or not output.why_not_done(item.id, self.options.compare):
                self._found(item)
            else:
                self._pending.append(item)
        cut = self.manifest.cut_offs()
        order = sorted(
            self._pending, key=lambda item: (cut.get(item.name, 0) > 1, models[item.job.model])
        )
        self._pending = deque(order)

    def _check_all(self) -> None:
        """Load each model once and set aside the jobs that do not fit it, before any starts."""
        for model in dict.fromkeys(item.job.model for item in self._pending):
            jobs = {i.name: i.job for i in self._pending if i.job.model == model}
            if self.stop() or self._ended:
                return
            outcome = self._checked(Check(model, jobs))
            for name, message in outcome.invalid.items():
                item = next(i for i in self._pending if i.name == name)
                self._pending.remove(item)
                self._unfit(item, message)
            self._model[0] = model

    def _checked(self, check: Check) -> Outcome:
        self.engine.submit(0, check)
        while True:
            for _, outcome in self.engine.wait(0.5):
                if outcome.kind != "checked":
                    text = f"cannot load model {check.model!r}: {outcome.error}"
                    return Outcome("checked", invalid=dict.fromkeys(check.jobs, text))
                return outcome

    # ------------------------------------------------------------------------------------ during

    def _over(self) -> bool:
        if self._running:
            return False
        return self._ended or self.stop() or not (self._pending or self._elsewhere)

    def _start_some(self) -> None:
        usable = [slot for slot in range(self.engine.slots) if self.engine.usable(slot)]
        if not usable:
            raise OSError(
                "every machine of the cluster is gone; the same command goes on from here"
            )
        for slot in usable:
            if slot in self._running or self._ended or self.stop():
                continue
            item = self._take(slot)
            if item is None:
                continue
            self._running[slot], self._model[slot] = item, item.job.model
            self.manifest.log(item.name, "started", "running", f"rung {item.rung}")
            self.progress({"event": "start", "job": item.name, "id": item.id, "slot": slot})
            if self._output(item).steps.exists():
                self.progress({"event": "resume", "job": item.name})
            self.engine.submit(slot, self._task(item))

    def _task(self, item: Item) -> Task:
        compare, every = self.options.compare, self.options.checkpoint_steps
        return Task(item.name, item.id, item.job, item.rung, compare, every)

    def _take(self, slot: int) -> Item | None:
        """The next item for a slot: of the model it has loaded, where there is one."""
        now = time.monotonic()
        if not self._pending and self._elsewhere and self._elsewhere[0][0] <= now:
            self._pending.append(self._elsewhere.popleft()[1])
        busy = {item.id for item in self._running.values()}
        free = [item for item in self._pending if item.id not in busy]
        if not free:
            return None
        item = self._choose(free, slot)
        self._pending.remove(item)
        if item.twin and self._copy(item):
            return self._take(slot)
        return item

    def _choose(self, free: list[Item], slot: int) -> Item:
        same = (item for item in free if item.job.model == self._model.get(slot))
        return next(same, free[0])

    def _settle(self, item: Item, outcome: Outcome, slot: int) -> None:
        """Write down how a task ended, and decide what comes of it."""
        if outcome.kind == "done":
            self._done(item, outcome, slot)
        elif outcome.kind == "found":
            self._found(item)
        elif outcome.kind == "busy":
            if not item.waiting:
                item.waiting = True
                self.manifest.log(item.name, "elsewhere", "pending")
                self.progress({"event": "wait", "job": item.name})
            self._elsewhere.append((time.monotonic() + _POLL, item))
        elif outcome.kind == "stopped":
            self.manifest.log(item.name, "stopped", "pending")
            self._pending.appendleft(item)
        elif outcome.kind == "invalid":
            self._unfit(item, outcome.error)
        elif outcome.kind == "disk":
            self._disk_full(item, outcome)
        else:
            self._failed(item, outcome, slot)

    def _failed(self, item: Item, outcome: Outcome, slot: int) -> None:
        if outcome.kind in ("died", "lost"):
            item.deaths += outcome.kind == "died"
            again = None if item.deaths > self.options.retries + _MAX_DEATHS else item.rung
        else:
            item.failures += outcome.kind == "failed"
            again = next_rung(
                outcome.kind, item.rung, outcome.rungs_left, item.failures, self.options.retries
            )
        if again is not None:
            how = " with less memory" if again > item.rung else ""
            told = {"event": "retry", "job": item.name, "error": outcome.error, "how": how}
            self.progress(told)
            self.manifest.log(item.name, "retry", "pending", outcome.error)
            item.rung = again
            self._pending.append(item)
            return
        command = keep_failure(self.options.out, item, outcome)
        self.summary.failed += 1
        self._ended = self._ended or self.options.fail_fast
        self.manifest.log(
            item.name, "failed", "failed", outcome.error, error=outcome.traceback or outcome.error
        )
        self.progress(
            {"event": "failed", "job": item.name, "id": item.id, "slot": slot,
             "error": outcome.error, "traceback": outcome.traceback, "reproduce": command}
        )  # fmt: skip

    # ------------------------------------------------------------------------------------- ends

    def _done(self, item: Item, outcome: Outcome, slot: int) -> None:
        data = outcome.sidecar
        self.summary.done += 1
        whole = not data["resumed_from_step"] and not data["memory"]
        self.manifest.log(
            item.name, "done", "done", sha256=outcome.sha256, error=None,
            peak_bytes=data["peak_bytes"], seconds=data["seconds"] if whole else None,
        )  # fmt: skip
        event = {"event": "done", "job": item.name, "id": item.id, "slot": slot}
        event |= {"file": str(self._output(item).video), "sha256": outcome.sha256}
        self.progress({**event, **data, "report": outcome.report})

    def _found(self, item: Item) -> None:
        self.summary.skipped += 1
        self.manifest.log(item.name, "found", "done")
        file = str(self._output(item).video)
        self.progress({"event": "skip", "job": item.name, "id": item.id, "file": file})

    def _copy(self, item: Item) -> bool:
        """Make an item that is the same video as a finished one a copy of it."""
        sha256 = copy_of(Output(self.options.out, item.twin, item.job.format), self._output(item))
        if sha256:
            self.summary.done += 1
            self.manifest.log(item.name, "copied", "done", item.twin, sha256=sha256)
            text = f"{item.name}: the same video as {item.twin}, copied"
            self.progress({"event": "note", "job": item.name, "text": text})
        return bool(sha256)

    def _unfit(self, item: Item, message: str) -> None:
        self.manifest.log(item.name, "invalid", "invalid", message, error=message)
        self._count_invalid(item.where, message)

    def _invalid(self, entry: Invalid) -> None:
        self.manifest.add_invalid(entry.where, entry.message)
        self._count_invalid(entry.where, entry.message)

    def _count_invalid(self, where: str, message: str) -> None:
        self.summary.invalid += 1
        self._ended = self._ended or self.options.fail_fast
        self.progress({"event": "invalid", "where": where, "error": message})

    def _disk_full(self, item: Item, outcome: Outcome) -> None:
        """Nothing that comes after could be written either: end here and keep the rest."""
        self._ended, self.summary.disk = True, outcome.error
        self._pending.appendleft(item)
        try:
            self.manifest.log(item.name, "stopped", "pending", outcome.error)
        except Exception as error:  # the manifest is on the same disk
            text = f"the manifest could not be written: {error}"
            self.progress({"event": "note", "text": text})

    def _output(self, item: Item) -> Output:
        return Output(self.options.out, item.name, item.job.format)


def exit_code(summary: Summary, stop: Stop) -> int:
    """0 all done, 1 a job failed or was invalid, 2 nothing could be written, 130/143 a signal."""
    if stop():
        return 128 + stop.number
    if summary.disk:
        return 2
    return 1 if summary.failed or summary.invalid else 0
