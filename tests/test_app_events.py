"""Events of the page that come in an unlucky order, over a studio that renders nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from helpers.page import browsing, fill, shown, tab, unfold, until

from accel.memory.fit import Needs
from accel.pipelines.job import Job
from accel.pipelines.load import TINY
from accel.pipelines.ui.settings import Models
from accel.pipelines.ui.studio import Studio

pytestmark = pytest.mark.proof  # the order of events in a browser: minutes on a slow machine

pytest.importorskip("gradio", reason="gradio is not installed (pip install 'gradio>=6.31')")

OTHER = "other"  # a model that is not on the disk: all its sizes are its own
# Keeps every text that a part of the page has shown.
RECORD = """(part) => {
  window.shown = [];
  const keep = () => {
    const text = document.querySelector(part).innerText;
    if (text !== window.shown.at(-1)) window.shown.push(text);
  };
  new MutationObserver(keep).observe(document.querySelector(part),
    {childList: true, subtree: true, characterData: true});
  keep();
}"""


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Studio]:
    models = Models({"tiny (embedded)": TINY, OTHER: "someone/other"})
    opened_studio = Studio(tmp_path / "out", models)
    yield opened_studio
    opened_studio.close()


@pytest.fixture
def page(browser: Any, studio: Studio) -> Iterator[Any]:
    with shown(browser, studio) as found:
        yield found


@dataclass
class Held:
    """``Simulations.needs`` that lets the next answer wait once it is told to."""

    simulate: Any
    hold: bool = False
    waits: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    def __call__(self, job: Job) -> Needs:
        found = self.simulate(job)
        if self.hold:
            self.hold = False
            self.waits.set()
            assert self.go_on.wait(120)
        return found


@browsing
def test_the_newest_limits_have_the_last_word(page: Any, studio: Studio) -> None:
    held = studio.simulations.needs = Held(studio.simulations.needs)  # type: ignore[method-assign]
    tab(page, "Plan")
    page.locator("#predicted svg").wait_for()
    tab(page, "Generate")
    fill(page, steps=9)
    held.hold = True
    tab(page, "Plan")  # asks for 9 steps, and that answer comes late
    assert until(held.waits.is_set)
    page.evaluate(RECORD, "#predicted")
    page.get_by_label("number input for Memory, at most GiB").fill("0.001")

    def shown(text: str) -> bool:
        return any(text in seen for seen in page.evaluate("shown"))

    for _ in range(30):  # were it asked beside the first, it would be answered by then
        if shown("no number of slices fits"):
            break
        page.wait_for_timeout(100)
    held.go_on.set()
    until(lambda: shown("17 frames, 9 steps") and shown("no number of slices fits"))
    assert "no number of slices fits" in page.evaluate("shown.at(-1)")


@browsing
def test_a_limit_stays_for_another_size(page: Any, studio: Studio) -> None:
    held = studio.simulations.needs = Held(studio.simulations.needs)  # type: ignore[method-assign]
    memory = page.get_by_label("number input for Memory, at most GiB")

    def plan_for(frames: int) -> None:
        tab(page, "Generate")
        fill(page, frames=frames)
        tab(page, "Plan")

    plan_for(17)
    page.get_by_text("64×64, 17 frames").wait_for()
    top = memory.input_value()
    memory.fill("0.035")
    until(lambda: "0.035 GiB" in page.locator("#predicted").inner_text())
    held.hold = True
    plan_for(33)
    assert until(held.waits.is_set)
    until(memory.is_disabled)  # what is typed now would be lost: its top is not known yet
    held.go_on.set()
    until(memory.is_enabled)
    assert memory.input_value() == "0.035"
    higher = page.get_by_label("range slider for Memory, at most GiB").get_attribute("max")
    assert float(higher) > float(top)
    memory.fill("99")
    plan_for(17)  # a slider at its top is no limit
    until(lambda: memory.input_value() == top)


@browsing
def test_the_menu_of_models_changes_sizes_only_for_another_model(page: Any, studio: Studio) -> None:
    studio.presets.save("theirs", Job("x", model="someone/other", frames=49, steps=9))

    def sizes() -> list[str]:
        labels = ("Width", "Height", "Frames", "Steps")
        return [page.get_by_label(label, exact=True).first.input_value() for label in labels]

    menu = page.get_by_label("Model", exact=True).first

    def leave() -> None:
        label = menu.input_value()
        told = f'{{"data":["{label}",'
        with page.expect_response(lambda r: (r.request.post_data or "").startswith(told)):
            menu.focus()
            page.keyboard.press("Tab")
        page.wait_for_timeout(500)  # the answer is in the form by then

    fill(page, frames=33, steps=7)
    leave()
    assert sizes() == ["64", "64", "33", "7"]
    menu.click()
    page.get_by_role("option", name=OTHER).click()
    until(lambda: sizes() == ["", "", "", ""])
    fill(page, width=128)
    leave()
    assert sizes() == ["128", "", "", ""]
    menu.click()
    page.get_by_role("option", name="tiny (embedded)").click()
    until(lambda: sizes() == ["64", "64", "17", "20"])
    unfold(page, "Presets and job file")
    page.locator("#preset input").click()
    page.get_by_role("option", name="theirs").click()
    page.get_by_role("button", name="Use", exact=True).click()
    until(lambda: sizes() == ["", "", "49", "9"])
    leave()
    assert sizes() == ["", "", "49", "9"]
