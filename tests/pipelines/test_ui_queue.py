"""The live queue and the studio behind the page, with an engine that a test drives by hand."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.studio import FORM, Manual, Two, states, studios_in, submit, until

from accel.config import SlicingConfig
from accel.memory.fit import Needs
from accel.pipelines.batch.events import Emit, Preview
from accel.pipelines.batch.tasks import Kind, Outcome
from accel.pipelines.job import Job, JobError
from accel.pipelines.ui import forms, plan_tab, view
from accel.pipelines.ui.settings import PLANNED
from accel.pipelines.ui.studio import Studio
from accel.plans import Plan


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., tuple[Studio, Manual]]]:
    with studios_in(tmp_path / "out") as open_one:
        yield open_one


def test_from_form_to_gallery(opened: Any) -> None:
    studio, engine = opened()
    (name,) = submit(studio, 1)
    until(lambda: engine.tasks)
    assert engine.tasks[0].preview and not engine.tasks[0].compare
    engine.step(1)
    engine.step(2)
    engine.emit(Preview(name, b"picture"))
    shown = view.now(studio)
    assert "step 2 of 4" in shown and "left" in shown and "data:image/jpeg" in shown
    engine.finish()
    until(lambda: not studio.queue.entries)
    assert [video.name for video in studio.finished()] == [name]
    assert f'src="{view.file_url(studio, studio.out / f"{name}.mp4")}"' in view.latest(studio)
    with pytest.raises(JobError, match="in the queue or the gallery already"):
        submit(studio, 1)


def test_order_is_the_pages(opened: Any) -> None:
    studio, engine = opened()
    names = submit(studio, 1, 2, 3, 4)
    until(lambda: engine.tasks)
    studio.act("first", names[3])
    studio.act("up", names[2])
    assert list(states(studio)) == [names[0], names[3], names[2], names[1]]
    studio.act("remove", names[3])
    assert studio.act("remove", names[0]) == f"{names[0]} is running; stop it first"
    for expected in (names[0], names[2], names[1]):
        until(lambda expected=expected: engine.tasks[-1].name == expected)
        engine.finish()
    until(lambda: not studio.queue.entries)


def test_stop_keeps_the_job_and_go_on_takes_it_up(opened: Any) -> None:
    studio, engine = opened()
    first, second = submit(studio, 1, 2)
    until(lambda: engine.tasks)
    studio.act("stop", first)
    until(lambda: len(engine.tasks) == 2)
    assert states(studio) == {second: "running", first: "stopped"}
    studio.act("retry", first)
    assert states(studio)[first] == "waiting"
    engine.finish()
    until(lambda: len(engine.tasks) == 3)
    assert engine.tasks[-1].id == engine.tasks[0].id


def test_failures_are_told_and_retried(opened: Any) -> None:
    studio, engine = opened()
    (name,) = submit(studio, 1)
    for count in (1, 2):  # the queue tries once more by itself
        until(lambda count=count: len(engine.tasks) == count)
        engine.outcomes.append(Outcome(Kind.FAILED, "ValueError: <b>bad</b>"))
    until(lambda: states(studio) == {name: "failed"})
    assert "&lt;b&gt;bad&lt;/b&gt;" in view.queue(studio) and "<b>bad" not in view.queue(studio)
    studio.act("retry", name)
    until(lambda: len(engine.tasks) == 3)
    engine.outcomes.append(Outcome(Kind.INVALID, "width 63 is not a multiple of 16"))
    until(lambda: states(studio) == {name: "failed"})
    assert "not a multiple" in view.queue(studio)


def test_pause_and_full_disk(opened: Any) -> None:
    studio, engine = opened()
    studio.act("pause", "")
    (name,) = submit(studio, 1)
    time.sleep(0.05)
    assert not engine.tasks and "Paused" in view.now(studio)
    studio.act("pause", "")
    until(lambda: engine.tasks)
    engine.outcomes.append(Outcome(Kind.DISK, "OSError: No space left on device"))
    until(lambda: studio.queue.paused)
    assert "No space left" in view.now(studio) and states(studio) == {name: "waiting"}
    studio.act("pause", "")
    until(lambda: len(engine.tasks) == 2)


def test_reopening_goes_on(opened: Any, tmp_path: Path) -> None:
    studio, engine = opened()
    names = submit(studio, 1, 2, 3) + submit(studio, 4, compare=True)
    until(lambda: engine.tasks)
    studio.act("first", names[3])
    studio.act("stop", names[1])
    with pytest.raises(JobError, match="another page already works"):
        Studio(tmp_path / "out", make_engine=Manual)
    studio.close()
    studio, engine = opened()
    until(lambda: engine.tasks)
    expected = [names[0], names[3], names[2], names[1]]
    assert list(states(studio)) == expected
    assert list(states(studio).values()) == ["running", "waiting", "waiting", "stopped"]
    engine.finish()
    until(lambda: len(engine.tasks) == 2)
    assert engine.tasks[1].compare and engine.tasks[1].keep


def test_a_second_name_never_overwrites_the_first(opened: Any) -> None:
    studio, engine = opened()
    first = studio.submit({**FORM, "seed": 1, "name": "mine"})
    until(lambda: engine.tasks)
    engine.finish()
    until(lambda: not studio.queue.entries)
    second = studio.submit({**FORM, "seed": 2, "name": "mine"})
    assert first == "mine" and second.startswith("mine-")
    until(lambda: engine.tasks[-1].name == second)
    engine.finish({"psnr_db": 40.0, "reference": "its-reference"})
    until(lambda: not studio.queue.entries)
    assert studio.submit({**FORM, "seed": 4, "name": "its-reference"}).startswith("its-reference-")
    studio.act("delete", "mine")
    assert studio.find("mine") is None
    assert studio.submit({**FORM, "seed": 3, "name": "mine"}) == "mine"


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", "", "secret", "x/../secret"])
def test_names_from_the_browser_are_only_looked_up(opened: Any, tmp_path: Path, name: str) -> None:
    studio, _ = opened()
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(b"x")
    (tmp_path / "secret.json").write_text("{}")
    for what in ("delete", "remove", "stop", "retry", "up", "first", "unknown"):
        assert studio.act(what, name) == ""
    assert secret.exists() and (tmp_path / "secret.json").exists()


def test_waiting_jobs_are_limited(opened: Any) -> None:
    studio, _ = opened(waiting=2)
    submit(studio, 1, 2)
    with pytest.raises(JobError, match="2 jobs are waiting already"):
        submit(studio, 3)


def test_hostile_sidecars_are_left_out(opened: Any) -> None:
    studio, _ = opened()
    for number, text in enumerate(("[]", "{}", '{"id": "x", "video": {"sha256": "y"}, "job": 1}')):
        (studio.out / f"bad{number}.json").write_text(text)
        (studio.out / f"bad{number}.mp4").write_bytes(b"")
    assert studio.finished() == []


def test_measured_runs_are_filtered(opened: Any) -> None:
    studio, engine = opened()
    assert plan_tab.least(studio) == 30.0 and "Nothing is measured" in plan_tab.table(
        studio, 1.0, 30.0
    )
    for seed, db in ((1, 35.0), (2, 40.0)):
        (name,) = submit(studio, seed, compare=True)
        until(lambda seed=seed: len(engine.tasks) == seed)
        comparison = {"psnr_db": db, "ssim": 1.0, "reference_seconds": 2.0, "speedup": 2.0}
        engine.finish(comparison, environment={"device": "cuda"})
        until(lambda: not studio.queue.entries)
    assert plan_tab.least(studio) == 35.0
    assert "2 of 2 measured runs fit" in plan_tab.table(studio, 1.0, 30.0)
    shown = plan_tab.table(studio, 1.0, 36.0)
    assert "1 of 2" in shown and f"<b>{name}</b>" in shown
    assert "None of the 2" in plan_tab.table(studio, 0.5, 30.0)


def test_predictions_learn_from_runs_of_the_page(opened: Any) -> None:
    studio, engine = opened()
    job = Job("another", frames=9).resolved()
    fast, balanced, none = plan_tab.choices(studio, job)
    assert (fast.preset, balanced.preset, none.preset) == ("fast", "balanced", None)
    assert fast.db is None and none.db == np.inf and none.seconds is None
    for seed, db in ((1, 40.0), (2, 42.0)):
        submit(studio, seed, compare=True)
        until(lambda seed=seed: len(engine.tasks) == seed)
        engine.finish({"psnr_db": db, "ssim": 1.0, "reference_seconds": 2.0, "speedup": 2.0})
        until(lambda: not studio.queue.entries)
    fast, balanced, none = plan_tab.choices(studio, job)
    assert balanced.runs == 2 and balanced.db is not None and balanced.db < 40.0
    assert fast.db is None and none.seconds == pytest.approx(2.0 * 9 / 5)
    needs = Needs({1: 2**20, 16: 2**19}, {"whole": 2**20, "strips": 2**19})
    assert plan_tab.top(studio, needs) == 0.002  # what a CPU's process holds is not the plan's
    assert plan_tab.predict(studio, job, needs, 0.002, 20.0).slices == 1
    assert "measured runs fit" in plan_tab.table(studio, 0.0, 30.0)


def test_a_planned_job_keeps_its_plan(opened: Any) -> None:
    studio, engine = opened()
    plan = replace(
        Plan.preset("balanced"), name="balanced, 16 slices", slicing=SlicingConfig(16, 1)
    )
    values = forms.to_form(Job("x", seed=1), studio.models)
    values["preset"] = PLANNED
    with pytest.raises(JobError, match="no plan is taken over yet"):
        forms.from_form(studio, values, False, None, None)
    studio.submit(forms.from_form(studio, values, False, None, plan.to_dict()), compare=True)
    until(lambda: engine.tasks)
    job = engine.tasks[0].job
    assert job.accel_plan() == plan and job.preset is None
    assert "balanced, 16 slices" in view.queue(studio)
    assert forms.to_form(job, studio.models)["preset"] == PLANNED
    assert forms.job_of(values, studio).frames == 17


def test_sizes_that_cannot_be_never_enter_the_queue(opened: Any) -> None:
    studio, _ = opened()
    with pytest.raises(JobError, match="got 63; the nearest is 64"):
        studio.submit({**FORM, "seed": 1, "width": 63})
    assert not studio.queue.entries


def test_prompts_and_names_are_escaped(opened: Any) -> None:
    studio, engine = opened()
    bad = '<script>alert(1)</script>"onerror=alert(2) ${alert(3)} {{value}}'
    studio.submit({**FORM, "seed": 1, "prompt": bad, "name": bad[:60]})
    until(lambda: engine.tasks)
    pages = [view.now(studio), view.queue(studio)]
    engine.finish()
    until(lambda: not studio.queue.entries)
    for page in (*pages, view.gallery(studio), view.latest(studio)):
        assert "<script" not in page and '"onerror' not in page
    assert Job(bad).file_name.isascii() and "/" not in Job(bad).file_name


def test_every_device_renders_and_a_stop_reaches_the_right_one(tmp_path: Path) -> None:
    engines: list[Two] = []

    def make(out: Path, emit: Emit) -> Two:
        engines.append(Two(out, emit))
        return engines[0]

    studio = Studio(tmp_path / "out", make_engine=make)
    studio.start()
    try:
        first, second, third = submit(studio, 1, 2, 3)
        until(lambda: len(engines[0].at) == 2)
        assert engines[0].at == {0: first, 1: second}
        shown = view.now(studio)
        assert shown.count("<progress") == 2 and first in shown and second in shown
        studio.act("stop", second)
        until(lambda: engines[0].at == {0: first, 1: third})
        assert states(studio) == {first: "running", third: "running", second: "stopped"}
    finally:
        studio.close()
