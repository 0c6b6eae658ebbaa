"""A picture is dropped on the page, and a playing video comes of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.page import browsing, fill, shown, tab, unfold, until
from PIL import Image

from accel.pipelines.batch.sidecar import read_sidecar
from accel.pipelines.load import load, tiny_folder
from accel.pipelines.ui.settings import Models
from accel.pipelines.ui.studio import Studio

pytestmark = pytest.mark.slow

pytest.importorskip("gradio", reason="gradio is not installed (pip install 'gradio>=6.31')")


@pytest.fixture(scope="module")
def from_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model as a folder of a pipeline that starts from a picture."""
    from diffusers import WanImageToVideoPipeline

    parts = load("tiny", device="cpu").components
    pipe = WanImageToVideoPipeline(**parts, expand_timesteps=True)
    folder = tmp_path_factory.mktemp("models") / "from-pictures"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def studio(tmp_path: Path, from_pictures: Path) -> Iterator[Studio]:
    models = {"from pictures": str(from_pictures), "tiny (embedded)": str(tiny_folder())}
    studio = Studio(tmp_path / "out", Models(models))
    studio.start()
    yield studio
    studio.close()


@pytest.fixture
def page(browser: Any, studio: Studio) -> Iterator[Any]:
    with shown(browser, studio) as found:
        yield found


def drop(page: Any, place: str, file: Path) -> None:
    page.locator(f"#input-{place} input[type=file]").first.set_input_files(file)


@browsing
@pytest.mark.proof
def test_a_dropped_picture_becomes_a_playing_video(
    page: Any, studio: Studio, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (48, 80, 3), np.uint8)).save(tmp_path / "mine.jpg")
    (tmp_path / "text.png").write_bytes(b"<script>alert(1)</script>")
    fill(page, width=64, height=64, frames=5, steps=2)
    page.locator("#go").click()
    page.get_by_text("needs image").first.wait_for()
    unfold(page, "Start from a picture or a video")
    drop(page, "image", tmp_path / "text.png")
    page.get_by_text("cannot be read as a picture").first.wait_for()
    drop(page, "image", tmp_path / "mine.jpg")
    page.get_by_text("Starts from: picture.").wait_for()
    page.locator("#go").click()
    until(lambda: page.evaluate("document.querySelector('#latest video')?.currentTime > 0"))
    (video,) = studio.finished()
    sidecar = read_sidecar(studio.out / f"{video.name}.json")
    assert sidecar is not None
    kept = Path(sidecar["job"]["image"])
    assert kept.parent == studio.state / "inputs" and Image.open(kept).size == (80, 48)
    tab(page, "Queue and gallery")
    page.locator("#gallery [data-act=continue]").click()
    page.get_by_text("Starts from: picture.").wait_for()
    page.locator("#go").click()
    until(lambda: len(studio.finished()) == 2)
    second = next(v for v in studio.finished() if v.name != video.name)
    assert second.job.image not in (None, str(kept))
