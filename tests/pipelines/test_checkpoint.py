"""A run that goes on from a saved step gives the bytes of one that was never disturbed."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from helpers.proofs import leading
from helpers.tiny_pipelines import RECIPES
from helpers.tiny_recipe import job_with, write_files

from accel.patching import patched
from accel.pipelines.checkpoint import StepCheckpoint, Stopped, read, write
from accel.pipelines.generate import generate
from accel.pipelines.job import Job, make_job
from accel.pipelines.load import load

# Precision changes with the step.
EARLY = {"precision": "int4", "smooth_q": True, "rules": [{"precision": "int8", "end": 0.2}]}
JOB = Job(
    "a red circle", steps=4, frames=5, preset=None, plan={"attention": EARLY},
    motion={"camera": {"pan": [1, 0]}},
)  # fmt: skip


class Halt(Exception):
    pass


@pytest.fixture(scope="module")
def pipe():
    return load("tiny")


def cut(pipe, checkpoint, at, job=JOB):
    """Run a job and halt after step ``at``."""

    def on_step(done, steps):
        if done == at:
            raise Halt

    with pytest.raises(Halt):
        generate(pipe, job, on_step=on_step, checkpoint=checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["own", "euler", "dpm"])
@pytest.mark.parametrize("at", leading(1, [2, 1, 4]))
def test_resumed_run_is_byte_identical(scheduler, at, pipe, tmp_path, monkeypatch):
    if scheduler == "euler":
        monkeypatch.setattr(pipe, "scheduler", FlowMatchEulerDiscreteScheduler())
    if scheduler == "dpm":
        dpm = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
        monkeypatch.setattr(pipe, "scheduler", dpm)
    whole = generate(pipe, JOB)
    expected = whole.frames
    cut(pipe, StepCheckpoint(tmp_path / "c", "key", 1), at)
    calls = []
    handle = pipe.transformer.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    again = StepCheckpoint(tmp_path / "c", "key", 1)
    result = generate(pipe, JOB, checkpoint=again)
    handle.remove()
    assert np.array_equal(result.frames, expected)
    assert again.resumed_from == at and len(calls) == 2 * (4 - at)  # cond and uncond
    ran = [[site.steps for site in r.report.sites] for r in (result, whole)]
    assert ran[0] == ran[1] and ran[0][0] == [[1, "int8"], [3, "int4"]]
    assert "forward" not in vars(pipe.transformer)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"level": "features", "store": "int8"}])
def test_a_resumed_run_reuses_what_the_first_had_kept(settings, pipe, tmp_path):
    job = replace(JOB, steps=12, preset=None, plan={"attention": None, "rehash": settings})
    whole = generate(pipe, job)
    cut(pipe, StepCheckpoint(tmp_path / "c", "key", 1), 7, job)
    again = StepCheckpoint(tmp_path / "c", "key", 1)
    result = generate(pipe, job, checkpoint=again)
    assert np.array_equal(result.frames, whole.frames) and again.resumed_from == 7
    assert result.report.rehash.keys == whole.report.rehash.keys


@pytest.mark.parametrize(("every", "expected"), [(2, 2), (0, None), (9, None)])
def test_steps_are_saved_every_k(every, expected, pipe, tmp_path):
    cut(pipe, StepCheckpoint(tmp_path / "c", "key", every), 3)
    saved = read(tmp_path / "c", "key")
    assert (None if saved is None else saved["steps"]) == expected


def test_a_stop_saves_the_step_and_ends_the_run(pipe, tmp_path):
    answers = iter([False, True])
    checkpoint = StepCheckpoint(tmp_path / "c", "key", 9, lambda: next(answers))
    with pytest.raises(Stopped):
        generate(pipe, JOB, checkpoint=checkpoint)
    assert read(tmp_path / "c", "key")["steps"] == 2


def test_another_job_or_a_damaged_file_is_not_used(tmp_path):
    path = tmp_path / "c"
    write(path, {"key": "a", "steps": 3, "x": torch.ones(3)})
    assert read(path, "a")["steps"] == 3
    assert read(path, "b") is None
    content = path.read_bytes()
    for bad in (content[:-1], content[:40], b"", content[:99] + b"?" + content[100:]):
        path.write_bytes(bad)
        assert read(path, "a") is None
    assert read(tmp_path / "none", "a") is None


def test_demoted_sites_stay_demoted(pipe):
    with patched(pipe, preset="fast") as handle:
        name = next(iter(handle.sites))
        handle.sites[name].demoted_run = handle._state.refresh()
        state = handle.run_state()
    with patched(pipe, preset="fast") as handle:
        handle.restore_run(state)
        assert state["demoted"] == [name] == handle.run_state()["demoted"]


def test_what_cannot_be_saved_is_said(pipe, tmp_path):
    checkpoint = StepCheckpoint(tmp_path / "c", "key", 1)
    with checkpoint.running(pipe, torch.Generator(), None):
        strange = SimpleNamespace(scheduler=SimpleNamespace(solver=object()))
        checkpoint.step_done(strange, 1, 4, {"latents": torch.ones(2)})
    assert "solver is a object" in checkpoint.why_not and not (tmp_path / "c").exists()
    checkpoint = StepCheckpoint(tmp_path / "c", "key", 1)
    checkpoint._note("transformer", (torch.ones(1), torch.ones(1)))
    with checkpoint.running(pipe, torch.Generator(), None):
        checkpoint.step_done(pipe, 1, 4, {"latents": torch.ones(2)})
    assert "2 outputs" in checkpoint.why_not and not (tmp_path / "c").exists()


@pytest.mark.slow
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_video_made_in_parts_goes_on_in_its_first_part_alone(at, tmp_path):
    paths = write_files(tmp_path)
    pipe = RECIPES["framepack"]()
    job = make_job(job_with(RECIPES["framepack"], paths, preset="none", frames=17))
    calls = []
    whole = generate(pipe, job, on_step=lambda done, steps: calls.append(done)).frames
    assert calls == [1, 2, 1, 2]

    def on_step(done, steps):
        seen.append(done)
        if len(seen) == at:
            raise Halt

    seen, saved = [], StepCheckpoint(tmp_path / "c", "key", 1)
    with pytest.raises(Halt):
        generate(pipe, job, on_step=on_step, checkpoint=saved)
    assert ("makes its video in parts" in saved.why_not) == (at == 3)
    again = StepCheckpoint(tmp_path / "c", "key", 1)
    assert np.array_equal(generate(pipe, job, checkpoint=again).frames, whole)
    assert again.resumed_from == min(at, 2)
