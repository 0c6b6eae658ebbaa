"""Plans, rules, run state and quality: values in, values out."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from accel import AttentionConfig, LinearConfig, Plan, Rule
from accel.attention.policy import kept_share_at, precision_at
from accel.core.quality import psnr, ssim
from accel.core.run_state import RunState
from accel.plans import PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_plan_survives_json(name, tmp_path):
    plan = Plan.preset(name)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"attenton": {}}, "did you mean 'attention'"),
        ({"attention": {"precison": "int8"}}, "did you mean 'precision'"),
        ({"attention": {"precision": "int5"}}, "int5"),
        ({"attention": {"rules": [{"precision": "full", "start": 0.5, "end": 0.2}]}}, "start 0.5"),
        ({"attention": {"rules": [{"precision": "full", "step": 1}]}}, "'step'"),
        ({"attention": {"check_rows": -1}}, "-1"),
        ({"version": 99}, "99"),
        ([], "mapping"),
    ],
)
def test_bad_plan_is_named(data, message):
    with pytest.raises(ValueError, match=message):
        Plan.from_dict(data)


def test_plan_file_that_is_no_plan(tmp_path):
    (tmp_path / "x.json").write_text("not json")
    with pytest.raises(ValueError, match="not a plan"):
        Plan.load(tmp_path / "x.json")


def test_first_matching_rule_wins():
    config = AttentionConfig(
        "int4", rules=(Rule("full", "blocks.0.*"), Rule("int8", end=0.2), Rule("int6", start=0.9))
    )
    at = [precision_at(config, "blocks.3.attn1", step, 10) for step in range(10)]
    assert at == ["int8"] * 2 + ["int4"] * 7 + ["int6"]
    assert precision_at(config, "blocks.0.attn1", 5, 10) == "full"


def test_unknown_step_is_treated_with_the_most_accurate_precision():
    config = AttentionConfig("int4", rules=(Rule("int8", end=0.2),))
    assert precision_at(config, "blocks.3.attn1", None, None) == "int8"
    assert precision_at(AttentionConfig("int4"), "x", None, None) == "int4"


def test_a_rule_may_have_a_share_of_its_own():
    rules = (Rule("int8", end=0.2, kept_share=1.0), Rule("int6", "blocks.0.*"))
    config = AttentionConfig("int8", rules, kept_share=0.9)
    assert [kept_share_at(config, "blocks.3.attn1", k, 5) for k in range(5)] == [1.0] + [0.9] * 4
    assert kept_share_at(config, "blocks.0.attn1", 4, 5) == 0.9
    assert kept_share_at(AttentionConfig("int8", rules), "x", 4, 5) is None


def test_an_unknown_step_has_the_largest_share():
    late = Rule("int8", start=0.5, kept_share=0.8)
    assert kept_share_at(AttentionConfig(rules=(late,), kept_share=0.9), "x", None, None) == 0.9
    assert kept_share_at(AttentionConfig(rules=(late,)), "x", None, None) is None
    assert kept_share_at(AttentionConfig(kept_share=0.9), "x", None, None) == 0.9
    every = Rule("int8", kept_share=0.8)
    assert kept_share_at(AttentionConfig(rules=(every,)), "x", None, None) == 0.8


@pytest.mark.parametrize("share", [0.0, 1.5, -1, "x", True, math.nan])
def test_a_share_is_above_0_and_at_most_1(share):
    for make in (lambda: AttentionConfig(kept_share=share), lambda: Rule("int8", kept_share=share)):
        with pytest.raises(ValueError, match="kept_share must be"):
            make()


def test_linear_layers_have_no_share():
    with pytest.raises(ValueError, match="kept_share, which is attention's"):
        LinearConfig(rules=(Rule("int8", kept_share=0.9),))


def test_plans_without_a_share_are_written_as_before():
    plan = Plan(attention=AttentionConfig(rules=(Rule("int6"),)), linear=LinearConfig())
    assert "kept_share" not in json.dumps(plan.to_dict())
    plan = Plan(attention=AttentionConfig(rules=(Rule("int6", kept_share=0.5),), kept_share=0.9))
    assert plan.to_dict()["attention"]["kept_share"] == 0.9
    assert Plan.from_dict(plan.to_dict()) == plan


class Pipe:
    def __init__(self, scheduler):
        self.scheduler = scheduler


@pytest.mark.parametrize("kind", [FlowMatchEulerDiscreteScheduler, DDIMScheduler])
def test_state_follows_two_runs_of_different_length(kind):
    pipe = Pipe(kind())
    state = RunState(pipe)
    seen = []
    for steps in (4, 3):
        pipe.scheduler.set_timesteps(steps)
        sample = torch.zeros(1, 1, 2, 2)
        for t in pipe.scheduler.timesteps:
            for _ in range(2):  # conditional and unconditional call
                state.observe(t.expand(2))
                seen.append((state.refresh(), state.step, state.steps))
            sample = pipe.scheduler.step(sample, t, sample).prev_sample
    assert seen == [(r, i, n) for r, n in ((1, 4), (2, 3)) for i in range(n) for _ in range(2)]


def test_state_of_a_bare_denoiser_counts_runs_by_rising_noise():
    class Bare:
        pass

    bare = Bare()
    state = RunState(bare)
    runs = []
    for t in (900, 900, 500, 100, 900, 400):
        state.observe(torch.tensor([t]))
        runs.append(state.refresh())
    assert runs == [1, 1, 1, 1, 2, 2] and state.step is None


def test_sigma_is_the_schedulers():
    pipe = Pipe(FlowMatchEulerDiscreteScheduler())
    pipe.scheduler.set_timesteps(5)
    assert RunState(pipe).sigma == pytest.approx(float(pipe.scheduler.sigmas[0]))


def video(seed, shape=(3, 24, 32, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_psnr():
    a = video(0)
    assert psnr(a, a) == math.inf
    b = np.where(a > 127, a - 10, a + 10).astype(np.uint8)
    assert psnr(a, b) == pytest.approx(20 * math.log10(255 / 10))


def test_ssim():
    a = video(0)
    assert ssim(a, a) == pytest.approx(1.0)
    assert abs(ssim(a, video(1))) < 0.05
    flat = np.full_like(a, 100)
    shifted = flat + np.uint8(20)  # only the luminance term is left for flat pictures
    expected = (2 * 100 * 120 + 6.5025) / (100**2 + 120**2 + 6.5025)
    assert ssim(flat, shifted) == pytest.approx(expected)


def test_quality_needs_two_videos_of_one_shape():
    with pytest.raises(ValueError, match="same shape"):
        psnr(video(0), video(0, (3, 24, 30, 3)))
    with pytest.raises(ValueError, match="11 x 11"):
        ssim(video(0, (1, 8, 8, 3)), video(0, (1, 8, 8, 3)))
