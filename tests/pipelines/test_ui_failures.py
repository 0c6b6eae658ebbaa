"""What failed stays in sight, and one odd file or entry ends nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.studio import FORM, Manual, Two, states, studios_in, submit, until

from accel.pipelines.batch.events import Note
from accel.pipelines.batch.manifest import manifest_path
from accel.pipelines.batch.output import Output
from accel.pipelines.batch.tasks import Kind, Outcome
from accel.pipelines.job import Job, JobError, _plan_file
from accel.pipelines.ui import compare, forms, plan_tab, view
from accel.pipelines.ui.studio import Studio
from accel.plans import Plan


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., tuple[Studio, Manual]]]:
    with studios_in(tmp_path / "out") as open_one:
        yield open_one


def render(studio: Studio, engine: Manual, seed: int, **more: Any) -> str:
    (name,) = submit(studio, seed)
    until(lambda: engine.busy and engine.tasks[-1].name == name)
    engine.finish(**more)
    until(lambda: not engine.busy and name not in studio.queue.entries)
    return name


def fail(studio: Studio, engine: Manual, seed: int, why: str) -> str:
    (name,) = submit(studio, seed)
    until(lambda: engine.busy and engine.tasks[-1].name == name)
    engine.outcomes.append(Outcome(Kind.INVALID, why))
    until(lambda: states(studio).get(name) == "failed")
    return name


# ----------------------------------------------------------------------------------------- failures


def test_a_failure_stays_beside_the_older_video_until_a_job_starts(opened: Any) -> None:
    studio, engine = opened()
    old = render(studio, engine, 1)
    assert "Nothing is running" in view.now(studio)
    bad = fail(studio, engine, 2, "the <size> of tensor a must match")
    shown = view.now(studio)
    assert f"{bad} failed:" in shown and "the &lt;size&gt; of tensor a must match" in shown
    assert f"The video below, {old}, is an older one." in shown and 'role="alert"' in shown
    assert "Nothing is running" not in shown
    (name,) = submit(studio, 3)
    until(lambda: engine.busy)
    shown = view.now(studio)
    assert "of tensor a" not in shown and "1 failed; see the tab Queue" in shown
    engine.finish()
    until(lambda: name not in studio.queue.entries)


def test_a_failure_is_dismissed_and_stays_in_the_list(opened: Any) -> None:
    studio, engine = opened()
    bad = fail(studio, engine, 1, "no such thing")
    assert "The video below" not in view.now(studio)  # there is none
    before = studio.version()
    studio.act("dismiss", bad)
    assert studio.version() != before
    assert "no such thing" not in view.now(studio) and "no such thing" in view.queue(studio)
    studio.act("dismiss", "unknown")
    studio.act("retry", bad)
    until(lambda: engine.busy)
    assert "failed" not in view.now(studio)


def test_jobs_that_waited_before_it_hide_no_failure(opened: Any) -> None:
    studio, engine = opened()
    first, second = submit(studio, 1, 2)
    until(lambda: engine.busy)
    engine.outcomes.append(Outcome(Kind.INVALID, "the first is odd"))
    until(lambda: engine.busy and engine.tasks[-1].name == second)
    shown = view.now(studio)
    assert f"{first} failed:" in shown and "the first is odd" in shown
    assert 'role="alert"' not in shown  # else it is read out at every step
    engine.finish()
    until(lambda: second not in studio.queue.entries)
    shown = view.now(studio)
    assert "the first is odd" in shown and f"The video below, {second}, is another job" in shown


def test_many_failures_are_counted(opened: Any) -> None:
    studio, engine = opened()
    names = [fail(studio, engine, seed, f"reason {seed}") for seed in range(2)]
    (last,) = submit(studio, 9)
    until(lambda: engine.busy and engine.tasks[-1].name == last)
    names += submit(studio, 10, 11, 12, 13)
    for _ in range(5):
        until(lambda: engine.busy and not engine.outcomes)
        engine.outcomes.append(Outcome(Kind.INVALID, "like reason"))
    until(lambda: set(states(studio).values()) == {"failed"} and len(states(studio)) == 7)
    shown = view.now(studio)
    assert shown.count("like reason") == 3 and "4 more failed" in shown


def test_a_queue_that_ends_says_so(opened: Any) -> None:
    studio, engine = opened()

    def broken(slot: int, task: Any) -> None:
        raise OSError("every machine is gone")

    engine.submit = broken
    submit(studio, 1)
    until(lambda: "every machine is gone" in view.now(studio))
    studio.act("pause", "")
    assert "start it again" in view.now(studio)


def test_a_damaged_manifest_is_told(opened: Any, tmp_path: Path) -> None:
    path = tmp_path / "out" / ".accel" / "manifest-ui.sqlite"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no database" * 1000)
    studio, _ = opened()
    assert "the manifest was damaged" in view.now(studio)
    assert manifest_path(studio.out).name == "manifest.sqlite"


def test_what_was_cut_off_a_prompt_is_shown_while_it_runs_and_after(opened: Any) -> None:
    studio, engine = opened()
    (name,) = submit(studio, 1)
    until(lambda: engine.busy)
    engine.emit(Note(f"{name}: 3 of 9 tokens were <cut>", job=name, slot=0))
    engine.emit(Note("about nobody", job="unknown"))
    assert "3 of 9 tokens were &lt;cut&gt;" in view.now(studio)
    engine.finish(prompt_cut=["3 of 9 tokens were <cut>"])
    until(lambda: name not in studio.queue.entries)
    for shown in (view.gallery(studio), view.latest(studio)):
        assert "3 of 9 tokens were &lt;cut&gt;" in shown


def test_a_job_that_another_process_renders_says_so(opened: Any) -> None:
    studio, engine = opened()
    (name,) = submit(studio, 1)
    until(lambda: engine.busy)
    engine.outcomes.append(Outcome(Kind.BUSY))
    until(lambda: "another process renders it" in view.queue(studio))
    until(lambda: engine.busy)  # it looks again
    engine.outcomes.append(Outcome(Kind.FOUND))
    until(lambda: name not in studio.queue.entries)


def test_a_job_that_cannot_be_taken_over_is_told(opened: Any, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    Plan.preset("fast").save(plan)
    studio, _ = opened()
    studio.act("pause", "")
    (other,) = submit(studio, 1)
    with studio.queue.lock:
        name = studio.queue.add(Job("x", plan=str(plan), preset=None)).item.name
    studio.close()
    plan.unlink()
    _plan_file.cache_clear()  # another process has not read it
    studio, _ = opened()
    shown = view.now(studio)
    assert f"{name} was not taken over from the last time" in shown and "plan.json" in shown
    assert set(states(studio)) == {other}


# --------------------------------------------------------------------------------------- odd files

VIDEO = {"sha256": "0", "file": "x.mp4"}
WHOLE: dict[str, Any] = {"id": "1", "video": VIDEO, "frames": 5, "job": {"prompt": "x"}}
HUGE = 10**400
ODD: dict[str, Any] = {
    "no json": "{", "no text": b"\xff\xfe\x00\x01\x02", "empty": "", "deep": "[" * 100_000,
    "list": [], "null": None, "number": 7, "job 1": {**WHOLE, "job": 1},
    "job of lists": {**WHOLE, "job": {"prompt": ["x"]}},
    "huge prompt number": {**WHOLE, "job": {"prompt": "x", "guidance": HUGE}},
    "surrogate": {**WHOLE, "job": {"prompt": "\ud800"}},
    "format": {**WHOLE, "job": {"prompt": "x", "format": ["mp4"]}},
    "id": {**WHOLE, "id": 7}, "no id": {"job": {"prompt": "x"}, "video": VIDEO},
    "seconds": {**WHOLE, "seconds": "fast"}, "frames": {**WHOLE, "frames": None},
    "psnr": {**WHOLE, "comparison": {"psnr_db": "good"}},
    "comparison": {**WHOLE, "comparison": [1]}, "phases": {**WHOLE, "phase_peak_bytes": [1, 2]},
    "cut": {**WHOLE, "prompt_cut": "x"}, "cuts": {**WHOLE, "prompt_cut": [1]},
    "plan file": {**WHOLE, "job": {"prompt": "x", "plan": "/nowhere/plan.json"}},
}  # fmt: skip
STRANGE: dict[str, Any] = {  # readable, with values that no run has
    "huge": {**WHOLE, "seconds": HUGE, "peak_bytes": HUGE, "frames": HUGE,
             "phase_peak_bytes": {"all": HUGE}},
    "negative": {**WHOLE, "seconds": -1, "peak_bytes": -5},
    "no number": {**WHOLE, "seconds": None, "peak_bytes": None, "comparison": {}},
    "equal": {**WHOLE, "seconds": 1.0, "peak_bytes": 2**30,
              "comparison": {"psnr_db": None, "reference": "fine", "psnr_frames": []}},
    "endless": {**WHOLE, "seconds": 1.0, "peak_bytes": 2**30,
                "comparison": {"psnr_db": HUGE, "reference": "fine", "psnr_frames": [HUGE, 3.0]}},
    "odd report": {**WHOLE, "seconds": 1.0, "peak_bytes": 2**30, "report": {"sites": [1, "x"]},
                   "comparison": {"psnr_db": 30.0, "reference": "fine", "psnr_frames": [30.0]}},
    "nan": {**WHOLE, "seconds": float("nan"), "peak_bytes": float("inf"),
            "comparison": {"psnr_db": float("-inf"), "speedup": float("nan")}},
    'odd "name" #1? 100%': WHOLE, "ütf ☃": WHOLE, "a'b\nc": WHOLE, "-": WHOLE,
}  # fmt: skip


def put(out: Path, name: str, content: Any) -> None:
    file = out / f"{name}.json"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    (out / f"{name}.mp4").write_bytes(b"a video")


def every_tab(studio: Studio) -> str:
    """All that the page makes of the output folder."""
    for name in compare.choices(studio):
        for other in (compare.OWN, "fine", name):
            try:
                found = compare.pair(studio, name, other)
            except JobError:
                continue
            assert compare.players(studio, found) and compare.report(found)
    forms.exported(studio, "gallery")
    assert plan_tab.least(studio) and plan_tab.table(studio, 1.0, 0.0)
    assert plan_tab.choices(studio, Job("x", frames=5).resolved())
    pages = (view.now, view.queue, view.latest, view.gallery)
    shown = "".join(page(studio) for page in pages)
    assert shown.encode()
    return shown


@pytest.mark.slow
def test_odd_files_end_no_tab(opened: Any, capsys: pytest.CaptureFixture[str]) -> None:
    studio, engine = opened()
    good = render(studio, engine, 1)
    for name, content in ODD.items():
        put(studio.out, name, content)
    for name, content in STRANGE.items():
        put(studio.out, name, content)
    (studio.out / "fine.json").write_text(json.dumps(WHOLE))
    Output(studio.out, "fine", "mp4").video.write_bytes(b"a video")
    (studio.out / "folder.json").mkdir()
    (studio.out / "loop.json").symlink_to("loop.json")
    (studio.out / "dangling.json").symlink_to("nowhere")
    os.mkfifo(studio.out / "pipe.json")
    (studio.out / "lonely.json").write_text(json.dumps(WHOLE))
    (studio.out / "folder instead.json").write_text(json.dumps(WHOLE))
    (studio.out / "folder instead.mp4").mkdir()
    (Path(os.fsdecode(os.fsencode(studio.out) + b"/bad\xff.json"))).write_text(json.dumps(WHOLE))
    shown = every_tab(studio)
    names = {video.name for video in studio.finished()}
    assert names == {good, "fine", *STRANGE}
    for name in [*ODD, "folder", "loop", "dangling", "pipe", "lonely", "folder instead"]:
        assert f"{name}.json is left out: " in "\n".join(studio.left_out), name
    assert f"{len(studio.left_out)} files are left out" in shown
    assert len(studio.left_out) == len(ODD) + 7
    every_tab(studio)
    told = [line for line in capsys.readouterr().err.splitlines() if "is left out" in line]
    assert len(told) == len(set(told)) == len(studio.left_out)  # each once


@pytest.mark.slow
def test_a_video_that_goes_away_ends_no_tab(opened: Any) -> None:
    studio, engine = opened()
    first, second = render(studio, engine, 1), render(studio, engine, 2)
    every_tab(studio)
    (studio.out / f"{first}.mp4").unlink()
    assert [video.name for video in studio.finished()] == [second]
    assert first not in view.latest(studio) and "is missing" in view.gallery(studio)
    (studio.out / f"{second}.json").write_text("{")
    assert "No videos yet" in view.gallery(studio) and "will appear here" in view.latest(studio)


def test_one_thing_that_cannot_be_drawn_ends_no_list() -> None:
    def draw(thing: int) -> str:
        return f"<i>{1 // thing}</i>"

    drawn = view.each([1, 0, -1], draw, lambda thing: f"<{thing}>", "<li>{}</li>")
    assert drawn[0] == "<i>1</i>" and drawn[2] == "<i>-1</i>"
    assert drawn[1].startswith("<li><p") and "&lt;0&gt; cannot be shown: ZeroDiv" in drawn[1]


@pytest.mark.parametrize("state", ["[]", "{", '{"order": 5, "compare": {"a": 1}}', "[" * 100_000,
                                   '{"order": [1, null, "x"], "compare": ["y", []]}'])  # fmt: skip
def test_an_odd_state_of_the_queue_stops_no_start(opened: Any, tmp_path: Path, state: str) -> None:
    folder = tmp_path / "out" / ".accel" / "ui"
    folder.mkdir(parents=True)
    (folder / "queue.json").write_text(state)
    (folder / "presets.json").write_text(state)
    studio, _ = opened()
    assert studio.presets.all() == {} and not studio.queue.entries


@pytest.mark.parametrize("text", ["\ud800", "a \udfff b", "\udcff"])
def test_half_a_character_never_enters_the_queue(opened: Any, text: str) -> None:
    studio, _ = opened()
    for key in ("prompt", "negative_prompt", "name"):
        with pytest.raises(JobError, match=key):
            studio.submit({**FORM, "seed": 1, key: text})
    every = studio.submit({**FORM, "seed": 1, "prompt": "\U0001f600 whole"})
    assert every in view.queue(studio)


# ----------------------------------------------------------------------------------- other formats


@pytest.mark.slow
@pytest.mark.parametrize("format", ["png", "gif", "webm"])
def test_every_format_is_in_gallery_and_comparison(opened: Any, format: str) -> None:
    studio, engine = opened()
    names = []
    for seed in (1, 2):
        name = studio.submit({**FORM, "seed": seed, "format": format})
        until(lambda name=name: engine.busy and engine.tasks[-1].name == name)
        engine.finish()
        until(lambda name=name: name not in studio.queue.entries)
        names.append(name)
    for seed, name in enumerate(names):
        frames = np.random.default_rng(seed).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
        output = Output(studio.out, name, format)
        found = studio.find(name)
        output.write(frames, found.job, found.sidecar["id"], {"frames": 5})
    shown = every_tab(studio)
    assert names[0] in shown and not studio.left_out
    found = compare.pair(studio, *names)
    assert len(found.frames) == 5 and 0 < found.db < 30
    for path in (*found.shown, found.apart):
        assert path.suffix in (".mp4", ".webm") and path.is_file()
        assert view.file_url(studio, path).split("?")[0] in compare.players(studio, found)
    if format == "png":
        first = studio.out / names[0] / "00000.png"
        assert f'<img src="{view.file_url(studio, first)}"' in view.gallery(studio)
        assert "First of 5 frames" in view.gallery(studio)
    studio.act("delete", names[1])
    assert not output.video.exists() and studio.find(names[1]) is None


def test_a_stop_leaves_other_failures_alone(tmp_path: Path) -> None:
    engines: list[Two] = []

    def make(out: Path, emit: Any) -> Two:
        engines.append(Two(out, emit))
        return engines[0]

    studio = Studio(tmp_path / "out", make_engine=make)
    studio.start()
    try:
        first, second = submit(studio, 1, 2)
        until(lambda: len(engines[0].at) == 2)
        studio.act("stop", first)
        until(lambda: states(studio) == {second: "running", first: "stopped"})
        assert "failed" not in view.now(studio)
    finally:
        studio.close()
