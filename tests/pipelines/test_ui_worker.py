"""What the page asks of workers, with the embedded model: previews, kept references, cancelling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accel.pipelines.batch.engines import LocalEngine
from accel.pipelines.batch.identity import job_id
from accel.pipelines.batch.output import Output, prepare_folder, read_sidecar
from accel.pipelines.batch.worker import Outcome, Task, Worker
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
    events: list[dict[str, Any]] = []
    worker = Worker(out, None, lambda: False, events.append, out)
    outcome = worker.perform(task("x", 3, rung=2, compare=True, preview=True, keep=True))
    assert outcome.kind == "done", outcome.traceback
    pictures = [e["jpeg"] for e in events if e["event"] == "preview"]
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
        assert "measured on the frames" in compare.players(found)
        shown = compare.report(found)
        assert shown.count("GiB") == 4 and "from step 0: int8" in shown
        files = compare.pair(studio, "x-reference", "x")
        assert not files.exact and np.isclose(files.db, found.db, atol=12)
    finally:
        studio.close()


def test_a_cancelled_task_leaves_the_next_alone(out: Path) -> None:
    steps: list[str] = []
    engine = LocalEngine(out, lambda event: steps.append(event["job"]))

    def outcome() -> Outcome:
        while not (found := engine.wait(0.5)):
            if steps and steps[-1] == "long":
                engine.cancel(0)
        return found[0][1]

    try:
        engine.submit(0, task("long", 150))
        assert outcome().kind == "stopped"
        assert Output(out, "long", "mp4").steps.is_file()  # what was done is kept
        engine.submit(0, task("next", 2))
        done = outcome()
        assert done.kind == "done", done.traceback
        engine.stop()
        engine.submit(0, task("last", 2))
        assert outcome().kind == "stopped"  # stop is for good
    finally:
        engine.close()
