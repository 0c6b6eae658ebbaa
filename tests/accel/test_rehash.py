"""Step rehash on real denoisers: what is computed, what is reused, and the way back."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import (
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
)
from helpers.families import FAMILIES, MORE
from helpers.rehash_pipe import FIXED, KEYS, STEPS, Pipe, counting, fitted, plain_run, plan

import accel
from accel.core.structure import denoisers

EVERY = [
    pytest.param(name, marks=[pytest.mark.proof] if name in ("animatediff", "svd") else [])
    for name in sorted({**FAMILIES, **MORE})
]


@pytest.mark.slow
@pytest.mark.parametrize("family", EVERY)
@pytest.mark.parametrize("level", ["output", "features"])
def test_computing_every_step_changes_nothing_and_reuse_is_undone(family, level):
    pipe = Pipe(family)
    tail = 0 if family == "ltx" else 1  # it has one block here
    plain = pipe(9)
    keys = set(vars(pipe.module))
    accel.patch(pipe, plan=plan(speedup=1.0, level=level, tail=tail))
    assert torch.equal(pipe(9), plain)
    handle = accel.patch(pipe, plan=plan(level=level, tail=tail))
    changed = pipe(9)
    assert not torch.equal(changed, plain) and torch.isfinite(changed).all()
    report = handle.report().rehash
    assert sum(report.reused.values()) == 4 and report.calls["reused"] == 8, report
    accel.unpatch(pipe)
    assert torch.equal(pipe(9), plain)
    assert set(vars(pipe.module)) - keys <= {"_diffusers_hook"}  # cache_context makes one itself
    assert not any("accel" in str(getattr(m, "_diffusers_hook", "")) for m in pipe.module.modules())


@pytest.mark.parametrize("level", ["output", "features"])
def test_a_schedule_is_followed_in_both_branches(level):
    pipe = Pipe("wan")
    handle = accel.patch(pipe, plan=plan(level=level, **FIXED))
    hook = counting(pipe)
    pipe()
    hook.remove()
    report = handle.report().rehash
    assert report.keys == list(KEYS) and len(pipe.calls) == 2 * len(KEYS)
    assert report.calls == {"computed": 2 * len(KEYS), "reused": 2 * (STEPS - len(KEYS))}
    assert "computed steps of the last run of 15: 0 1 2 5 8 11 14" in str(handle.report())


def test_a_line_is_exact_where_the_output_is_one():
    """A denoiser whose output is linear in log(signal / noise) is predicted without error."""

    class Linear(torch.nn.Module):
        def forward(self, hidden_states, timestep, return_dict=True):
            noise = (timestep.float() / 1000).clamp(1e-3, 1 - 1e-3)
            return (torch.ones_like(hidden_states) * (3 * torch.logit(noise) - 1),)

    pipe = Pipe("wan")
    pipe.transformer = pipe.module = Linear().eval()
    pipe.inputs = {
        "hidden_states": torch.zeros(1, 4, 2, 4, 4),
        "encoder_hidden_states": torch.ones(1),
    }
    pipe._call = lambda branch, inputs: pipe.module(inputs["hidden_states"], inputs["timestep"])[0]
    plain = pipe()
    with accel.patched(pipe, plan=plan(**FIXED)):
        torch.testing.assert_close(pipe(), plain, rtol=1e-5, atol=1e-2)
    with accel.patched(pipe, plan=plan(order=0, **FIXED)):
        assert (pipe() - plain).abs().max() > 1


@pytest.mark.parametrize("named", [True, False])
def test_branches_never_mix(named):
    """The unguided branch alone gives what it gives beside the other."""
    pipe = Pipe("wan", guided=lambda step: 1, named=named)
    accel.patch(pipe, plan=plan(**FIXED))
    alone = pipe()
    seen = []
    pipe.guided = lambda step: 2
    real = pipe._call

    def only_cond(branch, inputs):
        out = real(branch, inputs)
        seen.append(branch)
        return out if branch == "cond" else seen_cond[-1]

    seen_cond = []

    def call(branch, inputs):
        out = only_cond(branch, inputs)
        if branch == "cond":
            seen_cond.append(out)
        return out

    pipe._call = call
    assert torch.equal(pipe(), alone) and set(seen) == {"cond", "uncond"}
    accel.unpatch(pipe)


@pytest.mark.parametrize("level", ["output", "features"])
def test_guidance_switched_off_and_on(level):
    """A branch that was away, and one that is new, are computed until enough is kept of them."""
    pipe = Pipe("wan", guided=lambda step: 1 if step < 6 else 2)
    handle = accel.patch(pipe, plan=plan(level=level, **FIXED))
    assert torch.isfinite(pipe()).all()
    assert any("too little was kept" in n for n in handle.report().rehash.notes)
    handle = accel.patch(pipe, plan=plan(level=level, **FIXED))
    pipe.guided = lambda step: 2 if step < 6 else 1
    pipe()
    assert handle.report().rehash.notes == []
    accel.unpatch(pipe)


def test_batched_guidance_that_ends_midway():
    """The batch shrinks: what was kept no longer fits and is dropped."""
    pipe = Pipe("wan", guided=lambda step: 1)
    real = pipe._call

    def call(branch, inputs):
        batched = pipe.scheduler.step_index is None or pipe.scheduler.step_index < 6
        size = 2 if batched else 1
        wide = {k: v.repeat(size, *[1] * (v.dim() - 1)) for k, v in inputs.items()}
        return real("cond_uncond", wide)[:1]

    pipe._call = call
    plain = pipe()
    handle = accel.patch(pipe, plan=plan(**FIXED))
    assert pipe().shape == plain.shape
    assert handle.report().rehash.keys == list(KEYS)
    assert any("too little was kept" in n for n in handle.report().rehash.notes)
    accel.unpatch(pipe)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "scheduler"),
    [("wan", FlowMatchHeunDiscreteScheduler), ("sdxl", HeunDiscreteScheduler)],
)
def test_heun_calls_twice_per_step(family, scheduler):
    pipe = Pipe(family, scheduler=scheduler())
    plain = pipe(10)
    with accel.patched(pipe, plan=plan(speedup=1.0)):
        assert torch.equal(pipe(10), plain)
    with accel.patched(pipe, plan=plan()) as handle:
        assert torch.isfinite(pipe(10)).all()
        report = handle.report().rehash
    assert report.steps == 19 and len(report.keys) == 10 and report.keys[-1] == 18


@pytest.mark.parametrize(("speedup", "said"), [(1.9, False), (2.9, False), (3.5, True)])
def test_a_rule_without_measurement_names_its_limit(speedup, said):
    pipe = Pipe("wan")
    with accel.patched(pipe, plan=plan(speedup=speedup)) as handle:
        pipe(20)
        notes = handle.report().rehash.notes
    assert any("without a measurement" in n for n in notes) == said


def test_other_step_counts_and_a_second_job():
    pipe = Pipe("wan")
    handle = accel.patch(pipe, plan=plan(**FIXED))
    first = pipe()
    assert torch.equal(pipe(), first)
    pipe(30)
    report = handle.report().rehash
    assert len(report.keys) == 14 and any("stretched to 30" in n for n in report.notes)
    pipe(8)
    report = handle.report().rehash
    assert report.keys == list(range(8)) and any("8 steps or fewer" in n for n in report.notes)
    assert torch.equal(pipe(), first)
    assert handle._rehash.branches == {}  # the pipeline's end lets go of everything
    accel.unpatch(pipe)


@pytest.mark.parametrize("level", ["output", "features"])
def test_an_exception_leaves_nothing_to_the_next_run(level):
    pipe = Pipe("wan")
    accel.patch(pipe, plan=plan(level=level, **FIXED))
    first = pipe()
    for at in (4, 9):
        with pytest.raises(RuntimeError, match="stopped"):
            pipe(fail_at=at)
        assert torch.equal(pipe(), first)
    broken = pipe.module.blocks[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pipe()
    broken.remove()
    assert torch.equal(pipe(), first)
    accel.unpatch(pipe)


@pytest.mark.parametrize(("store", "size"), [("native", 4), ("int8", 1), ("cpu", 4)])
def test_state_is_as_small_as_said(store, size):
    """Two outputs per branch at level "output", one token stream per branch at "features"."""
    pipe = Pipe("wan")
    latent, tokens = pipe.inputs["hidden_states"].numel(), 80 * 24
    channels, rows = (
        4 * n if store == "int8" else 0 for n in (pipe.inputs["hidden_states"].shape[1], 80)
    )
    with accel.patched(pipe, plan=plan(store=store, **FIXED)) as handle:
        assert torch.isfinite(pipe()).all()
        assert handle.report().rehash.state_bytes == 2 * 2 * (latent * size + channels)
    with accel.patched(pipe, plan=plan(store=store, level="features", **FIXED)) as handle:
        assert torch.isfinite(pipe()).all()
        assert handle.report().rehash.state_bytes == 2 * (tokens * size + rows)


@pytest.mark.parametrize(
    "settings",
    [{}, {"level": "features"}, {"store": "int8"}, {"store": "cpu", "entries": 5}, "measured"],
)
def test_what_decides_the_rest_of_a_run_can_be_saved(settings):
    pipe = Pipe("wan")
    chosen = fitted(plain_run(pipe)) if settings == "measured" else plan(**settings)
    handle = accel.patch(pipe, plan=chosen)
    expected = pipe()
    saved, real = {}, pipe.scheduler.step

    def step(y, t, x, **kwargs):
        out = real(y, t, x, **kwargs)
        if pipe.scheduler.step_index == 7:
            saved.update(copy.deepcopy(handle.run_state()), latents=out[0].clone())
        return out

    pipe.scheduler.step = step
    assert torch.equal(pipe(), expected)
    handle = accel.patch(pipe, plan=chosen)
    zeros, plain_call = torch.zeros_like(expected), pipe._call

    def go_on(y, t, x, **kwargs):
        if pipe.scheduler.step_index == 6 or pipe.scheduler.step_index is None:
            pass
        out = real(y, t, x, **kwargs)
        if pipe.scheduler.step_index == 7:
            handle.restore_run(saved)
            return (saved["latents"],)
        return out

    def skipped(branch, inputs):
        index = pipe.scheduler.step_index
        return zeros if index is None or index < 7 else plain_call(branch, inputs)

    pipe.scheduler.step, pipe._call = go_on, skipped
    assert torch.equal(pipe(), expected)
    accel.unpatch(pipe)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["svd", "animatediff", "sdxl"])
def test_unets_run_only_their_last_layers(family):
    pipe = Pipe(family)
    ran = []
    (module,) = denoisers(pipe).values()
    for name in ("down_blocks.0.resnets.0", "mid_block.resnets.0", "up_blocks.1.resnets.0",
                 "up_blocks.1.resnets.1", "conv_in"):  # fmt: skip
        module.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    with accel.patched(pipe, plan=plan(level="features", **FIXED)):
        assert torch.isfinite(pipe()).all()
    counts = {name: ran.count(name) for name in set(ran)}
    assert counts.pop("conv_in") == counts.pop("up_blocks.1.resnets.1") == 2 * STEPS
    assert set(counts.values()) == {2 * len(KEYS)}


def test_what_a_denoiser_cannot_do_is_said():
    pipe = Pipe("wan_vace")
    with accel.patched(pipe, plan=plan(level="features", **FIXED)) as handle:
        pipe()
        assert any("outputs instead of features" in n for n in handle.report().rehash.notes)
    with pytest.raises(ValueError, match=r"tail must be less than the 2 blocks, got 2"):
        accel.patch(Pipe("wan"), plan=plan(level="features", tail=2))
    with pytest.raises(ValueError, match=r"from 1 to 1.*got 5"):
        accel.patch(Pipe("svd"), plan=plan(level="features", tail=5))
    assert not accel.patch(pipe, "lossless").report().rehash
    accel.unpatch(pipe)


@pytest.mark.parametrize("level", ["output", "features"])
@pytest.mark.parametrize("steps", [1, 4, 8])
def test_a_distilled_model_of_few_steps_is_left_alone(level, steps, caplog):
    """Equal bits, nothing kept, said once however many runs there are."""
    pipe = Pipe("wan")
    plain = pipe(steps)
    with caplog.at_level("INFO", "accel"), accel.patched(pipe, plan=plan(level=level)) as handle:
        assert torch.equal(pipe(steps), plain) and torch.equal(pipe(steps), plain)
        report = handle.report().rehash
    assert not report.reused and report.state_bytes == 0 and report.calls["computed"] == 4 * steps
    assert report.notes == [
        "off in runs of 8 steps or fewer, which leave nothing to skip; "
        "preset 'few-step' has 8-bit layers in all of them"
    ]
    assert caplog.text.count("step rehash: off in runs of 8 steps or fewer") == 1
