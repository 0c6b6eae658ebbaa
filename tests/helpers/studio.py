"""The studio behind the page, with an engine that a test drives by hand."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from accel.pipelines.batch.events import Emit, Part, Step
from accel.pipelines.batch.output import Output
from accel.pipelines.batch.tasks import Kind, Outcome, Task
from accel.pipelines.ui.settings import Limits
from accel.pipelines.ui.studio import Studio

FORM = {"prompt": "a red circle", "model": "tiny (embedded)", "preset": "balanced", "frames": 5}
SIDECAR = {"peak_bytes": 2**30, "seconds": 1.0, "resumed_from_step": 0, "memory": [], "frames": 5}


class Manual:
    """An engine of one slot that answers when the test says so."""

    slots = 1

    def __init__(self, out: Path, emit: Emit) -> None:
        self.out, self.emit = out, emit
        self.tasks: list[Task] = []
        self.outcomes: list[Outcome] = []
        self.cancelled = self.stopped = self.busy = False

    def usable(self, slot: int) -> bool:
        return True

    def submit(self, slot: int, task: Task) -> None:
        self.tasks.append(task)
        self.busy = True

    def wait(self, seconds: float) -> list[tuple[int, Outcome]]:
        time.sleep(0.005)
        if not self.busy:
            return []
        if self.cancelled or self.stopped:
            self.cancelled = self.busy = False
            return [(0, Outcome(Kind.STOPPED))]
        now = [self.outcomes.pop(0)] if self.outcomes else []
        self.busy = not now
        return [(0, outcome) for outcome in now]

    def cancel(self, slot: int) -> None:
        self.cancelled = True

    def stop(self) -> None:
        self.stopped = True

    def close(self) -> None:
        pass

    def step(self, done: int, steps: int = 4) -> None:
        name = self.tasks[-1].name
        self.emit(Step(name, done, steps, Part.RENDER, slot=0))

    def finish(self, comparison: dict[str, Any] | None = None, **more: Any) -> None:
        """Write the video of the last task, as a worker does."""
        task = self.tasks[-1]
        frames = np.zeros((5, 16, 16, 3), np.uint8)
        sidecar = {**SIDECAR, "comparison": comparison, "report": None, **more}
        output = Output(self.out, task.name, task.job.format)
        sha256 = output.write(frames, task.job, task.id, sidecar)
        self.outcomes.append(Outcome(Kind.DONE, sha256=sha256, sidecar=sidecar))


class Two(Manual):
    """An engine of two devices, whose tasks end when they are cancelled."""

    slots = 2

    def __init__(self, out: Path, emit: Emit) -> None:
        super().__init__(out, emit)
        self.at: dict[int, str] = {}
        self.asked: list[int] = []

    def submit(self, slot: int, task: Task) -> None:
        assert slot not in self.at
        self.at[slot] = task.name
        super().submit(slot, task)

    def wait(self, seconds: float) -> list[tuple[int, Outcome]]:
        time.sleep(0.005)
        ended = list(self.at) if self.stopped else [slot for slot in self.asked if slot in self.at]
        for slot in ended:
            del self.at[slot]
        self.asked = []
        return [(slot, Outcome(Kind.STOPPED)) for slot in ended]

    def cancel(self, slot: int) -> None:
        self.asked.append(slot)


def until(condition: Callable[[], Any]) -> Any:
    for _ in range(4000):
        if found := condition():
            return found
        time.sleep(0.005)
    raise AssertionError("it did not happen")


@contextmanager
def studios_in(folder: Path) -> Iterator[Callable[..., tuple[Studio, Manual]]]:
    """Opens studios over ``folder``, each with the engine that a test drives."""
    studios: list[Studio] = []

    def open_one(**limits: int) -> tuple[Studio, Manual]:
        engines: list[Manual] = []

        def make(out: Path, emit: Emit) -> Manual:
            engines.append(Manual(out, emit))
            return engines[0]

        studio = Studio(folder, limits=Limits(**limits), make_engine=make)
        studios.append(studio)
        studio.start()
        return studio, engines[0]

    try:
        yield open_one
    finally:
        for studio in studios:
            studio.close()


def states(studio: Studio) -> dict[str, str]:
    return {entry.item.name: entry.state for entry in studio.queue.order()}


def submit(studio: Studio, *seeds: int, **more: Any) -> list[str]:
    return [studio.submit({**FORM, "seed": seed}, **more) for seed in seeds]
