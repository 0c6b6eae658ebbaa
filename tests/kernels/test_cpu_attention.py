"""The native kernel against the eager quantized reference, tightly, and its portable path."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.tensors import qkv

from accel.kernels.attention import BITS, attention
from accel.kernels.attention_call import AttentionCall, Options
from accel.kernels.cpu.attention import attention as native
from accel.kernels.cpu.attention import scratch_bytes
from accel.kernels.cpu.native import library

PRECISIONS = ["int8", "int6", "int4"]
# One code of P off (half-way cases of the exponential) moves a row by at most 1/127 of V's range.
TIGHT = 2e-3


def assert_tight(q, k, v, **options):
    out, lse = attention(q, k, v, impl="cpu", return_lse=True, **options)
    expected, expected_lse = attention(q, k, v, impl="reference", return_lse=True, **options)
    error = (out.double() - expected.double()).abs().sum()
    assert float(error / expected.double().abs().sum().clamp_min(1e-9)) < TIGHT
    finite = expected_lse > -math.inf
    assert torch.equal(finite, lse > -math.inf)
    if finite.any():
        assert float((lse - expected_lse)[finite].abs().max()) < 1e-3


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dim", [1, 8, 40, 64, 72, 80, 96, 128, 160, 256])
def test_head_sizes(precision, dim):
    assert_tight(*qkv(70, 131, dim), precision=precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("tokens", [1, 2, 63, 64, 65, 95, 96, 97, 127, 128, 129, 257])
def test_lengths(precision, tokens):
    assert_tight(*qkv(tokens, max(1, tokens + 3 - tokens % 7), 64), precision=precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("option", ["smooth_q", "smooth_v", "hadamard", "is_causal"])
def test_options(precision, option):
    q, k, v = qkv(150, 150, 80)
    assert_tight(q + 1.5, k - 2.0, v + 3.0, precision=precision, **{option: True})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs(dtype):
    q, k, v = qkv(100, 130, 64, dtype=dtype)
    out = attention(q, k, v, impl="cpu")
    exact = attention(q.float(), k.float(), v.float(), impl="reference")
    error = (out.float() - exact).abs().sum() / exact.abs().sum()
    assert out.dtype == dtype and float(error) < TIGHT + torch.finfo(dtype).eps / 2


FLOORS = {"int8": 0.9996, "int6": 0.999, "int4": 0.985}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("biased", [False, True])
def test_distance_to_exact_attention(precision, biased):
    """Cosine to fp64 on N(0, 1), and with loud channel biases, which smoothing takes away."""
    q, k, v = qkv(1024, 1024, 128, heads=1)
    if biased:
        loud = (torch.rand(128, generator=torch.Generator().manual_seed(1)) < 0.2).float()
        q, k, v = q + 4 * loud, k + 8 * loud, v + 8.5 * loud
    exact = attention(q.double(), k.double(), v.double(), precision="full")
    out = attention(q, k, v, impl="cpu", precision=precision, smooth_q=True, smooth_v=True)
    cosine = torch.nn.functional.cosine_similarity(out.double().flatten(), exact.flatten(), 0)
    assert float(cosine) >= FLOORS[precision]


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-8, 6.1e-5, 1.0 / 3, 65504.0, 1e5, -7e4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_of_the_output_is_torchs(dtype, value):
    v = torch.full((1, 1, 3, 16), value)
    half = v.to(dtype)
    if torch.isfinite(half).all():
        q = torch.zeros(1, 1, 2, 16, dtype=dtype)
        out = attention(q, torch.zeros(1, 1, 3, 16, dtype=dtype), half, impl="cpu", smooth_v=True)
        assert torch.equal(out, half[..., :2, :])


@pytest.mark.parametrize("kind", ["boolean", "additive", "padding", "lengths"])
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_masks(kind, precision):
    q, k, v = qkv(100, 140, 64, batch=2, heads=3)
    g = torch.Generator().manual_seed(2)
    keep = torch.rand(2, 3, 100, 140, generator=g) > 0.4
    keep[0, 0, 3] = False
    options = {
        "boolean": {"attn_mask": keep},
        "additive": {"attn_mask": torch.randn(100, 140, generator=g)},
        "padding": {"attn_mask": torch.where(keep[:, :1, :1], 0.0, -10000.0)},
        "lengths": {"key_lengths": torch.tensor([140, 0])},
    }[kind]
    assert_tight(q, k, v, precision=precision, **options)
    assert_tight(q, k, v, precision=precision, is_causal=True, smooth_q=True, **options)


def test_grouped_queries_and_another_value_width():
    q, _, _ = qkv(90, 1, 64, heads=6)
    _, k, v = qkv(1, 110, 64, heads=2, value_dim=24)
    assert_tight(q, k, v, precision="int8", enable_gqa=True)


def test_strides_beyond_32_bits_of_elements():
    """Rows far apart in 4 GiB of address space, of which only the rows are ever touched."""
    q, k, v = qkv(40, 40, 64, heads=1, dtype=torch.float16)
    buffer = torch.empty(2**31 + 4096, dtype=torch.float16)
    far = buffer.as_strided((1, 1, 40, 64), (0, 0, 2**31 // 39, 1))
    far.copy_(v)
    assert 39 * far.stride(2) > 2**31 - 64
    assert torch.equal(attention(q, k, far, impl="cpu"), attention(q, k, v, impl="cpu"))


@pytest.fixture(params=["scalar", "emulated", "avx2", "avxvnni", "avx512vnni"])
def other_isa(request):
    """Another instruction set than the default, for the length of a test."""
    lib = library().lib
    if not lib.accel_choose_isa(request.param.encode()):
        pytest.skip(f"this processor has no {request.param}")
    yield request.param
    lib.accel_choose_isa(None)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("options", [{}, {"smooth_q": True}, {"is_causal": True}])
def test_every_instruction_set_gives_the_same_numbers(precision, options, other_isa):
    q, k, v = qkv(100, 133, 72)
    smooth_q, is_causal = options.get("smooth_q", False), options.get("is_causal", False)
    how = Options(smooth_q=smooth_q, return_lse=True)
    call = AttentionCall(q, k, v, is_causal=is_causal, scale=0.1, options=how)
    other, other_lse = native(call, BITS[precision])
    assert library().lib.accel_isa().decode() == other_isa
    library().lib.accel_choose_isa(None)
    default, default_lse = native(call, BITS[precision])
    # Integers are the same; the portable exponential rounds a weight differently now and then.
    atol = 2e-3 if other_isa == "scalar" else 1e-6
    torch.testing.assert_close(other, default, atol=atol, rtol=1e-3)
    torch.testing.assert_close(other_lse, default_lse, atol=1e-4, rtol=1e-4)


def test_scratch_is_the_packed_keys_and_values_and_little_else():
    q, k, v = qkv(2000, 20_000, 128, heads=4)
    packed = 20_096 * (128 + 128)
    assert packed <= scratch_bytes(q, k, v, 8) < 1.05 * packed + 300_000 * torch.get_num_threads()


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_finite_shows(which, bad):
    tensors = qkv(50, 60, 64, heads=1)
    tensors[which][0, 0, 5, 3] = bad
    assert not torch.isfinite(attention(*tensors, impl="cpu")).all()


@pytest.mark.parametrize("case", ["zero", "constant keys", "huge values"])
def test_degenerate_inputs(case):
    q, k, v = qkv(100, 90, 64)
    if case == "zero":
        q, k, v = q * 0, k * 0, v * 0
    elif case == "constant keys":
        k = torch.full_like(k, 3.0)
    else:
        v = v * 1e30
    out = attention(q, k, v, impl="cpu")
    assert torch.isfinite(out).all()
    assert_tight(q, k, v, precision="int8")


def test_threads_do_not_change_the_result():
    q, k, v = qkv(500, 600, 64, heads=3)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(attention(q, k, v, impl="cpu"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_inputs_are_left_alone():
    tensors = qkv(70, 80, 64)
    copies = [t.clone() for t in tensors]
    attention(*tensors, impl="cpu", hadamard=True, smooth_q=True, smooth_v=True)
    assert all(torch.equal(a, b) for a, b in zip(tensors, copies, strict=True))
