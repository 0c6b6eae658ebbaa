"""A run over job files from beginning to end, as ``accel render`` does it.

Jobs that load one model alike are kept together, since loading takes long; a job that was cut off
more than once goes last, lest it takes the machine down again first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from accel.pipelines.batch import events
from accel.pipelines.batch.engines import Engine, Stop
from accel.pipelines.batch.items import Item
from accel.pipelines.batch.jobfile import Invalid
from accel.pipelines.batch.lease import is_held, lease_path
from accel.pipelines.batch.manifest import Manifest
from accel.pipelines.batch.queue import Options, Queue
from accel.pipelines.batch.tasks import Check, Kind, Outcome, Task
from accel.pipelines.job import JobError


@dataclass
class Summary:
    """Counts of jobs at the end.

    ``disk``: why nothing more could be written. ``equal``, ``copied``: how many more jobs there
    were of a video, that were left out or became copies of it.
    """

    done: int = 0
    skipped: int = 0
    failed: int = 0
    invalid: int = 0
    left: int = 0
    disk: str = ""
    equal: Mapping[str, int] = field(default_factory=dict)
    copied: Mapping[str, int] = field(default_factory=dict)


@dataclass
class BatchPolicy:
    """The policy of a run that ends: counts what happens.

    ``ended``: nothing more may start.
    """

    options: Options
    stop: Stop
    summary: Summary
    ended: bool = False
    poll: float = 0.5

    def over(self, waiting: int) -> bool:
        return not self.may_start() or not waiting

    def may_start(self) -> bool:
        return not self.ended and not self.stop()

    def choose(self, free: Sequence[Item], loaded: str) -> Item:
        return next((item for item in free if item.job.loaded_as == loaded), free[0])

    def task(self, item: Item) -> Task:
        compare, every = self.options.compare, self.options.checkpoint_steps
        overwrite = self.options.overwrite
        return Task(item.name, item.id, item.job, item.rung, compare, every, overwrite=overwrite)

    def try_ended(self, item: Item) -> None:
        pass

    def sets_aside(self, item: Item) -> bool:
        return False

    def done(self, item: Item, sidecar: Mapping[str, Any]) -> None:
        self.summary.done += 1

    def skipped(self, item: Item) -> None:
        self.summary.skipped += 1

    def failed(self, item: Item, error: str) -> None:
        self.summary.failed += 1
        self.ended = self.ended or self.options.fail_fast

    def unfit(self, item: Item, error: str) -> None:
        self.count_invalid()

    def count_invalid(self) -> None:
        """Count a job that cannot be rendered."""
        self.summary.invalid += 1
        self.ended = self.ended or self.options.fail_fast

    def disk_full(self, error: str) -> None:
        self.ended, self.summary.disk = True, error


class BatchRun:
    """One run over entries of job files; ``stop`` may be set at any time.

    ``repeats``: how many equal jobs were left out of the entries, by the name of the one that is in
    them.
    """

    def __init__(
        self, options: Options, engine: Engine, manifest: Manifest, progress: events.Emit,
        stop: Stop, repeats: Mapping[str, int] | None = None,
    ) -> None:  # fmt: skip
        self.summary = Summary()
        self._repeats = repeats or {}
        self._policy = BatchPolicy(options, stop, self.summary)
        self._queue = Queue(options, engine, manifest, progress, self._policy)

    def run(self, entries: Iterable[Item | Invalid]) -> Summary:
        """Render everything; return when all is done, or on a signal, or a full disk."""
        try:
            self._collect(entries)
            self._check_all()
            self._queue.run()
        finally:
            self._queue.engine.close()
        self.summary.left = self._queue.waiting
        self.summary.equal, self.summary.copied = dict(self._repeats), dict(self._queue.copied)
        return self.summary

    def _collect(self, entries: Iterable[Item | Invalid]) -> None:
        """Sort the entries into invalid ones, finished ones and those to render."""
        queue, manifest, found = self._queue, self._queue.manifest, list[Item]()
        manifest.forget_invalid()
        for entry in entries:
            if isinstance(entry, Invalid):
                self._invalid(entry)
            else:
                found.append(entry)
        manifest.add((item.name, item.id, item.job) for item in found)
        for name in manifest.running():
            if not is_held(lease_path(queue.options.out, name)):
                manifest.cut_off(name)
        models: dict[str, int] = {}
        to_render: list[Item] = []
        for item in found:
            models.setdefault(item.job.loaded_as, len(models))
            output, compare = queue.output(item), queue.options.compare
            try:
                if output.finish(item.id) or not output.why_not_done(item.id, compare):
                    queue.found(item)
                    continue
                output.check_ours(item.id)
            except JobError as error:
                queue.unfit(item, str(error))
                continue
            to_render.append(item)
            if item.note:
                queue.progress(events.Note(item.note, job=item.name))
        cut = manifest.cut_offs()
        to_render.sort(key=lambda item: (cut.get(item.name, 0) > 1, models[item.job.loaded_as]))
        queue.pending = deque(to_render)

    def _invalid(self, entry: Invalid) -> None:
        self._queue.manifest.add_invalid(entry.where, entry.message)
        self._policy.count_invalid()
        self._queue.progress(events.Invalid(entry.where, entry.message))

    def _check_all(self) -> None:
        """Load each model in each way that is asked for, and set aside the jobs that do not fit."""
        queue = self._queue
        for loaded in dict.fromkeys(item.job.loaded_as for item in queue.pending):
            jobs = {i.name: i.job for i in queue.pending if i.job.loaded_as == loaded}
            if not self._policy.may_start():
                return
            outcome = self._checked(Check(next(iter(jobs.values())).model, jobs))
            for name, message in outcome.invalid.items():
                item = next(i for i in queue.pending if i.name == name)
                queue.pending.remove(item)
                queue.unfit(item, message)
            queue.loaded[0] = loaded

    def _checked(self, check: Check) -> Outcome:
        engine = self._queue.engine
        engine.submit(0, check)
        while True:
            for _, outcome in engine.wait(self._policy.poll):
                if outcome.kind != Kind.CHECKED:
                    text = f"cannot load model {check.model!r}: {outcome.error}"
                    return Outcome(Kind.CHECKED, invalid=dict.fromkeys(check.jobs, text))
                return outcome


def exit_code(summary: Summary, stop: Stop) -> int:
    """Return the exit code of a run.

    0 if all is done, 1 if a job failed or was invalid, 2 if nothing could be written, 130 or 143
    for a signal.
    """
    if stop():
        return 128 + stop.number
    if summary.disk:
        return 2
    return 1 if summary.failed or summary.invalid else 0
