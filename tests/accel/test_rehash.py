"""Step rehash on real denoisers: what is computed, what is reused, and the way back."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
)
from families import FAMILIES, MORE

import accel
from accel import AttentionConfig, Plan
from accel.config import RehashConfig, SlicingConfig
from accel.sites import denoisers

STEPS = 15
KEYS = (0, 1, 2, 5, 8, 11, 14)
FIXED = {"keys": KEYS, "steps": STEPS}


class Pipe:
    """A pipeline in the small: one denoiser, a scheduler, and diffusers' way of calling both.

    ``guided(step)``: branches of that step. ``named``: whether calls run in a cache context.
    """

    def __init__(self, family, scheduler=None, guided=lambda step: 2, named=True):
        module, self.inputs = {**FAMILIES, **MORE}[family]()
        name = "unet" if hasattr(module, "up_blocks") else "transformer"
        setattr(self, name, module)
        self.module, self.guided, self.named = module, guided, named
        self.scheduler = scheduler or FlowMatchEulerDiscreteScheduler()
        self.calls = []

    @torch.no_grad()
    def __call__(self, steps=STEPS, fail_at=None):
        key = "sample" if "sample" in self.inputs else "hidden_states"
        g = torch.Generator().manual_seed(1)
        x = torch.randn(self.inputs[key].shape, generator=g)
        self.scheduler.set_timesteps(steps)
        x = x * getattr(self.scheduler, "init_noise_sigma", 1.0)
        text = self.inputs["encoder_hidden_states"]
        for i, t in enumerate(self.scheduler.timesteps):
            if i == fail_at:
                raise RuntimeError("stopped")
            scale = getattr(self.scheduler, "scale_model_input", lambda x, t: x)
            outs = []
            for branch in range(self.guided(i)):
                inputs = {
                    **self.inputs, key: scale(x, t), "timestep": t.reshape(1),
                    "encoder_hidden_states": text * (1 - branch),
                }  # fmt: skip
                outs.append(self._call(("cond", "uncond")[branch], inputs))
            y = outs[0] if len(outs) == 1 else outs[1] + 3 * (outs[0] - outs[1])
            if y.shape != x.shape:  # image-conditioned: the condition stays
                pad = torch.zeros_like(x)
                pad[:, :, : y.shape[2]] = y
                y = pad
            x = self.scheduler.step(y, t, x, return_dict=False)[0]
        reset = getattr(self.module, "_reset_stateful_cache", None)
        if reset is not None:
            reset()
        return x

    def _call(self, branch, inputs):
        if not self.named or not hasattr(self.module, "cache_context"):
            return self.module(**inputs, return_dict=False)[0]
        with self.module.cache_context(branch):
            return self.module(**inputs, return_dict=False)[0]


def plan(attention=None, slicing=None, **settings):
    return Plan("t", attention, slicing, RehashConfig(**settings))


def counting(pipe):
    """Counts how often the first block (a UNet: the input convolution) runs."""
    part = getattr(pipe.module, "conv_in", None) or pipe.module.blocks[0].attn1
    return part.register_forward_hook(lambda *_: pipe.calls.append(1))


@pytest.mark.parametrize("family", sorted({**FAMILIES, **MORE}))
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
    assert "computed in the last run of 15 steps: 0 1 2 5 8 11 14" in str(handle.report())


def test_a_line_is_exact_where_the_output_is_one():
    """A denoiser whose output is linear in the timestep is predicted without error."""

    class Linear(torch.nn.Module):
        def forward(self, hidden_states, timestep, return_dict=True):
            return (torch.ones_like(hidden_states) * (3 * timestep.float() - 1),)

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


@pytest.mark.parametrize(
    ("family", "scheduler"),
    [("wan", FlowMatchHeunDiscreteScheduler), ("animatediff", HeunDiscreteScheduler)],
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


@pytest.mark.parametrize("level", ["output", "features"])
def test_slicing_works_in_place_beside_it(level):
    pipe = Pipe("wan")
    slicing = SlicingConfig(4, 8)
    with accel.patched(pipe, plan=plan(level=level, **FIXED)):
        alone = pipe()
    with accel.patched(pipe, plan=plan(slicing=slicing, level=level, **FIXED)) as handle:
        torch.testing.assert_close(pipe(), alone, rtol=1e-4, atol=1e-4)
        blocks = handle.report().blocks
    assert all(b.sliced and (b.in_place or b.name == "head") for b in blocks), blocks


def test_quantized_attention_repeats_instead_of_drawing_lines():
    pipe = Pipe("wan")
    int8 = AttentionConfig("int8", impl="reference")
    with accel.patched(pipe, plan=plan(int8, **FIXED)) as handle:
        assert handle._rehash.order == 0 and torch.isfinite(pipe()).all()
        assert any("quantized" in n for n in handle.report().rehash.notes)
        assert any(s.ran for s in handle.report().sites)
    with accel.patched(pipe, plan=plan(int8, order=1, **FIXED)) as handle:
        assert handle._rehash.order == 1


def test_lora_weights_are_used():
    from peft import LoraConfig

    pipe = Pipe("wan")
    accel.patch(pipe, plan=plan(**FIXED))
    without = pipe()
    pipe.module.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    changed = pipe()
    accel.unpatch(pipe)
    plain = pipe()
    assert not torch.equal(without, changed) and not torch.equal(plain, changed)
    with accel.patched(pipe, plan=plan(speedup=1.0)):
        assert torch.equal(pipe(), plain)


def test_compiled_in_place_or_wrapped():
    pipe = Pipe("wan")
    with accel.patched(pipe, plan=plan(**FIXED)):
        expected = pipe()
    pipe.module.compile(fullgraph=True, backend="eager")
    with accel.patched(pipe, plan=plan(**FIXED)) as handle:
        torch.testing.assert_close(pipe(), expected, rtol=1e-4, atol=1e-4)
        assert handle.report().rehash.calls == {"computed": 14, "reused": 16}
    with accel.patched(pipe, plan=plan(level="features", **FIXED)) as handle:
        assert any("torch.compile" in n for n in handle.report().rehash.notes)
    wrapped = Pipe("wan")
    wrapped.transformer = wrapped.module = torch.compile(
        wrapped.module, fullgraph=True, backend="eager"
    )
    with accel.patched(wrapped, plan=plan(**FIXED)) as handle:
        torch.testing.assert_close(wrapped(), expected, rtol=1e-4, atol=1e-4)
        assert handle.report().rehash.calls == {"computed": 14, "reused": 16}
    assert torch.isfinite(wrapped()).all()


@pytest.mark.parametrize(("store", "size"), [("native", 4), ("fp8", 1), ("cpu", 4)])
def test_state_is_as_small_as_said(store, size):
    """Two outputs per branch at level "output", one token stream per branch at "features"."""
    pipe = Pipe("wan")
    latent = pipe.inputs["hidden_states"].numel()
    tokens = 80 * 24
    with accel.patched(pipe, plan=plan(store=store, **FIXED)) as handle:
        assert torch.isfinite(pipe()).all()
        assert handle.report().rehash.state_bytes == 2 * 2 * latent * size
    with accel.patched(pipe, plan=plan(store=store, level="features", **FIXED)) as handle:
        assert torch.isfinite(pipe()).all()
        assert handle.report().rehash.state_bytes == 2 * tokens * size


@pytest.mark.parametrize("settings", [{}, {"level": "features"}, {"store": "fp8"}])
def test_what_decides_the_rest_of_a_run_can_be_saved(settings):
    pipe = Pipe("wan")
    handle = accel.patch(pipe, plan=plan(**settings))
    expected = pipe()
    saved, real = {}, pipe.scheduler.step

    def step(y, t, x, **kwargs):
        out = real(y, t, x, **kwargs)
        if pipe.scheduler.step_index == 7:
            saved.update(copy.deepcopy(handle.run_state()), latents=out[0].clone())
        return out

    pipe.scheduler.step = step
    assert torch.equal(pipe(), expected)
    handle = accel.patch(pipe, plan=plan(**settings))
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


def test_accelerates_hooks_stay_outside():
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    class Counting(ModelHook):
        calls = 0

        def pre_forward(self, module, *args, **kwargs):
            Counting.calls += 1
            return args, kwargs

    pipe = Pipe("wan")
    plain = pipe()
    add_hook_to_module(pipe.module, Counting())
    handle = accel.patch(pipe, plan=plan(**FIXED))
    first = pipe()
    remove_hook_from_module(pipe.module)
    assert torch.equal(pipe(), first)
    add_hook_to_module(pipe.module, Counting())
    assert torch.equal(pipe(), first) and Counting.calls == 4 * STEPS
    assert handle.report().rehash.calls["reused"] == 3 * 2 * (STEPS - len(KEYS))
    accel.unpatch(pipe)
    assert torch.equal(pipe(), plain)
    remove_hook_from_module(pipe.module)
    assert torch.equal(pipe(), plain)


def test_a_cache_of_diffusers_put_on_later_survives_unpatch():
    from diffusers import FirstBlockCacheConfig

    pipe = Pipe("wan")
    plain = pipe()
    accel.patch(pipe, plan=plan(level="features", speedup=1.0))
    pipe.module.enable_cache(FirstBlockCacheConfig(0.0))
    accel.unpatch(pipe)
    assert torch.isfinite(pipe()).all()
    pipe.module.disable_cache()
    assert torch.equal(pipe(), plain)


def test_a_dropped_pipeline_is_freed():
    pipe = Pipe("wan")
    accel.patch(pipe, plan=plan(level="features", **FIXED))
    pipe()
    alive = weakref.ref(pipe.module)
    del pipe
    gc.collect()
    assert alive() is None


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
    with pytest.raises(ValueError, match=r"tail must be less than its 2 blocks, got 2"):
        accel.patch(Pipe("wan"), plan=plan(level="features", tail=2))
    with pytest.raises(ValueError, match=r"from 1 to 1.*got 5"):
        accel.patch(Pipe("svd"), plan=plan(level="features", tail=5))
    assert not accel.patch(pipe, "lossless").report().rehash
    accel.unpatch(pipe)
