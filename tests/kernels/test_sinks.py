"""Keys that dominate a row (attention sinks): INT8 on the CPU keeps what they hide."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers.sinks import PLACES, with_sinks
from helpers.tensors import qkv, relative_l1

from accel.kernels import reference, reference_sinks
from accel.kernels.attention import BITS, attention, spec_of
from accel.kernels.attention_call import PLAIN, AttentionCall, Options
from accel.kernels.cpu.attention import attention as native
from accel.kernels.cpu.native import library

MOST = 0.05  # relative L1 of INT8; sinks that are not spared cost up to 1
GAPS = (0, 2, 3, 4, 5, 5.5, 6, 7, 9, 12)


def exact(q, k, v, **options):
    return attention(q.double(), k.double(), v.double(), precision="full", **options)


def error(tensors, **options):
    out = attention(*tensors, impl="cpu", **options)
    return relative_l1(out, exact(*tensors))


@pytest.mark.parametrize("keys", [128, 300, 1024])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("sinks", [1, 3, 8])
@pytest.mark.parametrize("size", [1.0, 0.3, 0.05, 0.0])
def test_int8_stays_accurate_under_sinks(keys, place, sinks, size):
    errors = {
        (gap, spread): error(
            with_sinks(keys, gap, place=place, sinks=sinks, size=size, spread=spread)
        )
        for gap in GAPS
        for spread in (1.0, 0.3)
    }
    assert max(errors.values()) <= MOST, errors


@pytest.mark.parametrize("dim", [40, 128])
@pytest.mark.parametrize("smooth_v", [False, True])
@pytest.mark.parametrize("jitter", [0.0, 2.0])
def test_head_sizes_uneven_sinks_and_values_with_a_mean(dim, smooth_v, jitter):
    for gap in (4, 5.5, 7, 9):
        q, k, v = with_sinks(640, gap, dim, place="every", sinks=2, jitter=jitter)
        assert error((q, k, v), smooth_v=smooth_v) <= MOST
        assert error((q, k, v + 1), smooth_v=smooth_v) <= MOST


def test_the_case_is_what_it_says():
    """Without the rule, the same cases are far off: so the tests above test it."""
    for gap, least in ((4, 0.045), (5.5, 0.15), (7, 0.3), (12, 0.9)):
        q, k, v = with_sinks(512, gap, place="every", size=0.0)
        spec = replace(spec_of("int8", q.device, PLAIN), values="int8")  # the same, V in 8 bits
        out, _ = reference.quantized_attention(q, k, v, spec, scale=0.125)
        assert relative_l1(out, exact(q, k, v)) > least


@pytest.mark.parametrize("precision", ["int8", "int6", "int4"])
@pytest.mark.parametrize("options", [{}, {"smooth_q": True, "smooth_v": True}, {"hadamard": True}])
@pytest.mark.parametrize("mask", ["none", "causal", "boolean", "lengths"])
def test_native_is_the_specification(precision, options, mask):
    for place, sinks, size in (("first", 1, 0.05), ("every", 3, 0.0), ("one", 2, 1.0)):
        q, k, v = with_sinks(300, 6.5, place=place, sinks=sinks, size=size, queries=300, heads=2)
        keep = torch.rand(300, 300, generator=torch.Generator().manual_seed(1)) > 0.3
        masks = {"none": {}, "causal": {"is_causal": True}, "boolean": {"attn_mask": keep}}
        masks["lengths"] = {"key_lengths": torch.tensor([201])}
        how = {"precision": precision, "return_lse": True, **options, **masks[mask]}
        out, lse = attention(q, k, v, impl="cpu", **how)
        expected, expected_lse = attention(q, k, v, impl="reference", **how)
        assert relative_l1(out, expected) < 2e-3  # a code that rounds differently now and then
        assert float((lse - expected_lse).abs().max()) < 1e-2  # a code of Q that rounds differently


@pytest.mark.parametrize("isa", ["scalar", "emulated", "avx2", "avxvnni", "avx512vnni"])
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_every_instruction_set_agrees(isa, precision):
    lib = library().lib
    q, k, v = with_sinks(300, 6.5, 72, place="every", sinks=2, queries=100)
    call = AttentionCall(q, k, v, options=Options(return_lse=True))
    expected, expected_lse = native(call, BITS[precision])
    if not lib.accel_choose_isa(isa.encode()):
        pytest.skip(f"this processor has no {isa}")
    try:
        out, lse = native(call, BITS[precision])
    finally:
        lib.accel_choose_isa(None)
    torch.testing.assert_close(out, expected, atol=2e-3 if isa == "scalar" else 1e-5, rtol=1e-3)
    torch.testing.assert_close(lse, expected_lse, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_are_read_as_they_lie(dtype):
    """Dominating keys take V from the caller's tensor: any type, strides, and shared heads."""
    q, k, v = (x.to(dtype) for x in with_sinks(256, 7, 40, place="every", sinks=2, heads=2))
    out = attention(q, k, v, impl="cpu")
    wide = torch.zeros(1, 256, 2, 80, dtype=dtype)
    apart = wide[..., ::2].transpose(1, 2)
    apart.copy_(v)
    assert not apart.is_contiguous()
    assert torch.equal(attention(q, k, apart, impl="cpu"), out)
    one = attention(q, k[:, :1], v[:, :1], impl="cpu", enable_gqa=True)
    both = attention(q, k[:, :1].expand(-1, 2, -1, -1), v[:, :1].expand(-1, 2, -1, -1), impl="cpu")
    assert torch.equal(one, both)


def test_plain_attention_keeps_nearly_all_rows_as_they_were():
    """On N(0, 1) few rows have keys taken out: that is what the rule may cost."""
    q, k, v = qkv(256, 2048, 64, heads=1)
    seen = []

    def counted(p, block, levels, earlier, gain, total):
        found, loss = real(p, block, levels, earlier, gain, total)
        plain = (p * levels).round() / levels @ block.codes * block.scale[..., :1, :]
        seen.append((found - plain).abs().amax(-1) > 1e-3)
        return found, loss

    real, reference_sinks.product = reference_sinks.product, counted
    try:
        attention(q, k, v, impl="reference")
    finally:
        reference_sinks.product = real
    share = float(torch.stack(seen).float().mean())
    assert len(seen) == 16 and share < 0.02


def test_one_key_and_blocks_of_nothing():
    q, k, v = qkv(100, 1, 64)
    torch.testing.assert_close(attention(q, k, v, impl="cpu"), v.expand(-1, -1, 100, -1))
    q, k, v = qkv(100, 256, 64)
    mask = torch.zeros(256, dtype=torch.bool)
    mask[200] = True
    out, lse = attention(q, k, v, impl="cpu", attn_mask=mask, return_lse=True)
    torch.testing.assert_close(out, v[..., 200:201, :].expand(-1, -1, 100, -1))
    assert torch.isfinite(lse).all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_sink_that_is_not_finite_shows(value):
    q, k, v = with_sinks(256, 7)
    v[0, 0, 0, 3] = value
    assert not torch.isfinite(attention(q, k, v, impl="cpu")).all()
