"""Every softmax of ten model families goes through the seam, or is named with a reason."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor
from helpers.families import FAMILIES
from helpers.runs import forward
from torch.utils._python_dispatch import TorchDispatchMode

import accel
from accel import AttentionConfig, Plan

INT8 = Plan("t", AttentionConfig("int8", impl="reference"))
TORCHS = F.scaled_dot_product_attention  # as imported, before any test patches
# Mochi pools its text tokens with an attention of its own, outside of diffusers' attention modules.
NAMED = {"mochi": {"not inside an attention module accel knows": 1}}
# Ops that take a softmax; torch's fused layers hide theirs, so they count as one themselves.
FUSED = ("_scaled_dot_product", "_native_multi_head_attention", "_transformer_encoder_layer")
PLAIN = ("_softmax", "softmax", "_safe_softmax", "_log_softmax", "_masked_softmax")


class Kernels(TorchDispatchMode):
    """Counts softmax kernels outside of torch's attention function, and those in each call of it.

    An op's own inner kernels are not seen here, so one attention counts once, fused or not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.inside = False
        self.outside: Counter[str] = Counter()
        self.per_call: list[int] = []
        self.keys: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        softmax = name in PLAIN or name.startswith(FUSED)
        if softmax and self.inside:
            self.per_call[-1] += 1
        elif softmax:
            self.outside[name] += 1
        return func(*args, **(kwargs or {}))


def attention_calls(model, monkeypatch):
    """Number of keys in each call of torch's attention in one forward, after proving that each call
    is one softmax and that no softmax is outside of them.
    """
    kernels, real = Kernels(), F.scaled_dot_product_attention

    def counted(query, key, *args, **kwargs):
        kernels.per_call.append(0)
        kernels.keys.append(key.shape[-2])
        kernels.inside = True
        try:
            return real(query, key, *args, **kwargs)
        finally:
            kernels.inside = False

    with monkeypatch.context() as patch, kernels:
        patch.setattr(F, "scaled_dot_product_attention", counted)
        forward(*model)
    assert not kernels.outside, f"softmax outside of torch's attention: {dict(kernels.outside)}"
    assert set(kernels.per_call) <= {1}, f"softmax kernels in each call: {kernels.per_call}"
    return kernels.keys


def hooks_and_processors(module):
    """Torch's attention function, every hook dict and every processor below ``module``."""
    state = {("", "function"): F.scaled_dot_product_attention}
    for name, child in module.named_modules():
        for key, value in vars(child).items():
            if "hook" in key and isinstance(value, dict):
                state[name, key] = dict(value)
        if hasattr(child, "processor"):
            state[name, "processor"] = child.processor
    return state


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_softmax_is_accounted_for(family, monkeypatch):
    model = FAMILIES[family]()
    keys = attention_calls(model, monkeypatch)
    assert max(keys, default=0) >= 64, f"too small to say anything: keys {keys}"
    with accel.patched(model[0], plan=INT8) as handle:
        forward(*model)
        report = handle.report()
    ran = sum(sum(site.ran.values()) for site in report.sites)
    kept = Counter()
    for site in report.sites:
        kept.update(site.kept)
    assert ran + kept.total() == len(keys), f"{len(keys)} attention calls, but\n{report}"
    assert all(kept), f"calls kept without a reason\n{report}"
    assert kept == NAMED.get(family, {}), str(report)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_patched_output_is_close_and_comes_back_exactly(family):
    model = FAMILIES[family]()
    plain = forward(*model)
    accel.patch(model[0], plan=INT8)
    patched = forward(*model)
    worst = max(s.error for s in accel.report(model[0]).sites if s.error is not None)
    accel.unpatch(model[0])
    assert torch.equal(forward(*model), plain) and not torch.equal(patched, plain)
    assert float((patched - plain).abs().sum() / plain.abs().sum()) < 0.05
    assert worst < 0.08


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_hooks_processors_and_torchs_function_come_back(family, monkeypatch):
    monkeypatch.setattr(F, "scaled_dot_product_attention", TORCHS)  # whatever ran before
    model = FAMILIES[family]()
    before = hooks_and_processors(model[0])
    assert any(key[1] == "processor" for key in before)
    accel.patch(model[0], plan=INT8)
    forward(*model)
    assert F.scaled_dot_product_attention is not TORCHS, "an earlier patch was not taken back"
    accel.unpatch(model[0])
    after = hooks_and_processors(model[0])
    changed = [key for key in before | after if before.get(key) != after.get(key)]
    assert not changed, f"not as before: {changed}"


def test_the_count_notices_a_softmax_outside(monkeypatch):
    model = FAMILIES["sdxl"]()
    model[0].set_attn_processor(AttnProcessor())
    with pytest.raises(AssertionError, match="outside of torch's attention"):
        attention_calls(model, monkeypatch)


@pytest.mark.parametrize("layer", ["MultiheadAttention", "TransformerEncoderLayer"])
def test_the_count_notices_torchs_fused_layers(layer):
    module = getattr(torch.nn, layer)(32, 2, batch_first=True).eval()
    x = torch.randn(1, 70, 32)
    with torch.no_grad(), Kernels() as kernels:
        module(*[x] * (3 if layer == "MultiheadAttention" else 1))
    assert kernels.outside.total() == 1


def test_a_processor_that_computes_softmax_itself_is_named():
    model = FAMILIES["sdxl"]()
    model[0].set_attn_processor(AttnProcessor())
    with accel.patched(model[0], plan=INT8) as handle:
        forward(*model)
        sites = handle.report().sites
        assert sites and all("never calls torch's attention" in s.note for s in sites)
        assert "no attention call was quantized" in str(handle.report())
