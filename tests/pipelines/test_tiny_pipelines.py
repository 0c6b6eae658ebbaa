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
from helpers.tiny_pipelines import RECIPES, small_edits
from helpers.tiny_recipe import job_with, write_files
from PIL import Image

from accel import families
from accel.core.run_pipeline import call
from accel.pipelines.generate import generate
from accel.pipelines.inputs.binding import call_arguments
from accel.pipelines.job import Job, make_job


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_files(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(autouse=True)
def edits() -> Iterator[None]:
    with small_edits():
        yield


def job_of(name: str, paths: dict[str, str], **changes: Any) -> Job:
    return make_job(job_with(RECIPES[name], paths, **changes))


def plain(pipe: Any, job: Job) -> np.ndarray:
    return call(pipe, {**call_arguments(pipe, job), "seed": job.seed})


def test_there_are_more_than_twenty_classes() -> None:
    assert len({type(recipe()).__name__ for recipe in RECIPES.values()}) >= 20


# Long ones among them; the proof has them all, in both dtypes and with the preset fast.
LONG = (
    "ltx-2 i2v", "ltx-2 conditions", "svd", "flux kontext", "sdxl img2img", "wan 2.1 i2v",
    "hunyuanvideo 1.5 i2v", "sd inpaint", "framepack", "flux img2img", "qwen-image edit",
    "cogvideox i2v", "ltx i2v", "wan first and last frame",
)  # fmt: skip


def levels_apart(pipe: Any) -> int:
    """How far lossless may be from the plain call in bf16.

    Statistics of a GroupNorm that are added up strip by strip round in their own way, by
    units in the last place, of which the largest is one level.
    """
    decoder = families.decoders().get(type(pipe.vae.decoder).__name__)
    return 2 * int(decoder is not None and decoder.grouped)


@pytest.mark.proof
@pytest.mark.parametrize("name", [name for name in RECIPES if name not in LONG])
def test_lossless_has_the_bits_of_the_plain_call(name: str, paths: dict[str, str]) -> None:
    pipe = RECIPES[name](torch.bfloat16)
    job = job_of(name, paths, preset="lossless")
    before, result = plain(pipe, job), generate(pipe, job)
    assert result.report is not None and before.std() > 1
    apart = np.abs(result.frames.astype(int) - before)
    assert apart.max() <= levels_apart(pipe) and (apart > 0).mean() < 0.05
    given = repr(job.to_dict())
    files = [path for path in paths.values() if path in given]
    assert sorted(used.file for used in result.inputs) == sorted(files)


@pytest.mark.proof
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", RECIPES)
def test_both_presets_and_the_way_back(
    name: str, dtype: torch.dtype, paths: dict[str, str]
) -> None:
    pipe = RECIPES[name](dtype)
    before = plain(pipe, job_of(name, paths))
    lossless = generate(pipe, job_of(name, paths, preset="lossless")).frames
    allowed = 1 if dtype == torch.float32 else levels_apart(pipe)
    assert np.abs(lossless.astype(int) - before).max() <= allowed
    fast = generate(pipe, job_of(name, paths, preset="fast"))
    assert fast.report is not None and fast.frames.shape == before.shape
    assert np.array_equal(plain(pipe, job_of(name, paths)), before)


def test_what_the_call_gets_is_what_a_person_would_give_it(paths: dict[str, str]) -> None:
    names = ("wan vace", "wan animate", "ltx conditions", "sd controlnet", "flux.2")
    got = {n: call_arguments(RECIPES[n](), job_of(n, paths)) for n in names}
    vace = got["wan vace"]
    assert [i.size for i in vace["video"]] == [(32, 32)] * 5 and vace["num_frames"] == 5
    assert [i.mode for i in vace["mask"]] == ["L"] * 5
    assert [i.size for i in vace["reference_images"]] == [(90, 70)]
    first = Image.open(Path(paths["CLIP"]) / "00.png").resize((48, 32), Image.Resampling.BOX)
    assert np.array_equal(np.asarray(vace["video"][0]), np.asarray(first.crop((8, 0, 40, 32))))
    animate = got["wan animate"]
    assert [i.size for i in animate["pose_video"]] == [(32, 32)] * 5
    assert [i.size for i in animate["face_video"]] == [(60, 40)] * 5
    assert "num_frames" not in animate and animate["image"].size == (32, 32)
    conditions = got["ltx conditions"]["conditions"]
    assert [c.frame_index for c in conditions] == [0, 8]
    assert "image" not in got["ltx conditions"]
    edges = Image.open(paths["EDGES"]).resize((41, 32), Image.Resampling.LANCZOS)
    control = got["sd controlnet"]["image"]
    assert np.array_equal(np.asarray(control), np.asarray(edges.crop((4, 0, 36, 32))))
    assert [i.size for i in got["flux.2"]["image"]] == [(64, 64), (90, 70)]
