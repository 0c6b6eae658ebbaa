"""A pipeline with two transformers, as Wan 2.2 has them, from a job to frames."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.checkpoints import two_transformers
from helpers.loras import write_lora

from accel.pipelines.generate import generate
from accel.pipelines.job import Job
from accel.pipelines.load import load

QUICK = {"steps": 6, "frames": 5, "width": 64, "height": 64, "preset": None}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(two_transformers(tmp_path_factory.mktemp("two")))


@pytest.fixture(scope="module")
def pipe(model):
    return load(model)


def run(pipe, job: Job):
    """Frames, report, and the latents after each step."""
    steps: list[torch.Tensor] = []
    result = generate(pipe, job, on_latents=lambda pipe, x: steps.append(x.clone()))
    return result.frames, result.report, steps


def before_the_boundary(pipe) -> int:
    return sum(int(t) >= pipe.config.boundary_ratio * 1000 for t in pipe.scheduler.timesteps)


def test_a_lora_goes_to_both_or_to_the_named_one(pipe, model, tmp_path):
    file = str(write_lora(tmp_path / "one.safetensors", pipe.transformer))
    job = Job("a red circle", **QUICK, model=model)
    plain, _, latents = run(pipe, job)
    high = before_the_boundary(pipe)
    assert 0 < high < 6
    seen = {}
    for component in (None, "transformer", "transformer_2"):
        given = {"file": file} | ({"component": component} if component else {})
        job = Job("a red circle", **QUICK, model=model, loras=[given])
        frames, _, steps = run(pipe, job)
        seen[component] = steps
        same = [torch.equal(a, b) for a, b in zip(steps, latents, strict=True)]
        assert same == ([True] * high if component == "transformer_2" else [False] * high) + [
            False
        ] * (6 - high)
        assert (frames != plain).any()
    assert torch.equal(seen[None][high - 1], seen["transformer"][high - 1])
    assert not torch.equal(seen[None][-1], seen["transformer"][-1])
    assert (run(pipe, Job("a red circle", **QUICK, model=model))[0] == plain).all()
    assert {len(names) for names in pipe.get_list_adapters().values()} == {2}


@pytest.mark.proof
def test_every_technique_knows_both(pipe, model):
    # 256 tokens; at 12 steps a guided run of random weights changes too fast to be predicted
    size = QUICK | {"steps": 12, "guidance": 1.0, "frames": 13, "width": 128, "height": 128}
    plain, _, _ = run(pipe, Job("a red circle", **size, model=model))
    for preset in ("lossless", "fast"):
        job = Job("a red circle", **size | {"preset": preset}, model=model)
        frames, report, _ = run(pipe, job)
        rms = np.sqrt(((frames / 255.0 - plain / 255.0) ** 2).mean())
        assert rms < (2e-3 if preset == "lossless" else 0.15), rms
        assert all(block.sliced for block in report.blocks if block.name != "head")
        if preset == "fast":
            high = before_the_boundary(pipe)
            assert {site.name.split(".")[0] for site in report.sites} == {
                "transformer", "transformer_2",
            }  # fmt: skip
            assert report.rehash.reused and {0, high, high + 1} <= set(report.rehash.keys)
