"""The pipelines people use, each with its kind of input: real classes, random weights, one job.

Lossless gives the bits of the plain call, and fast runs and leaves the pipeline as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_images, tiny_pipelines
from helpers.tiny_pipelines import with_files, write_files

from accel.core.run_pipeline import call
from accel.pipelines.generate import generate
from accel.pipelines.inputs.binding import call_arguments
from accel.pipelines.job import Job, make_job

RECIPES = {**tiny_pipelines.RECIPES, **tiny_images.RECIPES}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_files(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(autouse=True)
def small_edits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pipelines that edit bring a picture to a megapixel; here to the least they can take."""
    from diffusers.pipelines.flux import pipeline_flux_kontext as kontext
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit as edit
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as plus

    monkeypatch.setattr(kontext, "PREFERRED_KONTEXT_RESOLUTIONS", [(32, 32)])
    monkeypatch.setattr(edit, "calculate_dimensions", lambda area, ratio: (32, 32, None))
    monkeypatch.setattr(plus, "VAE_IMAGE_SIZE", 32 * 32)
    monkeypatch.setattr(plus, "CONDITION_IMAGE_SIZE", 32 * 32)
    yield


def job_of(name: str, paths: dict[str, str], **changes: Any) -> Job:
    return make_job({**with_files(RECIPES[name].job, paths), **changes})


def plain(pipe: Any, job: Job) -> np.ndarray:
    return call(pipe, {**call_arguments(pipe, job), "seed": job.seed})


def test_there_are_more_than_twenty_classes() -> None:
    assert len({type(recipe()).__name__ for recipe in RECIPES.values()}) >= 20


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_lossless_has_the_bits_of_the_plain_call_and_fast_runs(
    name: str, paths: dict[str, str]
) -> None:
    pipe = RECIPES[name](torch.bfloat16)
    before = plain(pipe, job_of(name, paths))
    lossless = generate(pipe, job_of(name, paths, preset="lossless"))
    assert np.array_equal(lossless.frames, before) and before.std() > 1
    fast = generate(pipe, job_of(name, paths, preset="fast"))
    assert fast.report is not None and fast.frames.shape == before.shape
    assert np.array_equal(plain(pipe, job_of(name, paths)), before)
    files = [p for p in paths.values() if p in repr(RECIPES_WITH_FILES(name, paths))]
    assert sorted(used.file for used in fast.inputs) == sorted(files)


def RECIPES_WITH_FILES(name: str, paths: dict[str, str]) -> Any:
    return with_files(RECIPES[name].job, paths)


@pytest.mark.proof
@pytest.mark.parametrize("name", RECIPES)
def test_lossless_in_float32_is_the_plain_call_but_for_rounding(
    name: str, paths: dict[str, str]
) -> None:
    pipe = RECIPES[name]()
    before = plain(pipe, job_of(name, paths)).astype(int)
    after = generate(pipe, job_of(name, paths, preset="lossless")).frames
    assert np.abs(after - before).max() <= 1
