"""One job file with every kind of pipeline and input, from folders, through ``accel render``.

The pictures are just large enough that blocks are sliced and attention is quantized.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny_pipelines import RECIPES, small_edits
from helpers.tiny_recipe import job_with, write_files

from accel.cli import main
from accel.pipelines.video import read_video

PRESETS = ("none", "lossless", "fast")
WHOLE = [name for name, recipe in RECIPES.items() if recipe.whole]
# One of each kind of input: picture and argument, two pictures, all of VACE's, control.
QUICK = ("sd img2img", "ltx conditions", "wan vace", "sd controlnet")
INLINE = ("--engine", "inline")
FINE = (
    "ltx-2 i2v",
    "ltx-2 conditions",
    "hunyuanvideo 1.5",
    "svd",
)  # a token for each 2 pixels of a side
FILES = ("image", "last_image", "video", "mask", "references", "control")


class Rendered:
    """A job file of recipes in every preset, and what was rendered from it."""

    def __init__(self, folder: Path, names: tuple[str, ...]) -> None:
        self.out, self.classes = folder / "out", dict[str, Any]()
        self.paths, self.jobs = write_files(folder), dict[str, dict[str, Any]]()
        for name in names:
            model = folder / "models" / name
            pipe = RECIPES[name]()
            pipe.save_pretrained(model)
            self.classes[name] = type(pipe)
            for preset in PRESETS:
                job = job_with(RECIPES[name], self.paths, model=str(model), preset=preset)
                job |= {"name": file_of(name, preset), "format": "png"}
                self.jobs[file_of(name, preset)] = {**job, **larger(name, job)}
        self.read = cache(lambda file: read_video(self.out / file))
        self.file = folder / "jobs.json"
        self.file.write_text(json.dumps({"jobs": list(self.jobs.values())}))
        self.code = self.render()

    def render(self, *options: str) -> int:
        """Exit code of the command."""
        with small_edits(256):
            return main(["render", str(self.file), "--out", str(self.out), *INLINE, *options])

    def frames(self, name: str, preset: str) -> np.ndarray:
        return self.read(file_of(name, preset))

    def sidecar(self, name: str, preset: str) -> Any:
        return json.loads((self.out / f"{file_of(name, preset)}.json").read_text())


def file_of(name: str, preset: str) -> str:
    return f"{name} {preset}".replace(" ", "-")


def larger(name: str, job: dict[str, Any]) -> dict[str, Any]:
    """The size of at least 256 tokens; a job that leaves its size to the pipeline keeps that."""
    if name in FINE or "width" not in job:
        return {}
    found: dict[str, Any] = {"width": 256, "height": 128 if "frames" in job else 256}
    if "max_area" in (arguments := job.get("arguments", {})):
        found["arguments"] = {**arguments, "max_area": 256**2}
    return found


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> Rendered:
    return Rendered(tmp_path_factory.mktemp("every"), tuple(WHOLE))


@pytest.fixture(scope="module")
def some(tmp_path_factory: pytest.TempPathFactory) -> Rendered:
    return Rendered(tmp_path_factory.mktemp("some"), QUICK)


def check_outcome(rendered: Rendered, name: str, preset: str) -> None:
    """The video is what the job asked for, and the sidecar says what ran, on which files."""
    job, frames = rendered.jobs[file_of(name, preset)], rendered.frames(name, preset)
    sidecar, report = rendered.sidecar(name, preset), rendered.sidecar(name, preset)["report"]
    if "width" in job:
        assert frames.shape[1:] == (job["height"], job["width"], 3)
    if "latent_window_size" not in job.get("arguments", {}):  # frames come in whole windows
        assert len(frames) == job.get("frames", 1)
    assert sidecar["frames"] == len(frames) and frames.std() > 1
    assert sidecar["job"]["preset"] == (None if preset == "none" else preset)
    given = json.dumps({key: job[key] for key in (*FILES, "arguments") if key in job})
    expected = sorted(path for path in rendered.paths.values() if path in given)
    assert sorted(used["file"] for used in sidecar["inputs"]) == expected
    assert all(len(used["sha256"]) == 64 and used["how"] for used in sidecar["inputs"])
    if preset == "none":
        assert report is None
        return
    assert (report["plan"], report["pipeline"]) == (preset, rendered.classes[name].__name__)
    if preset == "lossless":
        assert any(block["sliced"] for block in report["blocks"])
    else:
        assert any(kind.startswith("int") for site in report["sites"] for kind in site["ran"])


def check_lossless(rendered: Rendered, name: str) -> None:
    """As without accel, but for a decoder whose GroupNorm adds up strip by strip."""
    before, after = (rendered.frames(name, preset).astype(int) for preset in ("none", "lossless"))
    assert np.abs(after - before).max() <= 1
    fast = rendered.frames(name, "fast").astype(int)
    assert np.abs(fast - before).mean() < 8


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_a_job_of_each_kind_of_input_is_rendered(some: Rendered, name: str) -> None:
    assert some.code == 0
    for preset in PRESETS:
        check_outcome(some, name, preset)
    check_lossless(some, name)


@pytest.mark.slow
def test_all_are_done_and_nothing_is_rendered_again(some: Rendered, capsys: Any) -> None:
    capsys.readouterr()
    assert some.render() == 0
    assert f"{len(some.jobs)} already done" in capsys.readouterr().err


@pytest.mark.proof
def test_a_dry_run_finds_nothing_wrong(every: Rendered) -> None:
    assert every.render("--dry-run") == 0


@pytest.mark.proof
def test_more_than_thirty_classes_and_every_kind_of_input(every: Rendered) -> None:
    assert every.code == 0 and len(set(every.classes.values())) > 30
    given = {key for job in every.jobs.values() for key in job}
    assert {*FILES, "arguments", "preset"} <= given


@pytest.mark.proof
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", WHOLE)
def test_every_pipeline_is_rendered(every: Rendered, name: str, preset: str) -> None:
    check_outcome(every, name, preset)


@pytest.mark.proof
@pytest.mark.parametrize("name", WHOLE)
def test_lossless_is_what_it_says_in_every_pipeline(every: Rendered, name: str) -> None:
    check_lossless(every, name)
