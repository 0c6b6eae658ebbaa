"""What the page says where something fails, and that it takes the next thing afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.page import POOR_CONTRAST, browsing, fill, free_port, opened, shown, tab, unfold, until
from helpers.studio import Manual, states, studios_in, submit

from accel.pipelines.batch.tasks import Kind, Outcome
from accel.pipelines.job import Job
from accel.pipelines.job_settings import settings_text
from accel.pipelines.load import TINY
from accel.pipelines.ui.settings import Models
from accel.pipelines.ui.studio import Studio
from accel.pipelines.video import write_video

pytestmark = pytest.mark.proof  # refusals in a browser: minutes on a slow machine

pytest.importorskip("gradio", reason="gradio is not installed (pip install 'gradio>=6.31')")


@pytest.fixture
def both(tmp_path: Path) -> Iterator[tuple[Studio, Manual]]:
    with studios_in(tmp_path / "out") as open_one:
        studio, engine = open_one()
        studio.models = Models({"tiny (embedded)": TINY, "other": "someone/other"})
        yield studio, engine


@pytest.fixture
def page(browser: Any, both: tuple[Studio, Manual]) -> Iterator[Any]:
    with shown(browser, both[0]) as found:
        yield found


def moving(frames: int = 9) -> np.ndarray:
    rng = np.random.default_rng(0)
    wide = rng.integers(0, 256, (64, 64 + frames, 3), dtype=np.uint8)
    return np.stack([wide[:, k : k + 64] for k in range(frames)])


@browsing
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_failure_stands_beside_the_older_video(
    browser: Any, both: tuple[Studio, Manual], scheme: str
) -> None:
    from accel.pipelines.ui.page import Page, launch

    studio, engine = both
    (old,) = submit(studio, 1)
    until(lambda: engine.busy)
    engine.finish()
    until(lambda: studio.find(old))
    built = Page(studio)
    address = launch(built, "127.0.0.1", free_port(), None)
    try:
        with opened(browser, address, color_scheme=scheme) as page:
            now = page.locator("#now")
            page.locator("#latest video").wait_for()
            page.locator("#go").click()
            page.get_by_text("is in the queue").first.wait_for()
            until(lambda: engine.busy)
            engine.outcomes.append(Outcome(Kind.INVALID, "width 72 is too odd"))
            page.get_by_text("failed: width 72 is too odd").wait_for()
            assert f"The video below, {old}, is an older one." in now.inner_text()
            assert "Nothing is running" not in now.inner_text()
            assert page.evaluate(POOR_CONTRAST) == {}
            page.reload()
            now.get_by_text("failed: width 72 is too odd").wait_for()
            now.get_by_text("Dismiss").click()
            until(lambda: "too odd" not in now.inner_text())
            assert "1 failed" in now.inner_text() and "failed" in states(studio).values()
    finally:
        built.blocks.close(verbose=False)


@browsing
def test_a_refused_drop_makes_room_for_the_next(page: Any, tmp_path: Path) -> None:
    (tmp_path / "junk.mp4").write_bytes(b"junk" * 99)
    write_video(tmp_path / "foreign.gif", moving(), fps=8)
    (tmp_path / "text.txt").write_text("no video")
    job = Job("got back", seed=77, fps=12.5, format="webm", guidance=3.5)
    write_video(tmp_path / "good", moving(2), fps=8, comment=settings_text(job), format="png")
    tab(page, "Queue and gallery")
    slot = page.locator("#drop input[type=file]")
    for name, why in (
        ("junk.mp4", "the file cannot be read as a video"),
        ("foreign.gif", "it was not written by accel"),
        ("text.txt", "Invalid file type"),
    ):
        slot.set_input_files(tmp_path / name)
        page.get_by_text(why).first.wait_for()
        slot.wait_for(state="attached")
    slot.set_input_files(tmp_path / "good" / "00001.png")
    until(lambda: page.locator("#prompt textarea").input_value() == "got back")
    unfold(page, "More")
    for label, value in (("Frames per second", "12.5"), ("Guidance", "3.5"), ("Format", "webm")):
        assert page.get_by_label(label, exact=True).first.input_value() == value


@browsing
def test_a_driving_video_on_a_fresh_page(
    page: Any, both: tuple[Studio, Manual], tmp_path: Path
) -> None:
    _, engine = both
    write_video(tmp_path / "driving.mp4", moving(), fps=8)
    (tmp_path / "junk.mp4").write_bytes(b"junk" * 99)
    tab(page, "Motion")
    unfold(page, "Driving video")
    last = page.get_by_label("Last frame (empty: the end)")
    assert last.input_value() == ""
    slot = page.locator("input[type=file][accept*=video]").first
    slot.set_input_files(tmp_path / "junk.mp4")
    page.get_by_text("the file cannot be read as a video").first.wait_for()
    slot.wait_for(state="attached")
    slot.set_input_files(tmp_path / "driving.mp4")
    page.get_by_alt_text("the motion, frame by frame: video").wait_for()
    last.fill("0")
    last.press("Enter")
    page.locator("#flow").get_by_text("motion video last must be a whole number from 1").wait_for()
    last.fill("5")
    last.press("Enter")
    page.get_by_alt_text("the motion, frame by frame: video").wait_for()
    tab(page, "Generate")
    assert page.get_by_label("Follow the motion drawn").is_checked()
    page.locator("#go").click()
    until(lambda: engine.tasks)
    driving = engine.tasks[0].job.motion["video"]
    assert (driving["first"], driving["last"]) == (0, 5) and Path(driving["file"]).is_file()


@browsing
def test_numbers_that_are_left_empty_stay_empty(page: Any, both: tuple[Studio, Manual]) -> None:
    _, engine = both
    page.get_by_label("Model", exact=True).first.click()
    page.get_by_role("option", name="other").click()
    width = page.get_by_label("Width", exact=True).first
    until(lambda: width.input_value() == "")
    unfold(page, "More")
    assert page.get_by_label("Guidance", exact=True).first.input_value() == ""
    fill(page, steps=3)
    page.locator("#go").click()
    until(lambda: engine.tasks)
    job = engine.tasks[0].job
    assert (job.model, job.guidance, job.width, job.steps) == ("someone/other", None, None, 3)
