"""What the page asks of workers, with the embedded model: previews, kept references, cancelling."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accel.pipelines.batch.engines import InlineEngine, LocalEngine, Stop
from accel.pipelines.batch.events import Event, Note, Preview, Step
from accel.pipelines.batch.identity import job_id
from accel.pipelines.batch.output import Output, prepare_folder
from accel.pipelines.batch.sidecar import read_sidecar
from accel.pipelines.batch.tasks import Kind, Outcome, Task
from accel.pipelines.batch.worker import Worker
from accel.pipelines.job import Job
from accel.pipelines.load import tiny_folder
from accel.pipelines.ui import compare
from accel.pipelines.ui.studio import Studio
from accel.pipelines.video import read_video

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (tiny_folder() / "model_index.json").is_file(), reason="samples/tiny-wan is missing"
    ),
]


def task(name: str, steps: int, **options: Any) -> Task:
    job = Job("a red circle", name=name, steps=steps, frames=5, width=64, height=64, fps=8.0)
    job = job.resolved()
    return Task(name, job_id(job), job, **options)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    prepare_folder(tmp_path)
    return tmp_path


def test_previews_and_reference_are_kept(out: Path) -> None:
    told: list[Event] = []
    worker = Worker(out, None, lambda: False, told.append, out)
    outcome = worker.perform(task("x", 3, rung=2, compare=True, preview=True, keep=True))
    assert outcome.kind == Kind.DONE, outcome.traceback
    pictures = [event.jpeg for event in told if isinstance(event, Preview)]
    assert pictures and all(p.startswith(b"\xff\xd8") for p in pictures)
    measured, reference = read_sidecar(out / "x.json"), read_sidecar(out / "x-reference.json")
    assert measured is not None and reference is not None
    assert reference["job"]["preset"] is None and reference["job"]["seed"] == 0
    for sidecar in (measured, reference):
        assert sidecar["memory"] == ["more slices", "VAE slicing"]
        assert set(sidecar["phase_peak_bytes"]) == {"denoise", "decode"}
        assert sidecar["peak_bytes"] == max(sidecar["phase_peak_bytes"].values()) > 2**20
    numbers = measured["comparison"]["psnr_frames"]
    assert len(numbers) == 5 and min(numbers) <= measured["comparison"]["psnr_db"] <= max(numbers)
    assert read_video(out / "differences" / "x.mp4").shape == (5, 64, 64, 3)
    assert not Output(out, "x-reference", "mp4").why_not_done(reference["id"])
    studio = Studio(out)
    try:
        found = compare.pair(studio, "x", compare.OWN)
        assert found.exact and found.frames == numbers and found.second.name == "x-reference"
        assert "measured on the frames" in compare.players(studio, found)
        shown = compare.report(found)
        assert shown.count("GiB") == 4 and "from step 0: int8" in shown
        files = compare.pair(studio, "x-reference", "x")
        assert not files.exact and np.isclose(files.db, found.db, atol=12)
    finally:
        studio.close()


def test_a_prompt_that_was_cut_is_told_at_once_and_kept(out: Path) -> None:
    told: list[Event] = []
    long = task("x", 2, compare=True)
    long = replace(long, job=replace(long.job, prompt="a red circle " * 20 + "and a square"))
    engine = LocalEngine(out, told.append)
    try:
        engine.submit(0, long)
        while not (found := engine.wait(0.5)):
            pass
    finally:
        engine.close()
    ((_, outcome),) = found
    assert outcome.kind == Kind.DONE, outcome.traceback
    (note,) = [event for event in told if isinstance(event, Note)]
    assert note.job == "x" and note.slot == 0 and "and a square" in note.text
    first = next(k for k, event in enumerate(told) if isinstance(event, Step))
    assert told.index(note) < first
    (kept,) = read_sidecar(out / "x.json")["prompt_cut"]
    assert note.text == f"x: {kept}" and outcome.sidecar["prompt_cut"] == [kept]


@pytest.mark.proof
def test_a_cancelled_task_leaves_the_next_alone(out: Path) -> None:
    steps: list[str] = []

    def tell(event: Event) -> None:
        assert isinstance(event, Step) and event.slot == 0
        steps.append(event.job)

    engine = LocalEngine(out, tell)

    def outcome() -> Outcome:
        while not (found := engine.wait(0.5)):
            if steps and steps[-1] == "long":
                engine.cancel(0)
        return found[0][1]

    try:
        engine.submit(0, task("long", 150))
        assert outcome().kind == Kind.STOPPED
        assert Output(out, "long", "mp4").steps.is_file()  # what was done is kept
        engine.submit(0, task("next", 2))
        done = outcome()
        assert done.kind == Kind.DONE, done.traceback
        engine.stop()
        engine.submit(0, task("last", 2))
        assert outcome().kind == Kind.STOPPED  # stop is for good
    finally:
        engine.close()


def test_a_task_of_this_process_is_cancelled_too(out: Path) -> None:
    steps: list[str] = []

    def tell(event: Event) -> None:
        assert isinstance(event, Step)
        steps.append(event.job)
        if event.job == "long":
            engine.cancel(0)

    engine = InlineEngine(out, Stop(), tell)
    engine.submit(0, task("long", 50))
    assert engine.wait(0.5)[0][1].kind == Kind.STOPPED and steps == ["long"]
    engine.submit(0, task("next", 2))
    assert engine.wait(0.5)[0][1].kind == Kind.DONE
