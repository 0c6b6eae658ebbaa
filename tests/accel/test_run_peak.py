"""The peak of a run as it runs, and tiles of the VAE as a part of a plan."""

from __future__ import annotations

import pytest
import torch
from helpers.tiny_pipelines import RECIPES

import accel
from accel.config import AttentionConfig, SlicingConfig
from accel.core.run_pipeline import call
from accel.families.components import size_of
from accel.memory.run_peak import run_peak
from accel.memory.tracker import Tracker
from accel.plans import Plan

JOB = {"prompt": "a ball", "height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def pipe():
    return RECIPES["wan"]()


def test_a_run_holds_its_weights_and_what_it_allocates(pipe):
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    weights = sum(map(size_of, parts))
    assert run_peak(pipe, lambda: None) == weights
    held = run_peak(pipe, lambda: torch.zeros(2**20, dtype=torch.uint8, device="cpu"))
    assert held == weights + 2**20


def test_kernels_run_while_tensors_are_counted_and_only_then(pipe):
    plan = Plan("t", AttentionConfig("int8", impl="reference"))
    with accel.patched(pipe, plan=plan) as handle:
        run_peak(pipe, lambda: call(pipe, JOB))
        counted = str(handle.report())
    with accel.patched(pipe, plan=plan) as handle, Tracker():
        call(pipe, JOB)
        other = str(handle.report())
    assert "12 calls in INT8 by the eager reference" in counted and "dispatch mode" not in counted
    assert "inside a dispatch mode of torch" in other


def test_tiles_are_on_while_a_plan_has_them_and_no_longer(pipe):
    before = dict(vars(pipe.vae))
    plan = Plan("t", None, SlicingConfig(1, 1, tiling=True))
    with accel.patched(pipe, plan=plan) as handle:
        assert pipe.vae.use_tiling
        assert "the VAE decodes in tiles, which changes the picture a little" in str(
            handle.report()
        )
    assert not pipe.vae.use_tiling and vars(pipe.vae).keys() == before.keys()
    assert all(vars(pipe.vae)[name] is value for name, value in before.items())
    assert Plan.from_dict(plan.to_dict()) == plan
    assert "tiling" not in Plan("t", None, SlicingConfig(2)).to_dict()["slicing"]
    with pytest.raises(ValueError, match="slicing tiling"):
        SlicingConfig(tiling=1)


def test_a_vae_without_tiles_is_said():
    pipe = RECIPES["wan"]()
    pipe.vae = type("Plain", (torch.nn.Module,), {})()
    with accel.patched(pipe, plan=Plan("t", None, SlicingConfig(1, 1, tiling=True))) as handle:
        assert "the VAE has no tiles" in str(handle.report())
