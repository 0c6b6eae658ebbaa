"""The page without a browser: values go in and come out by name, never by position."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from accel.pipelines.job import Job
from accel.pipelines.load import TINY
from accel.pipelines.ui import drawing, forms
from accel.pipelines.ui.settings import Models
from accel.pipelines.ui.studio import Studio

gradio = pytest.importorskip(
    "gradio", reason="gradio is not installed (pip install 'accel-diffusion[ui]')"
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
