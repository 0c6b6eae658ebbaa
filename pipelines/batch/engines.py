"""Where tasks run: in this process, or in one process per device.

An engine has ``slots``, takes one task per slot, and gives outcomes back in the order they come. A
process that dies takes only its task along; its slot gets a new one.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

from accel.core.standard_streams import StandardStreams
from accel.core.validate import one_of
from accel.pipelines.batch.events import Emit
from accel.pipelines.batch.tasks import Check, Kind, Outcome, Task
from accel.pipelines.batch.worker import Worker
from accel.pipelines.job import JobError


class Stop:
    """Whether the queue should stop; ``number`` is the signal that asked for it."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self) -> bool:
        return self.number != 0


class Engine(Protocol):
    """What the queue, ``accel render`` and the page call of an engine."""

    slots: int

    def usable(self, slot: int) -> bool:
        """Tell whether the slot still has a machine behind it."""

    def submit(self, slot: int, task: Task | Check) -> None:
        """Start a task in a free slot."""

    def wait(self, seconds: float) -> list[tuple[int, Outcome]]:
        """Return (slot, outcome) of what ended within ``seconds``; may be none."""

    def stop(self) -> None:
        """Ask all tasks to stop after their current step; later ones stop at their first."""

    def cancel(self, slot: int) -> None:
        """Ask one task to stop after its current step; the slot takes others after it."""

    def close(self) -> None:
        """End everything."""


def make_engine(name: str, out: Path, stop: Stop, emit: Emit, stall: int = 0) -> Engine:
    """Return the engine that ``--engine`` names.

    ``stall``: see LocalEngine.

    Raises:
        JobError: it is unknown, not installed, or cannot watch for stalled jobs.
    """
    kind, _, address = name.partition("://")
    try:
        one_of("--engine", kind, ("local", "inline", "ray"))
    except ValueError as error:
        raise JobError(f"{error}; a Ray cluster that runs is ray://HOST:PORT") from error
    if kind == "local":
        return LocalEngine(out, emit, stall)
    if stall:
        raise JobError("--stall-timeout needs --engine local, whose processes can be ended")
    if kind == "inline":
        return InlineEngine(out, stop, emit)
    from accel.pipelines.batch.ray_engine import RayEngine

    return RayEngine(out, address)


def devices() -> list[str | None]:
    """Return one name per GPU, else a single default device."""
    import torch

    return [f"cuda:{i}" for i in range(torch.cuda.device_count())] or [None]


class InlineEngine:
    """Everything in this process: for tests and debugging; a crash ends it."""

    slots = 1

    def __init__(self, out: Path, stop: Stop, emit: Emit) -> None:
        self._stop, self._cancelled = stop, False
        self._worker = Worker(out, devices()[0], self._stopping, emit, out)
        self._task: Task | Check | None = None

    def _stopping(self) -> bool:
        return self._cancelled or self._stop()

    def usable(self, slot: int) -> bool:
        return True

    def submit(self, slot: int, task: Task | Check) -> None:
        self._task, self._cancelled = task, False

    def wait(self, seconds: float) -> list[tuple[int, Outcome]]:
        if self._task is None:
            time.sleep(seconds)
            return []
        task, self._task = self._task, None
        return [(0, self._worker.perform(task))]

    def stop(self) -> None:
        pass  # the worker looks at the same flag

    def cancel(self, slot: int) -> None:
        self._cancelled = True

    def close(self) -> None:
        pass


@dataclass
class _Slot:
    device: str | None
    process: Any = None
    connection: Connection | None = None
    busy: bool = False
    heard: float = 0.0  # time.monotonic() of its last sign of life
    stalled: bool = False


class LocalEngine:
    """One process per device.

    They end when this process ends, in whatever way.

    ``stall``: a process that sends nothing for so many seconds, while it has a task, is ended as
    if it had died; 0 is never. Loading, every step, and decoding with writing are one such time.
    """

    def __init__(self, out: Path, emit: Emit, stall: int = 0) -> None:
        self._out, self._emit, self._stall = out, emit, stall
        self._context = multiprocessing.get_context("spawn")
        self._all = [_Slot(device) for device in devices()]
        self.slots = len(self._all)

    def usable(self, slot: int) -> bool:
        return True

    def submit(self, slot: int, task: Task | Check) -> None:
        place = self._all[slot]
        if place.process is None:
            place.connection, theirs = self._context.Pipe()
            place.process = self._context.Process(
                target=_serve, args=(theirs, str(self._out), place.device), daemon=True
            )
            place.process.start()
            theirs.close()
        assert place.connection is not None
        place.busy, place.heard = True, time.monotonic()
        with suppress(OSError):  # it died since: wait() finds that
            place.connection.send(task)

    def wait(self, seconds: float) -> list[tuple[int, Outcome]]:
        connections: dict[Any, int] = {
            place.connection: n for n, place in enumerate(self._all) if place.busy
        }
        if not connections:
            time.sleep(seconds)
            return []
        outcomes = []
        self._end_stalled()
        for connection in wait(list(connections), seconds):
            slot = connections[connection]
            self._all[slot].heard = time.monotonic()
            message = self._receive(self._all[slot])
            if isinstance(message, Outcome):
                self._all[slot].busy = False
                outcomes.append((slot, message))
            elif message is not None:
                self._emit(replace(message, slot=slot))
        return outcomes

    def _end_stalled(self) -> None:
        for place in self._all:
            if self._stall and place.busy and time.monotonic() - place.heard > self._stall:
                place.stalled, place.heard = True, time.monotonic()
                place.process.kill()  # its end is then seen as any other

    def _receive(self, place: _Slot) -> Any:
        assert place.connection is not None
        try:
            return place.connection.recv()
        except (EOFError, OSError):
            place.process.join()
            code = place.process.exitcode
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            if place.stalled:
                how, place.stalled = f"a kill, as it said nothing for {self._stall} s", False
            place.connection.close()
            place.process = place.connection = None
            return Outcome(Kind.DIED, f"the process that rendered it ended with {how}")

    def stop(self) -> None:
        for place in self._all:
            self._send(place, "stop")

    def cancel(self, slot: int) -> None:
        self._send(self._all[slot], "cancel")

    def _send(self, place: _Slot, message: str) -> None:
        """Send from any thread; ``wait`` may close the connection meanwhile."""
        connection = place.connection
        if connection is not None:
            with suppress(OSError):
                connection.send(message)

    def close(self) -> None:
        for place in self._all:
            if place.connection is not None:
                with suppress(OSError):
                    place.connection.send("end")
                place.process.join(10)
                place.process.kill()
                place.connection.close()
                place.process = place.connection = None


def _serve(connection: Connection, out: str, device: str | None) -> None:
    """Run a worker process: tasks in, events and outcomes out."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent decides, and asks us to stop
    os.dup2(2, 1)  # the parent's stdout is for results alone
    stop, tasks = Stop(), SimpleQueue()  # type: ignore[var-annotated]

    def listen() -> None:
        ending = False
        while True:
            try:
                message = connection.recv()
            except (EOFError, OSError):
                os._exit(1)  # the parent is gone: nobody would see what we do
            if message in ("stop", "cancel"):
                ending = ending or message == "stop"
                stop.number = signal.SIGTERM
            else:
                stop.number = stop.number if ending else 0  # a cancelled task's, not the next one's
                tasks.put(message)
            if message == "end":
                return

    threading.Thread(target=listen, daemon=True).start()
    worker = Worker(Path(out), device, stop, connection.send, Path(out))
    with StandardStreams():
        while (task := tasks.get()) != "end":
            connection.send(worker.perform(task))
