"""The page without a browser: values go in and come out by name, never by position."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from accel.pipelines.job import Job, JobError
from accel.pipelines.job_settings import settings_text
from accel.pipelines.load import TINY
from accel.pipelines.ui import drawing, forms
from accel.pipelines.ui.settings import Models, job_from_form
from accel.pipelines.ui.studio import Studio
from accel.pipelines.ui.uploads import first_frame
from accel.pipelines.video import SUFFIX, files_of, read_video, write_video

gradio = pytest.importorskip(
    "gradio", reason="gradio is not installed (pip install 'gradio>=6.31')"
)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Any]:
    from accel.pipelines.ui.page import Page

    studio = Studio(tmp_path / "out", Models({"tiny (embedded)": TINY, "other": "someone/other"}))
    yield Page(studio)
    studio.close()


def test_every_handler_gets_its_values_by_name(page: Any) -> None:
    handlers = [fn for fn in page.blocks.fns.values() if fn.fn is not None]
    assert len(handlers) > 50
    for handler in handlers:
        assert len(handler.input_keyword_names) == len(handler.inputs), handler.api_name


def test_a_form_holds_what_a_job_is_made_of(page: Any) -> None:
    assert set(page.parts.generate.form) == set(forms.FIELDS)
    assert set(page.parts.motion.camera) == set(drawing.CAMERA)


def test_a_job_fills_the_widgets_that_are_said_to_be_filled(page: Any) -> None:
    motion = {"camera": {"pan": [1.0, 0.0], "orbit": [0.0, 2.0]}}
    job = Job("x", seed=7, steps=9, motion=motion, strength=0.3, name="mine")
    page.studio.presets.save("one", job)
    filled = page.on.use_preset(saved="one")
    assert len(page.on.filled()) == len(filled) and all(w in filled for w in page.on.filled())
    tab, camera = page.parts.generate, page.parts.motion.camera
    form = {name: filled[widget] for name, widget in tab.form.items()}
    assert (form["prompt"], form["seed"], form["steps"], form["name"]) == ("x", 7, 9, "")
    moved = {name: filled[widget] for name, widget in camera.items()}
    assert moved == {**drawing.STILL, "pan_x": 1.0, "orbit_y": 2.0}
    assert filled[tab.moved] is True and filled[page.parts.motion.strength] == 0.3


def test_nothing_that_is_given_is_left_out_or_overtaken(page: Any) -> None:
    once = {"click", "focus", "tick", "load", "expand"}  # pressed again, or asked again by itself
    seen = 0
    for handler in page.blocks.fns.values():
        events = {event for _, event in handler.targets} - once
        prompt = (page.parts.generate.form["prompt"]._id, "submit")  # as a click on Generate
        if not events or handler.targets == [prompt]:
            continue
        seen += 1
        assert handler.queue and handler.trigger_mode != "once", (handler.fn, events)
    assert seen > 25


def test_another_model_brings_its_sizes_and_the_same_one_nothing(page: Any) -> None:
    tab = page.parts.generate
    changes = page.on.suit(model="other", suited="tiny (embedded)")
    assert changes.pop(tab.suited) == "other"
    assert changes.pop(tab.form["fps"]) == 16.0
    assert changes == {tab.form[key]: None for key in forms.SIZES if key != "fps"}
    assert page.on.suit(model="other", suited="other") == gradio.skip()


def test_a_button_on_a_card_changes_what_it_is_about(page: Any) -> None:
    queue = page.parts.queue
    more = page.on.act_gallery(SimpleNamespace(act="more", name=""), count=24)
    assert set(more) == {queue.count, queue.gallery} and more[queue.count] == 48
    assert page.on.act_gallery(SimpleNamespace(act="reuse", name="x"), count=24) == gradio.skip()
    news = page.on.poll(seen=page.studio.version(), count=24)
    assert set(news) == {page.parts.kept.seen}


PANNED = {"version": 2, "camera": {"pan": [1.0, 0.0]}}


def test_a_dropped_video_gives_all_its_settings_back(page: Any, tmp_path: Path) -> None:
    jobs = (
        Job("one", seed=7, fps=12.5, format="webm", guidance=0.5, negative_prompt="no"),
        Job("two", fps=24.0, format="png", preset=None, steps=3),
        Job("three", fps=30.0, format="gif", motion=PANNED, strength=0.7),
        Job("four", format="lossless", frames=5),
    )
    for number, job in enumerate(jobs):
        job = job.resolved()
        video = tmp_path / f"{number}{SUFFIX[job.format]}"
        frames = np.zeros((2, 16, 16, 3), np.uint8)
        write_video(video, frames, fps=8, comment=settings_text(job), format=job.format)
        filled = page.on.take_settings(path=str(files_of(video)[0]))
        form = {name: filled[widget] for name, widget in page.parts.generate.form.items()}
        moved, drawn = filled[page.parts.generate.moved], filled[page.parts.kept.drawn]
        values = forms.from_form(page.studio, form, moved, drawn, None)
        again = job_from_form(values, page.studio.models, page.studio.limits)
        expected = job if job.motion else replace(job, strength=again.strength)
        assert again == expected


def test_settings_come_back_where_the_video_cannot_be_read(
    page: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(gradio, "Warning", told.append)
    job = Job("x", seed=7)
    sidecar = {"id": "1", "video": {"sha256": "0"}, "job": job.to_dict()}
    for name, content in (("junk", b"junk" * 99), ("empty", b""), ("half", b"\0\0\0\x18ftypmp42")):
        (page.studio.out / f"{name}.json").write_text(json.dumps(sidecar))
        (page.studio.out / f"{name}.mp4").write_bytes(content)
        filled = page.on.act_gallery(SimpleNamespace(act="reuse", name=name), count=24)
        assert filled[page.parts.generate.form["seed"]] == 7
        assert f"{name}.mp4 cannot be read as a video" in told.pop() and not told
        with pytest.raises(gradio.Error, match="cannot be read as a video"):
            page.motion.show_behind(
                behind=name, **{k: filled[w] for k, w in page.parts.generate.form.items()}
            )


@pytest.mark.slow
def test_a_reused_driving_video_stays_when_its_frames_change(page: Any, tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    rng = np.random.default_rng(0)
    wide = rng.integers(0, 256, (64, 80, 3), dtype=np.uint8)
    write_video(tmp_path / "d.mp4", np.stack([wide[:, k : k + 64] for k in range(9)]), fps=8)
    given = {"file": str(tmp_path / "d.mp4"), "first": 1, "last": 7, "cuts": "fresh"}
    motion, kept = page.parts.motion, page.parts.kept
    filled = page.on.into_form(Job("x", motion={"video": given}))
    assert filled[motion.driving] == given == filled[kept.drawn]["motion"]["video"]
    cut = {key: filled[motion.video[key]] for key in ("start", "end", "cuts")}
    rest = {"sketch": None, "strength": 0.1, **drawing.STILL}
    rest |= {name: filled[widget] for name, widget in page.parts.generate.form.items()}
    same = page.motion.cut_driving(driving=given, **cut, **rest)
    assert same == gradio.skip() == page.motion.cut_driving(driving=None, **cut, **rest)
    other = page.motion.cut_driving(driving=given, **{**cut, "end": None}, **rest)
    assert other[motion.driving] == {k: v for k, v in given.items() if k != "last"}
    assert other[kept.drawn]["motion"]["video"] == other[motion.driving]
    bad = page.motion.cut_driving(driving=given, **{**cut, "end": 0}, **rest)
    assert bad[kept.drawn] is None and bad[page.parts.generate.moved] is False
    assert "motion video last must be a whole number from 2" in bad[motion.flow]


# -------------------------------------------------------------------------------------- uploads


@pytest.mark.slow
def test_uploads_are_kept_by_their_content(page: Any, tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    for name in ("a.mp4", "b.webm", "c.gif", "d.mkv"):
        write_video(tmp_path / name, frames, fps=8)
        kept = page.studio.keep_driving([tmp_path / name])
        assert kept.suffix == Path(name).suffix and read_video(kept).shape == frames.shape
        assert page.studio.keep_driving([tmp_path / name]) == kept
        assert first_frame(kept).shape == (16, 16, 3)
    folder = tmp_path / "frames"
    write_video(folder, frames, fps=8, format="png")
    pictures = [file.rename(folder / f"{int(file.stem)}.png") for file in folder.iterdir()]
    kept = page.studio.keep_driving(pictures)  # 10.png comes after 9.png
    assert np.array_equal(read_video(kept), frames) and np.array_equal(first_frame(kept), frames[0])


def test_what_is_no_driving_video_is_refused(page: Any, tmp_path: Path) -> None:
    def file(name: str, content: bytes = b"junk" * 99) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    small, large = (np.zeros((1, size, 16, 3), np.uint8) for size in (16, 32))
    for name, frames in (("s.png", small), ("l.png", large)):
        write_video(tmp_path / "f", frames, fps=8, format="png")
        (tmp_path / "f" / "00000.png").rename(tmp_path / name)
        (tmp_path / "f").rmdir()
    good = [tmp_path / "s.png", tmp_path / "l.png"]
    for files, message in (
        ([file("x.mp4")], "cannot be read as a video"), ([file("x.gif")], "cannot be read"),
        ([file("e.mp4", b"")], "cannot be read as a video"),
        ([file("n")], "cannot be read as a video"),
        ([good[0]], "give all frames of its folder"), (good, "frames of one video have one size"),
        ([good[0], file("y.png")], "cannot be read"),
        ([*good, file("z.mp4")], "give one video, or PNG frames alone"),
        ([file("big.mp4", bytes(page.studio.limits.upload + 1))], "larger than 256 MiB"),
    ):  # fmt: skip
        with pytest.raises(JobError, match=message):
            page.studio.keep_driving(files)
    assert not list((page.studio.state / "driving").glob("*"))


def test_an_empty_number_is_none_and_is_sent_as_an_empty_text() -> None:
    from accel.pipelines.ui.widgets import Field

    field = Field(None, precision=0)
    assert field.value == "" and field.preprocess("") is None and field.preprocess(None) is None
    assert field.preprocess(0) == 0 and field.postprocess(0) == 0 and field.postprocess(3.0) == 3
