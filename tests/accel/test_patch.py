"""Patch and unpatch: only instances change, and everything comes back."""

from __future__ import annotations

import copy
import gc
import threading
import weakref

import pytest
import torch
import torch.nn.functional as F
from helpers.families import FAMILIES
from helpers.proofs import backends
from helpers.runs import forward

import accel
from accel import AttentionConfig, Plan, Rule

TORCHS = F.scaled_dot_product_attention
INT8 = Plan("t", AttentionConfig("int8", impl="reference"))


@pytest.fixture
def wan():
    return FAMILIES["wan"]()


def fingerprint(module):
    """Every hook, processor and instance attribute that patching could touch."""
    state = {"sdpa": F.scaled_dot_product_attention}
    for name, child in module.named_modules():
        for key, value in vars(child).items():
            if "hook" in key and isinstance(value, dict):
                state[f"{name}.{key}"] = dict(value)
        state[f"{name}.keys"] = sorted(vars(child))
        processor = getattr(child, "processor", None)
        if processor is not None:
            state[f"{name}.processor"] = (id(processor), dict(vars(processor)))
    return state


def test_unpatch_restores_bits_hooks_and_globals(wan):
    before, plain = fingerprint(wan[0]), forward(*wan)
    handle = accel.patch(wan[0], plan=INT8)
    changed = forward(*wan)
    assert fingerprint(wan[0]) != before and handle.active
    accel.unpatch(wan[0])
    assert fingerprint(wan[0]) == before and not handle.active
    assert torch.equal(forward(*wan), plain) and not torch.equal(changed, plain)
    accel.unpatch(wan[0])  # a second time does nothing
    assert fingerprint(wan[0]) == before


def test_patching_twice_replaces_the_first(wan):
    before = fingerprint(wan[0])
    first = accel.patch(wan[0], "fast")
    second = accel.patch(wan[0], plan=INT8)
    assert not first.active and second.active
    assert accel.report(wan[0]).plan == "t"
    accel.unpatch(wan[0])
    assert fingerprint(wan[0]) == before


def test_an_exception_in_the_middle_leaves_nothing_behind(wan):
    before, plain = fingerprint(wan[0]), forward(*wan)
    accel.patch(wan[0], plan=INT8)
    broken = wan[0].blocks[1].attn1.to_out[0]
    handle = broken.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        forward(*wan)
    handle.remove()
    q = torch.randn(1, 1, 70, 16)
    counted = accel.report(wan[0]).to_dict()
    F.scaled_dot_product_attention(q, q, q)  # outside of the denoiser: not ours
    assert accel.report(wan[0]).to_dict()["sites"] == counted["sites"]
    accel.unpatch(wan[0])
    assert fingerprint(wan[0]) == before and torch.equal(forward(*wan), plain)


def test_after_an_exception_the_report_gives_no_other_reason(wan):
    model, inputs = wan
    handle = accel.patch(model, plan=INT8)
    with pytest.raises(RuntimeError):
        model(**{**inputs, "encoder_hidden_states": torch.randn(1, 3, 5)})
    assert "never calls torch's attention" not in str(handle.report())
    accel.unpatch(model)


class Pipe:
    """The least that a pipeline has."""

    def __init__(self, transformer):
        self.transformer = transformer


@pytest.mark.parametrize("replaced", [True, False])
def test_unpatch_finds_a_patch_whose_denoiser_was_replaced(wan, replaced):
    model, _ = wan
    before = fingerprint(model)
    pipe = Pipe(model)
    accel.patch(pipe, plan=INT8)
    pipe.transformer = copy.deepcopy(FAMILIES["wan"]()[0]) if replaced else model
    assert accel.is_patched(pipe)
    accel.unpatch(pipe)
    assert not accel.is_patched(pipe) and fingerprint(model) == before


def test_patched_restores_after_an_exception(wan):
    before = fingerprint(wan[0])
    with pytest.raises(RuntimeError, match="mine"), accel.patched(wan[0], plan=INT8):
        raise RuntimeError("mine")
    assert fingerprint(wan[0]) == before


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_models_at_once(order):
    models = [FAMILIES["wan"](), FAMILIES["flux"]()]
    before, plain = [fingerprint(m[0]) for m in models], [forward(*m) for m in models]
    for model in models:
        accel.patch(model[0], plan=INT8)
    alone = [forward(*m) for m in models]
    for i in order:
        accel.unpatch(models[i][0])
        assert torch.equal(forward(*models[i]), plain[i])
        other = models[1 - i]
        expected = alone[1 - i] if i == order[0] else plain[1 - i]
        assert torch.equal(forward(*other), expected)
    assert [fingerprint(m[0]) for m in models] == before


def test_two_models_in_two_threads():
    models = [FAMILIES["wan"](), FAMILIES["flux"]()]
    for model in models:
        accel.patch(model[0], plan=INT8)
    alone, found = [forward(*m) for m in models], {}

    def run(i):
        found[i] = [forward(*models[i]) for _ in range(4)]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, model in enumerate(models):
        accel.unpatch(model[0])
        assert all(torch.equal(out, alone[i]) for out in found[i])


def test_users_own_hooks_and_processors_survive(wan):
    calls = []

    class Mine(type(wan[0].blocks[0].attn1.processor)):
        def __call__(self, *args, **kwargs):
            calls.append("processor")
            return super().__call__(*args, **kwargs)

    wan[0].blocks[0].attn1.set_processor(Mine())
    kept = wan[0].blocks[0].attn1.register_forward_hook(lambda *_: calls.append("hook"))
    before, plain = fingerprint(wan[0]), forward(*wan)
    accel.patch(wan[0], plan=INT8)
    added = wan[0].blocks[1].attn1.register_forward_hook(lambda *_: calls.append("later"))
    forward(*wan)
    accel.unpatch(wan[0])
    assert calls == ["processor", "hook", "processor", "hook", "later"]
    added.remove()
    assert fingerprint(wan[0]) == before and torch.equal(forward(*wan), plain)
    kept.remove()


def test_somebody_replacing_the_function_after_us(wan, monkeypatch):
    plain = forward(*wan)
    accel.patch(wan[0], plan=INT8)
    ours = F.scaled_dot_product_attention
    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: ours(*a, **k))
        accel.unpatch(wan[0])
        assert torch.equal(forward(*wan), plain)
        accel.patch(wan[0], plan=INT8)
        accel.unpatch(wan[0])
        assert torch.equal(forward(*wan), plain)
    # Put back is our function of the first patch; dead, it passes through.
    assert F.scaled_dot_product_attention is ours and torch.equal(forward(*wan), plain)
    F.scaled_dot_product_attention = TORCHS


def test_a_dropped_pipeline_is_freed_and_takes_its_patch_along():
    before = F.scaled_dot_product_attention
    model = FAMILIES["wan"]()
    accel.patch(model[0], plan=INT8)
    forward(*model)
    alive = weakref.ref(model[0])
    del model
    gc.collect()
    assert alive() is None and F.scaled_dot_product_attention is before


def test_deep_copy_is_not_patched(wan):
    accel.patch(wan[0], plan=INT8)
    with pytest.raises(ValueError, match="not patched"):
        accel.report(copy.deepcopy(wan[0]))
    accel.unpatch(wan[0])


@pytest.mark.slow
@backends
def test_compiled_without_a_graph_break_and_back(wan, compiler):
    plain = forward(*wan)
    compiled = torch.compile(wan[0], fullgraph=True, backend=compiler)
    accel.patch(wan[0], plan=INT8)
    eager = forward(*wan)
    torch.testing.assert_close(forward(compiled, wan[1]), eager, atol=1e-3, rtol=1e-3)
    ran = sum(sum(s.ran.values()) for s in accel.report(wan[0]).sites)
    calls = sum(sum(s.ran.values()) + sum(s.kept.values()) for s in accel.report(wan[0]).sites)
    assert ran == calls == 2 * 2 * len(wan[0].blocks)
    accel.unpatch(wan[0])
    torch.testing.assert_close(forward(compiled, wan[1]), plain, atol=1e-4, rtol=1e-4)


def test_gradients_go_to_torch(wan):
    accel.patch(wan[0], plan=INT8)
    wan[0](**wan[1], return_dict=False)[0].sum().backward()
    kept = [s.kept for s in accel.report(wan[0]).sites]
    assert kept and all(set(k) == {"needs gradients"} for k in kept)
    accel.unpatch(wan[0])


def test_non_finite_result_is_recomputed_and_the_site_demoted(wan, monkeypatch):
    plain = forward(*wan)
    real = accel.attention.site.run_attention

    def bad(*args):
        out, lse = real(*args)
        return out * float("nan"), lse

    monkeypatch.setattr(accel.attention.site, "run_attention", bad)
    rules = (Rule("full", "*attn2"),)
    accel.patch(wan[0], plan=Plan("t", AttentionConfig("int8", rules, impl="reference")))
    assert torch.equal(forward(*wan), plain)
    forward(*wan)
    sites = [s for s in accel.report(wan[0]).sites if s.name.endswith("attn1")]
    why = "result not finite"
    assert all(s.recomputed == {why: 1} and s.kept == {f"demoted: {why}": 1} for s in sites)
    assert "not finite" in str(accel.report(wan[0]))
    accel.unpatch(wan[0])


def test_lossless_changes_no_bit(wan):
    plain = forward(*wan)
    with accel.patched(wan[0], "lossless"):
        assert torch.equal(forward(*wan), plain)


def test_bad_arguments_are_named(wan):
    with pytest.raises(ValueError, match="balanced"):
        accel.patch(wan[0], "balnced")
    with pytest.raises(ValueError, match="not both"):
        accel.patch(wan[0], "fast", INT8)

    class Pipe:
        components = {"vae": None}  # noqa: RUF012

    with pytest.raises(ValueError, match=r"no denoiser.*vae"):
        accel.patch(Pipe())
    with pytest.raises(ValueError, match="not patched"):
        accel.report(wan[0])
