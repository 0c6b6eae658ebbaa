"""Many machines through Ray: one actor per GPU, or per machine where there is none.

An actor holds a loaded pipeline and sends finished files back, so the machines need no common
folder; where they have one, saved steps lie in it and another machine goes on from them. Only this
process writes into the output folder and the manifest, and it holds the leases. A lost machine
costs the steps since the last saved one. Ray's own retries stay off: the queue knows better.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from accel.core.extras import how_to_install
from accel.pipelines.batch.lease import lease
from accel.pipelines.batch.output import Output, file_bytes
from accel.pipelines.batch.sidecar import read_sidecar
from accel.pipelines.batch.tasks import Check, Kind, Outcome, Task
from accel.pipelines.batch.worker import Worker
from accel.pipelines.job import JobError

_GONE = 15.0  # seconds in which Ray notices that a machine is gone


class _Renderer:
    """What runs in an actor: a Worker on a folder of its own."""

    def __init__(self, out: str, token: str, gpu: bool) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="accel-ray-")
        self._stopped, self._number, self._cancelled = False, 0, -1
        shared = Path(out) if (Path(out) / ".accel" / token).exists() else None
        self._worker = Worker(
            Path(self._folder.name),
            "cuda:0" if gpu else None,
            lambda: self._stopped or self._cancelled == self._number,
            lambda event: None,
            shared,
        )

    def perform(self, task: Task | Check, number: int) -> Outcome:
        """Do a task; a finished file travels inside the outcome. ``number``: from 1, of its own."""
        self._number = number
        outcome = self._worker.perform(task)
        if isinstance(task, Check) or outcome.kind not in (Kind.DONE, Kind.FOUND):
            return outcome
        output = Output(Path(self._folder.name), task.name, task.job.format)
        sidecar = read_sidecar(output.sidecar) or {}
        content = file_bytes(output.video)
        output.remove()
        return replace(outcome, kind=Kind.DONE, sidecar=sidecar, content=content)

    def stop(self) -> None:
        """Stop after the current step."""
        self._stopped = True

    def cancel(self, number: int) -> None:
        """Stop the task of this number after its current step, or before its first."""
        self._cancelled = number


@dataclass
class _Place:
    """One slot: where its actor lives, and what it is doing."""

    node: str
    gpu: bool
    actor: Any = None
    call: Any = None
    number: int = 0
    task: Task | Check | None = None
    held: ExitStack = field(default_factory=ExitStack)
    outcome: Outcome | None = None
    gone: bool = False


class RayEngine:
    """Actors on a cluster. ``address``: HOST:PORT or auto; "" takes RAY_ADDRESS, else starts Ray.

    Raises JobError if Ray is not installed or the cluster cannot be reached.
    """

    def __init__(self, out: Path, address: str = "") -> None:
        self._ray = _connect(address)
        self._out = out
        self._token = f"ray-{os.getpid()}-{time.time_ns()}"
        (out / ".accel" / self._token).touch()
        self._places = _places(self._ray)
        self.slots = len(self._places)

    def usable(self, slot: int) -> bool:
        return not self._places[slot].gone

    def submit(self, slot: int, task: Task | Check) -> None:
        place = self._places[slot]
        place.task, place.outcome = task, self._claim(place, task)
        if place.outcome is None:
            place.actor = place.actor or self._actor(place)
            place.number += 1
            place.call = place.actor.perform.remote(task, place.number)

    def _claim(self, place: _Place, task: Task | Check) -> Outcome | None:
        """Take the job's lease; return an outcome if there is nothing to do."""
        if isinstance(task, Check):
            return None
        output = Output(self._out, task.name, task.job.format, task.overwrite)
        if not place.held.enter_context(lease(output.lease)):
            return Outcome(Kind.BUSY)
        try:
            if output.finish(task.id) or not output.why_not_done(task.id, task.compare):
                return Outcome(Kind.FOUND)
            output.check_ours(task.id)
        except JobError as error:
            return Outcome(Kind.INVALID, str(error))
        return None

    def _actor(self, place: _Place) -> Any:
        strategy = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            place.node, soft=False
        )
        options = {"num_gpus": 1} if place.gpu else {"num_cpus": 1}
        actor = self._ray.remote(_Renderer).options(
            scheduling_strategy=strategy, max_concurrency=2, **options
        )
        return actor.remote(str(self._out.resolve()), self._token, place.gpu)

    def wait(self, seconds: float) -> list[tuple[int, Outcome]]:
        outcomes = []
        calls = {place.call: n for n, place in enumerate(self._places) if place.call is not None}
        ready_now = any(place.outcome is not None for place in self._places)
        if calls:
            ready, _ = self._ray.wait(list(calls), timeout=0 if ready_now else seconds)
            for call in ready:
                place = self._places[calls[call]]
                place.call, place.outcome = None, self._result(place, call)
        elif not ready_now:
            time.sleep(seconds)
        for slot, place in enumerate(self._places):
            if place.outcome is not None:
                outcomes.append((slot, place.outcome))
                place.outcome = place.task = None
                place.held.close()
        return outcomes

    def _result(self, place: _Place, call: Any) -> Outcome:
        """Return the outcome of a call, its file in place; never raise for what happened there."""
        try:
            outcome: Outcome = self._ray.get(call)
        except self._ray.exceptions.RayError as error:
            place.actor = None
            place.gone = self._node_is_gone(place.node)
            what = f"machine {place.node[:8]} is gone" if place.gone else "its process ended"
            return Outcome(Kind.LOST if place.gone else Kind.DIED, what, str(error))
        task = place.task
        if outcome.kind != Kind.DONE or not isinstance(task, Task):
            return outcome
        output = Output(self._out, task.name, task.job.format, task.overwrite)
        try:
            sha256 = output.take(outcome.content, task.job, task.id, outcome.sidecar)
        except JobError as error:
            return Outcome(Kind.INVALID, str(error))
        except OSError as error:
            return Outcome(Kind.DISK, f"{type(error).__name__}: {error}")
        return replace(outcome, sha256=sha256, content={})

    def _node_is_gone(self, node: str) -> bool:
        end = time.monotonic() + _GONE
        while time.monotonic() < end:
            if not any(n["Alive"] for n in self._ray.nodes() if n["NodeID"] == node):
                return True
            time.sleep(0.5)
        return False

    def stop(self) -> None:
        for place in self._places:
            if place.actor is not None:
                place.actor.stop.remote()

    def cancel(self, slot: int) -> None:
        place = self._places[slot]
        if place.actor is not None:
            place.actor.cancel.remote(place.number)

    def close(self) -> None:
        for place in self._places:
            place.held.close()
            if place.actor is not None:
                self._ray.kill(place.actor)
        (self._out / ".accel" / self._token).unlink(missing_ok=True)
        self._ray.shutdown()


def _connect(address: str) -> Any:
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise JobError(
            f"--engine ray needs Ray: {how_to_install('ray')}; --engine local does not"
        ) from error
    try:
        ray.init(
            address=address or os.environ.get("RAY_ADDRESS"),
            include_dashboard=None if address or "RAY_ADDRESS" in os.environ else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise JobError(f"no Ray cluster at {address or 'RAY_ADDRESS'}: {error}") from error
    return ray


def _places(ray: Any) -> list[_Place]:
    places = []
    for node in ray.nodes():
        if node["Alive"]:
            gpus = int(node["Resources"].get("GPU", 0))
            places += [_Place(node["NodeID"], gpus > 0) for _ in range(max(1, gpus))]
    return places
