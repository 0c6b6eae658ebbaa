"""The page in a real browser. One server and one embedded model for all."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.page import (
    CUT_OFF,
    NAMELESS,
    POOR_CONTRAST,
    SCRIPT,
    browsing,
    fill,
    opened,
    tab,
    unfold,
    until,
)  # fmt: skip
from PIL import Image

from accel.cli import main
from accel.pipelines.batch.jobfile import read_jobs
from accel.pipelines.batch.sidecar import read_sidecar
from accel.pipelines.job import Job
from accel.pipelines.job_settings import settings_text
from accel.pipelines.video import write_video

pytestmark = pytest.mark.slow

pytest.importorskip("gradio", reason="gradio is not installed (pip install 'gradio>=6.31')")

# Menus whose text reaches under their arrow.
UNDER_ARROW = """[...document.querySelectorAll('input[role=combobox]')].filter((e) => {
  const arrow = e.parentElement.querySelector('.dropdown-arrow');
  if (!e.offsetParent || !arrow) return false;
  const end = e.getBoundingClientRect().right - parseFloat(getComputedStyle(e).paddingRight);
  return end > arrow.getBoundingClientRect().left;
}).map((e) => e.ariaLabel)"""


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    with opened(browser, address) as found:
        yield found


def give_name(page: Any, name: str) -> None:
    box = page.get_by_label("Name of the file")
    if not box.is_visible():
        unfold(page, "More")
    box.fill(name)


@browsing
def test_generate_with_the_keyboard_reload_and_play(page: Any, page_out: Path) -> None:
    fill(page, frames=17, steps=40)  # long enough to be still running after a reload
    page.locator("#prompt textarea").focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("a green crescent")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") != "BODY"
    page.locator("#go").focus()
    page.keyboard.press("Enter")
    until(lambda: " of 40" in page.locator("#now").inner_text())
    for size, kept in (("Frames", "17"), ("Steps", "40")):  # Tab went past the menu of models
        assert page.get_by_label(size, exact=True).first.input_value() == kept
    page.reload()  # the render goes on without us, and is there when we come back
    until(lambda: " of 40" in page.locator("#now").inner_text())
    assert page.locator("#now img.preview").count() == 1
    playing = "document.querySelector('#latest video')?.currentTime > 0"
    until(lambda: page.evaluate(playing))
    job = Job(**read_sidecar(next(page_out.glob("a-green-crescent*.json")))["job"])
    assert (job.prompt, job.frames, job.steps) == ("a green crescent", 17, 40)


@browsing
def test_stop_keeps_the_job(page: Any) -> None:
    fill(page, frames=5, steps=200, seed=2)
    page.locator("#go").click()
    until(lambda: " of 200" in page.locator("#now").inner_text())
    page.locator("#now [data-act=stop]").click()
    until(lambda: "Nothing is running" in page.locator("#now").inner_text())
    tab(page, "Queue and gallery")
    row = page.locator("#queue li.stopped")
    assert "stopped" in row.inner_text()
    row.locator("[data-act=remove]").click()
    until(lambda: "The queue is empty" in page.locator("#queue").inner_text())


@browsing
def test_drawn_drag_is_the_motion_of_the_video(page: Any, page_out: Path) -> None:
    fill(page, frames=5, steps=3, seed=3)
    tab(page, "Motion")
    page.locator("[data-tool=box]").click()
    box = page.locator("#canvas canvas").bounding_box()

    def at(x: float, y: float) -> tuple[float, float]:
        return box["x"] + x / 64 * box["width"], box["y"] + y / 64 * box["height"]

    for corner, end in (((8, 20), (32, 44)), ((20, 32), (44, 40))):  # draw it, then drag it
        page.mouse.move(*at(*corner))
        page.mouse.down()
        page.mouse.move(*at(*end), steps=3)
        page.mouse.up()
    page.locator("#flow img").wait_for()
    tab(page, "Generate")
    assert page.get_by_label("Follow the motion drawn").is_checked()
    give_name(page, "dragged")
    page.locator("#go").click()
    sidecar = until(lambda: read_sidecar(page_out / "dragged.json"))
    (layer,) = sidecar["job"]["motion"]["drag"]
    assert np.allclose(layer["polygon"], [[8, 20], [32, 20], [32, 44], [8, 44]], atol=0.5)
    (key,) = layer["keys"]
    assert np.allclose(key["move"], [24, 8], atol=0.5) and key["at"] == 1


@browsing
def test_compare_in_step(page: Any, page_out: Path) -> None:
    fill(page, frames=17, steps=3, seed=4)
    page.locator("#go-both").click()
    name = "a-red-circle-on-a-striped-blue-background-4"
    until(lambda: read_sidecar(page_out / f"{name}.json"))
    tab(page, "Queue and gallery")
    late: list[Any] = []
    page.route(lambda url: ".mp4" in url, lambda route: late.append(route))
    page.locator(f"[data-act=compare][data-name='{name}']").click()
    page.locator(".compare [data-do=play]").click()
    players = "[...document.querySelectorAll('.compare video')]"
    assert page.evaluate(f"{players}.map((v) => v.readyState)") == [0, 0, 0]
    for request in late:
        request.continue_()
    page.unroute_all()
    times = f"{players}.map((v) => v.currentTime)"
    until(lambda: page.evaluate(times)[0] > 0.2)
    for _ in range(20):  # 8 frames a second, 17 frames: this sees it wrap around as well
        seen = page.evaluate(times)
        assert np.ptp(seen) < 1 / 8, seen
        time.sleep(0.12)
    page.locator(".compare [data-do=play]").click()
    page.locator(".compare .seek").fill("7")
    page.locator(".compare [data-do=ahead]").click()
    assert page.evaluate(times) == [8.5 / 8] * 3
    page.locator(".compare select").select_option("apart")
    assert page.locator(".compare video.difference").is_visible()
    text = page.locator(".compare .under").inner_text()
    assert text.count(" GiB") == 2 and "dB PSNR" in text and "speed" in text
    assert page.locator("#report rect").count() > 4


@browsing
def test_a_dropped_video_gives_its_settings_back(page: Any, tmp_path: Path) -> None:
    job = Job(SCRIPT, seed=77, frames=9, motion={"camera": {"pan": [1.5, 0.0]}})
    settings = json.loads(settings_text(job))
    settings["motion"]["video"] = {"file": "/etc/passwd"}  # no job of ours, but a file can hold it
    write_video(tmp_path / "x.mp4", np.zeros((2, 16, 16, 3), np.uint8), fps=8,
                comment=json.dumps(settings))  # fmt: skip
    tab(page, "Queue and gallery")
    page.locator("#drop input[type=file]").set_input_files(tmp_path / "x.mp4")
    until(lambda: page.locator("#prompt textarea").input_value() == SCRIPT)
    assert page.get_by_label("Seed", exact=True).input_value() == "77"
    page.get_by_text("its motion came from a video file, which is left out").wait_for()
    tab(page, "Motion")
    assert page.get_by_label("Pan right, pixels").first.input_value() == "1.5"
    assert page.evaluate("window.hacked") is None


@browsing
def test_scripts_in_prompt_and_name_are_text(page: Any, page_out: Path) -> None:
    page.locator("#prompt textarea").fill(SCRIPT)
    fill(page, frames=5, steps=2)
    give_name(page, SCRIPT)
    page.locator("#go").click()
    until(lambda: [f for f in page_out.glob("img-src*.json") if read_sidecar(f)])
    tab(page, "Queue and gallery")
    page.locator("#gallery", has_text="img-src").wait_for()
    page.locator("[data-act=reuse][data-name^=img]").first.click()
    until(lambda: page.locator("#prompt textarea").input_value() == SCRIPT)
    fill(page, frames=6)
    give_name(page, "x" * 90)
    page.locator("#go").click()
    page.get_by_text("name length in bytes is 90, at most 80 here").first.wait_for()
    assert page.evaluate("window.hacked") is None


@browsing
def test_presets_and_job_file(page: Any, tmp_path: Path) -> None:
    fill(page, seed=123)
    unfold(page, "Presets and job file")
    page.locator("#preset input").fill("mine")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Save", exact=True).click()
    page.get_by_role("button", name="Job file for accel render").click()
    with page.expect_download() as download:
        page.locator("a[download]", has_text="KB").or_(
            page.locator("a[download*=yaml]")
        ).first.click()
    download.value.save_as(tmp_path / "jobs.yaml")
    assert [job.seed for job in read_jobs(tmp_path / "jobs.yaml")] == [123]
    assert main(["render", str(tmp_path / "jobs.yaml"), "--out", str(tmp_path), "--dry-run"]) == 0
    fill(page, seed=5)
    page.get_by_role("button", name="Use", exact=True).click()
    until(lambda: page.get_by_label("Seed", exact=True).input_value() == "123")


@browsing
def test_motion_with_the_keyboard_alone(page: Any, page_out: Path) -> None:
    fill(page, frames=5, steps=2, seed=5)

    def enter(selector: str) -> None:
        page.locator(selector).focus()
        page.keyboard.press("Enter")

    def press(*keys: str) -> None:
        for key in keys:
            page.keyboard.press(key)

    page.get_by_role("tab", name="Motion", exact=True).focus()
    press("Enter")
    page.get_by_text("frame 4 of 4").wait_for()  # a keyframe's time is in frames of the form
    page.get_by_label("range slider for Pan right, pixels").focus()
    press("ArrowRight")
    enter("[data-tool=brush]")
    page.locator("#canvas canvas").focus()
    press("Space", "Escape")
    enter("[data-tool=polygon]")
    page.locator("#canvas canvas").focus()
    press("Space", "Shift+ArrowRight", "Space", "Shift+ArrowDown", "Space", "ArrowLeft", "Space")
    press("Backspace", "Enter")  # three corners are left
    press(",", ",", "ArrowRight", ".", ".", "Shift+ArrowRight", "r")  # keys at 0.5 and at 1
    enter("[data-tool=box]")
    page.locator("#canvas canvas").focus()
    press("Space", "Shift+ArrowUp", "Shift+ArrowLeft", "Space", "ArrowUp")
    press("n", ",", "ArrowDown")  # the first one again, at 0.75
    page.get_by_alt_text("2 polygons, 4 keyframes, camera").wait_for()
    page.get_by_role("tab", name="Generate", exact=True).focus()
    press("Enter")
    give_name(page, "by-keyboard")
    until(lambda: page.get_by_label("Follow the motion drawn").is_checked())
    enter("#go")
    job = until(lambda: read_sidecar(page_out / "by-keyboard.json"))["job"]
    first, second = job["motion"]["drag"]
    assert first["polygon"] == [[32, 32], [37, 32], [37, 37]]
    assert [(k["at"], k["move"], k["rotate"]) for k in first["keys"]] == [
        (0.5, [1, 0], 0), (0.75, [3.5, 1], 2.5), (1, [6, 0], 5),
    ]  # fmt: skip
    assert second["polygon"] == [[32, 32], [27, 32], [27, 27], [32, 27]]
    assert [(k["at"], k["move"]) for k in second["keys"]] == [(1, [0, -1])]
    assert job["motion"]["camera"] == {"pan": [0.25, 0]} and "map" in job["strength"]


@browsing
def test_a_size_that_comes_late_keeps_what_is_being_drawn(page: Any) -> None:
    tab(page, "Motion")
    page.locator("[data-tool=polygon]").click()
    page.locator("#canvas canvas").focus()
    for key in ("Space", "Shift+ArrowRight", "Space"):
        page.keyboard.press(key)
    tab(page, "Generate")
    fill(page, frames=9)
    page.keyboard.press("Tab")
    tab(page, "Motion")
    page.get_by_text("frame 8 of 8").wait_for()
    assert "2 corners" in page.locator("#canvas .what").inner_text()


@browsing
def test_the_drawing_follows_the_size_of_the_form(page: Any) -> None:
    tab(page, "Motion")
    page.locator("[data-do=add]").click()
    page.keyboard.press("Shift+ArrowRight")
    page.locator("#flow img").wait_for()
    tab(page, "Generate")
    fill(page, width=128, frames=9)
    page.keyboard.press("Tab")
    tab(page, "Motion")
    until(lambda: "moved 10.0, 0.0 px" in page.locator("#canvas .what").inner_text())
    until(lambda: "frame 8 of 8" in page.locator("#canvas .at").inner_text())
    shape = page.locator("#canvas canvas").bounding_box()
    assert shape["width"] == pytest.approx(2 * shape["height"], abs=2)


@browsing
def test_a_picture_is_dropped_dragged_and_rendered(
    page: Any, page_out: Path, tmp_path: Path
) -> None:
    """The embedded model takes no picture: what is cut and dragged leads it."""
    picture = np.full((64, 64, 3), 230, np.uint8)
    picture[20:44, 6:30] = [220, 30, 30]
    Image.fromarray(picture).save(tmp_path / "red.png")
    fill(page, frames=5, steps=3, seed=11)
    page.get_by_label("How", exact=True).click()
    page.get_by_role("option", name="Dragged picture").click()
    chosen = page.get_by_label("How", exact=True)
    until(lambda: chosen.input_value() == "Dragged picture")
    unfold(page, "Start from a picture or a video")
    page.locator("#input-image input[type=file]").first.set_input_files(tmp_path / "red.png")
    page.get_by_text("Starts from: picture.").wait_for()
    tab(page, "Motion")
    behind = "(c => c.getContext('2d').getImageData(c.width / 4, c.height / 2, 1, 1).data[0])"
    until(lambda: page.evaluate(f"{behind}(document.querySelector('#canvas canvas'))") > 180)
    page.locator("[data-do=add]").click()
    page.keyboard.press("Shift+ArrowRight")
    page.locator("#flow img").wait_for()
    tab(page, "Generate")
    until(lambda: page.get_by_label("Follow the motion").is_checked())
    assert chosen.input_value() == "Dragged picture"
    give_name(page, "cut-and-dragged")
    page.locator("#go").click()
    until(lambda: (page_out / "cut-and-dragged.json").is_file())
    job = read_sidecar(page_out / "cut-and-dragged.json")["job"]
    assert (job["follow"], bool(job["image"])) == ("dual-clock", True), job
    assert job["motion"]["drag"]


@browsing
def test_a_plan_is_predicted_and_used(page: Any, page_out: Path) -> None:
    fill(page, frames=5, steps=2, seed=6)
    tab(page, "Plan")
    shown = page.locator("#predicted")
    shown.locator("svg").wait_for()
    assert "Predicted for 64×64, 5 frames" in shown.inner_text()
    (whole,) = re.findall(r"as it comes, decode\s*([\d.]+) GiB", shown.inner_text())
    memory = page.get_by_label("number input for Memory, at most GiB")
    memory.fill("16")  # more than can be needed is no error
    memory.fill(f"{float(whole) - 0.001}")
    until(lambda: "planned, decode" in shown.inner_text())
    assert "16 slices" in shown.inner_text()
    page.locator("#use-plan").click()
    until(lambda: page.get_by_label("Acceleration").first.input_value() == "planned")
    give_name(page, "planned")
    page.locator("#go").click()
    job = until(lambda: read_sidecar(page_out / "planned.json"))["job"]
    assert job["plan"]["slicing"]["slices"] == 16 and job["preset"] is None
    tab(page, "Plan")
    memory.fill("0.001")
    until(lambda: "no number of slices fits" in shown.inner_text())
    page.locator("#use-plan").click()
    page.get_by_text("no plan is shown").wait_for()


@browsing
def test_bad_values_are_told_at_once(page: Any) -> None:
    for field, value, message in (
        ("width", 72, "width must be a multiple of 16 for this model, got 72; the nearest is 80"),
        ("frames", 18, "frames must be a multiple of 4 plus 1 for this model, got 18"),
        ("seed", -1, "seed must be a whole number from 0"),
        ("steps", 201, "steps is 201, at most 200 here"),
    ):
        before = page.get_by_label(field.capitalize(), exact=True).first.input_value()
        fill(page, **{field: value})
        page.locator("#go").click()
        page.get_by_text(message).first.wait_for()
        fill(page, **{field: before})
    assert "The queue is empty" in view_queue(page)


def view_queue(page: Any) -> str:
    tab(page, "Queue and gallery")
    return str(page.locator("#queue").inner_text())


@browsing
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_screen(browser: Any, address: str, scheme: str) -> None:
    with opened(browser, address, width=390, color_scheme=scheme) as page:
        for name in ("Motion", "Compare", "Queue and gallery", "Plan", "Generate"):
            tab(page, name)
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
            assert page.evaluate(UNDER_ARROW) == [], name
            if name == "Plan":
                page.locator("#predicted svg").wait_for()
            assert page.evaluate(POOR_CONTRAST) == {}, name
            assert page.evaluate(NAMELESS) == [] and page.evaluate(CUT_OFF) == [], name
        if (compared := page.locator("[data-act=compare]")).count():  # by a test before
            tab(page, "Queue and gallery")
            compared.first.click()
            page.locator("#report svg").first.wait_for()
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
            for what in (CUT_OFF, NAMELESS):
                assert page.evaluate(what) == []
            assert page.evaluate(POOR_CONTRAST) == {}
        light, dark = (
            "rgb(255, 255, 255)",
            page.evaluate("getComputedStyle(document.body).getPropertyValue('background-color')"),
        )
        assert (dark == light) == (scheme == "light")
