"""Every softmax of ten model families goes through the seam, or is named with a reason."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor
from families import FAMILIES
from torch.utils._python_dispatch import TorchDispatchMode

import accel
from accel import AttentionConfig, Plan

INT8 = Plan("t", AttentionConfig("int8", impl="reference"))
# Mochi pools its text tokens with an attention of its own, outside of diffusers' attention modules.
NAMED = {"mochi": {"not inside an attention module accel knows": 1}}
FUSED = ("_scaled_dot_product",)
PLAIN = ("_softmax", "softmax", "_safe_softmax", "_log_softmax")


class Kernels(TorchDispatchMode):
    """Counts attention kernels, and softmax kernels outside of torch's attention function."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = 0
        self.outside: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        softmax = name in PLAIN or name.startswith(FUSED)
        if softmax and not self.inside:
            self.outside[name] += 1
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def forward(model):
    module, inputs = model
    return module(**inputs, return_dict=False)[0]


def attention_calls(model, monkeypatch):
    """Calls of torch's attention in one forward, after proving that no softmax is outside of it."""
    kernels, calls, real = Kernels(), [], F.scaled_dot_product_attention

    def counted(*args, **kwargs):
        calls.append(1)
        kernels.inside += 1
        try:
            return real(*args, **kwargs)
        finally:
            kernels.inside -= 1

    with monkeypatch.context() as patch, kernels:
        patch.setattr(F, "scaled_dot_product_attention", counted)
        forward(model)
    assert not kernels.outside, f"softmax outside of torch's attention: {dict(kernels.outside)}"
    return len(calls)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_softmax_is_accounted_for(family, monkeypatch):
    model = FAMILIES[family]()
    calls = attention_calls(model, monkeypatch)
    assert calls
    with accel.patched(model[0], plan=INT8) as handle:
        forward(model)
        report = handle.report()
    ran = sum(sum(site.ran.values()) for site in report.sites)
    kept = Counter()
    for site in report.sites:
        kept.update(site.kept)
    assert ran + sum(kept.values()) == calls, (ran, kept, calls)
    assert kept == NAMED.get(family, {})


@pytest.mark.parametrize("family", FAMILIES)
def test_patched_output_is_close_and_comes_back_exactly(family):
    model = FAMILIES[family]()
    plain = forward(model)
    accel.patch(model[0], plan=INT8)
    patched = forward(model)
    worst = max(s.error for s in accel.report(model[0]).sites if s.error is not None)
    accel.unpatch(model[0])
    assert torch.equal(forward(model), plain) and not torch.equal(patched, plain)
    assert float((patched - plain).abs().sum() / plain.abs().sum()) < 0.05
    assert worst < 0.08


def test_the_count_notices_a_softmax_outside(monkeypatch):
    model = FAMILIES["sdxl"]()
    model[0].set_attn_processor(AttnProcessor())
    with pytest.raises(AssertionError, match="outside of torch's attention"):
        attention_calls(model, monkeypatch)


def test_a_processor_that_computes_softmax_itself_is_named():
    model = FAMILIES["sdxl"]()
    model[0].set_attn_processor(AttnProcessor())
    with accel.patched(model[0], plan=INT8) as handle:
        forward(model)
        sites = handle.report().sites
        assert sites and all("never calls torch's attention" in s.note for s in sites)
        assert "no attention call was quantized" in str(handle.report())
