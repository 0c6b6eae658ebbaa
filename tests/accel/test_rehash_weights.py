"""Measured weights: what they are, where they hold, and what happens where they do not."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from helpers.rehash_pipe import KEYS, STEPS, Pipe, fitted, plain_run

import accel
from accel import Plan
from accel.calibration.step_weights import Sampler, banks, best_keys, fit
from accel.config import RehashConfig
from accel.core.key_steps import Multistep
from accel.rehash.schedule import forced

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}


def smooth(steps=16, jobs=1):
    """A sampler by Euler's method and outputs that bend."""
    times = np.linspace(1000, 60, steps)
    u, v, w = np.random.default_rng(jobs).normal(size=(3, 60))
    outputs = np.stack(
        [u * np.tanh((t - 500) / 150) + v * t / 1000 + w * (t / 1000) ** 3 for t in times]
    )
    lengths = np.append(times[1:], 0.0) / 1000 - times / 1000
    response = np.tril(np.tile(lengths, (steps + 1, 1)), -1)
    final = response[-1] @ outputs
    gram = outputs @ outputs.T / (final @ final)
    return Sampler(gram, response, times, (0,) * steps), outputs


def returned(rows, keys, groups, outputs, depth):
    """What the sampler gets at each step."""
    at_hand = banks(keys, groups, depth)
    return np.stack([np.array(r) @ outputs[b] for r, b in zip(rows, at_hand, strict=True)])


def test_outputs_at_hand():
    assert banks([0, 1, 3], (0,) * 5, 1) == [[0], [1, 0], [1], [3, 1], [3]]
    assert banks([0, 2, 3], (0, 0, 1, 1), 2) == [[0], [0], [2], [3, 2]], "no other denoiser's"


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_errors_are_those_of_the_final_latent(depth):
    sampler, outputs = smooth()
    keys, growth = [0, 1, 2, 3, 6, 9, 12, 15], np.ones(17)
    found = fit(sampler, keys, depth, growth)
    got = returned(found.weights, keys, sampler.groups, outputs, depth)
    off = sampler.response[-1] @ (got - outputs)
    final = sampler.response[-1] @ outputs
    assert found.final == pytest.approx(float(off @ off / (final @ final)), rel=1e-6)
    rows = [len(r) for r in found.weights]
    assert rows[0] == 1 and max(rows) == depth + 1


def test_they_are_closer_than_lines():
    sampler, outputs = smooth()
    keys = [0, 1, 2, 3, 6, 9, 12, 15]
    final = sampler.response[-1] @ outputs
    lines = np.array(outputs)
    known = []
    for j, t in enumerate(sampler.times):
        if j in keys:
            known = [j, *known][:2]
        elif len(known) == 2:
            a, b = known
            part = (t - sampler.times[a]) / (sampler.times[a] - sampler.times[b])
            lines[j] = (1 + part) * outputs[a] - part * outputs[b]
    off = sampler.response[-1] @ (lines - outputs)
    found = fit(sampler, keys, 2, np.ones(17))
    assert 10 * found.final < float(off @ off / (final @ final))


def test_nothing_is_off_where_every_step_is_a_key():
    sampler, _ = smooth()
    found = fit(sampler, range(16), 2, sampler.growth(4.0, 4.0))
    assert found.final < 1e-12
    assert all(
        row == pytest.approx([1.0] + [0.0] * (len(row) - 1), abs=1e-6) for row in found.weights
    )


def test_errors_that_grow_ask_for_early_keys():
    """Outputs as unlike their neighbors early as late."""
    sampler, _ = smooth(20)
    apart = np.abs(np.subtract.outer(np.arange(20), np.arange(20)))
    sampler, must = replace(sampler, gram=np.exp(-apart / 10)), forced(20)
    keys = [
        sorted(best_keys(sampler, must, 10, 2, sampler.growth(*g)))
        for g in ((0.0, 1.0), (30.0, 4.0))
    ]
    assert all(len(k) == 10 and must <= set(k) for k in keys)
    assert sum(keys[1]) < sum(keys[0])


def test_the_search_finds_one_of_the_best():
    sampler, _ = smooth(13)
    must, growth = forced(13), np.ones(14)
    free = [j for j in range(13) if j not in must]

    def objective(keys):
        found = fit(sampler, keys, 2, growth)
        return found.final + found.apart

    every = sorted(objective(must | set(more)) for more in itertools.combinations(free, 3))
    assert objective(best_keys(sampler, must, len(must) + 3, 2, growth)) <= every[2] * (1 + 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchEulerDiscreteScheduler(),
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        FlowMatchHeunDiscreteScheduler(),
        UniPCMultistepScheduler(**FLOW, flow_shift=2.0),
        DPMSolverMultistepScheduler(**FLOW),
        DDIMScheduler(clip_sample=False),
        EulerDiscreteScheduler(),
    ],
    ids=lambda s: type(s).__name__,
)
def test_each_sampler_answers_for_itself(scheduler):
    """Impulses give the latents of a real run; fitted weights come closer to it than lines."""
    pipe = Pipe("wan", scheduler=scheduler)
    run = plain_run(pipe, 10)
    assert run.why_not_linear() == ""
    steps = len(run.times)
    keys = sorted(forced(steps) | set(range(0, steps, 3)))
    plain = pipe(10)
    off = []
    for plan in (
        fitted(run, keys, 2),
        Plan("line", None, rehash=RehashConfig(keys=tuple(keys), steps=steps)),
    ):
        with accel.patched(pipe, plan=plan) as handle:
            off.append(float((pipe(10) - plain).norm() / plain.norm()))
            assert handle.report().rehash.notes == []
            assert handle.report().rehash.keys == keys
    assert off[0] < off[1], off


def test_samplers_with_noise_or_limits_have_no_weights():
    noisy = plain_run(Pipe("wan", scheduler=EulerAncestralDiscreteScheduler()), 10)
    assert "it adds noise" in noisy.why_not_linear()
    limited = plain_run(Pipe("wan", scheduler=DDIMScheduler(clip_sample=True)), 10)
    assert "not linear" in limited.why_not_linear()


@pytest.mark.parametrize("named", [True, False])
def test_branches_are_corrected_alike(named):
    pipe = Pipe("wan", named=named)
    run = plain_run(pipe)
    with accel.patched(pipe, plan=fitted(run)) as handle:
        first = pipe()
        report = handle.report().rehash
        assert report.calls == {"computed": 2 * len(KEYS), "reused": 2 * (STEPS - len(KEYS))}
        assert report.corrected > len(KEYS) and report.corrected % 2 == 0
        assert "corrected" in str(handle.report())
        assert torch.equal(pipe(), first), "a second job"
        with pytest.raises(RuntimeError, match="stopped"):
            pipe(fail_at=7)
        assert torch.equal(pipe(), first), "after an exception"


def test_as_much_is_kept_as_the_weights_need():
    pipe = Pipe("wan")
    run, latent = plain_run(pipe), pipe.inputs["hidden_states"].numel()
    for depth, store, size in ((1, "native", 4), (3, "native", 4), (3, "int8", 1)):
        scales = 4 * pipe.inputs["hidden_states"].shape[1] if store == "int8" else 0
        with accel.patched(pipe, plan=fitted(run, depth=depth, store=store)) as handle:
            assert torch.isfinite(pipe()).all()
            assert handle.report().rehash.state_bytes == 2 * depth * (latent * size + scales)


def test_other_runs_go_on_in_lines_and_say_so():
    pipe = Pipe("wan")
    plan = fitted(plain_run(pipe))
    with accel.patched(pipe, plan=plan) as handle:
        pipe(30)
        assert any("15 steps, not 30" in n for n in handle.report().rehash.notes)
        assert handle.report().rehash.corrected == 0
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=4.0)
    with accel.patched(pipe, plan=plan) as handle:
        assert torch.isfinite(pipe()).all()
        assert any("other timesteps" in n for n in handle.report().rehash.notes)
    pipe.scheduler = FlowMatchHeunDiscreteScheduler()
    with accel.patched(pipe, plan=plan) as handle:
        assert torch.isfinite(pipe()).all()
        assert any("not FlowMatchHeun" in n for n in handle.report().rehash.notes)


@pytest.mark.parametrize("guided", [lambda s: 1 if s < 6 else 2, lambda s: 2 if s < 6 else 1])
def test_guidance_switched_on_or_off_midway(guided):
    pipe = Pipe("wan")
    plan = fitted(plain_run(pipe))
    pipe.guided = guided
    with accel.patched(pipe, plan=plan) as handle:
        assert torch.isfinite(pipe()).all()
        assert handle.report().rehash.keys == list(KEYS)


@pytest.mark.slow
def test_batched_guidance_beside_slicing_and_compilation():
    """One call for both branches: the weights are the same, and so is the video."""
    pipe = Pipe("wan", guided=lambda step: 1)
    run = plain_run(pipe)
    with accel.patched(pipe, plan=fitted(run)):
        alone = pipe()
    sliced = fitted(run)
    sliced = Plan("t", None, accel.SlicingConfig(4, 8), sliced.rehash)
    with accel.patched(pipe, plan=sliced):
        torch.testing.assert_close(pipe(), alone, rtol=1e-4, atol=1e-4)
    real = pipe._call

    def call(branch, inputs):
        wide = {k: v.repeat(2, *[1] * (v.dim() - 1)) for k, v in inputs.items()}
        return real("cond_uncond", wide)[:1]

    pipe._call = call
    with accel.patched(pipe, plan=fitted(run)):
        torch.testing.assert_close(pipe(), alone, rtol=1e-4, atol=1e-4)
    pipe._call = real
    pipe.module.compile(fullgraph=True, backend="eager")
    with accel.patched(pipe, plan=fitted(run)) as handle:
        torch.testing.assert_close(pipe(), alone, rtol=1e-4, atol=1e-4)
        assert handle.report().rehash.calls["reused"] == STEPS - len(KEYS)


@pytest.mark.slow
def test_unets_are_corrected_too():
    pipe = Pipe("animatediff", scheduler=DDIMScheduler(clip_sample=False))
    run = plain_run(pipe)
    with accel.patched(pipe, plan=fitted(run)) as handle:
        assert torch.isfinite(pipe()).all()
        assert handle.report().rehash.corrected > 0


def test_weights_are_checked_and_survive_json(tmp_path):
    plan = fitted(plain_run(Pipe("wan")))
    plan.save(tmp_path / "p.json")
    assert Plan.load(tmp_path / "p.json") == plan
    assert json.loads((tmp_path / "p.json").read_text())["rehash"]["multistep"]["sampler"]
    with pytest.raises(ValueError, match="one row for each timestep, got 1 rows for 2"):
        Multistep(((1.0,),), (2.0, 1.0), "X")
    with pytest.raises(ValueError, match="finite"):
        Multistep(((float("nan"),),), (1.0,), "X")
    with pytest.raises(ValueError, match="level 'output'"):
        RehashConfig(
            level="features", keys=(0,), steps=1, multistep=Multistep(((1.0,),), (1.0,), "X")
        )
