"""Step rehash beside slicing, quantization, LoRA, compilation and other people's hooks."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from helpers.rehash_pipe import FIXED, KEYS, STEPS, Pipe, fitted, plain_run, plan

import accel
from accel import AttentionConfig
from accel.config import SlicingConfig


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


@pytest.mark.parametrize(("precision", "order"), [("int8", 1), ("int6", 0), ("int4", 0)])
def test_noisy_attention_repeats_instead_of_drawing_lines(precision, order):
    pipe = Pipe("wan")
    config = AttentionConfig(precision, impl="reference")
    with accel.patched(pipe, plan=plan(config, **FIXED)) as handle:
        assert handle._rehash.order == order and torch.isfinite(pipe()).all()
        notes = handle.report().rehash.notes
        note = f"amplify {precision.upper()} attention's noise"
        assert any(note in n for n in notes) == (order == 0)
        assert any(s.ran for s in handle.report().sites)
    with accel.patched(pipe, plan=plan(config, order=1 - order, **FIXED)) as handle:
        assert handle._rehash.order == 1 - order, "as asked"
    run = plain_run(pipe)
    with accel.patched(pipe, plan=fitted(run, attention=config)) as handle:
        assert torch.isfinite(pipe()).all() and handle.report().rehash.corrected > 0


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
    with accel.patched(pipe, plan=fitted(plain_run(pipe))):
        weighted = pipe()
    assert (weighted - plain).norm() < (changed - plain).norm(), "of the pipeline with its LoRA"


@pytest.mark.slow
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
