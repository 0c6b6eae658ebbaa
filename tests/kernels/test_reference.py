"""The eager definitions against fp64 softmax attention, and the layout of their scales."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.tensors import qkv

from accel.kernels.masks import additive_mask
from accel.kernels.reference import (
    QuantSpec,
    full_attention,
    group_ids,
    hadamard_matrix,
    quantize,
    quantized_attention,
    round_e4m3,
)


def relative_l1(q, k, v, spec, *, mask=None):
    scale = q.shape[-1] ** -0.5
    exact, _ = full_attention(q.double(), k.double(), v.double(), scale=scale, mask=mask)
    out, _ = quantized_attention(q, k, v, spec, scale=scale, mask=mask)
    return float((out.double() - exact).abs().sum() / exact.abs().sum().clamp_min(1e-12))


# Published and re-measured errors on N(0, 1), 1024 x 64 (see the module docstring for the method).
@pytest.mark.parametrize(
    ("spec", "golden"),
    [
        (QuantSpec(8, values="full"), 0.0085),
        (QuantSpec(8, values="full", granularity="block", block_k=64), 0.0128),
        (QuantSpec(8, values="e4m3", granularity="thread", block_k=64), 0.0383),
        (QuantSpec(4, values="e4m3", granularity="thread", smooth_q=True, block_k=64), 0.1945),
    ],
)
def test_error_on_gaussian_inputs_is_the_known_one(spec, golden):
    assert relative_l1(*qkv(1024), spec) == pytest.approx(golden, rel=0.2)


def test_fewer_bits_cost_more():
    errors = [relative_l1(*qkv(1024), QuantSpec(bits)) for bits in (8, 6, 4)]
    assert errors[0] < errors[1] / 1.5 and errors[1] < errors[2] / 2


def test_smoothing_removes_channel_bias():
    q, k, v = qkv(1024)
    g = torch.Generator().manual_seed(1)
    loud = (torch.rand(64, generator=g) < 0.2).float()
    q, k = q + 4 * loud, k + 8 * loud
    bare = relative_l1(q, k, v, QuantSpec(4, values="e4m3", smooth_k=False))
    smooth_k = relative_l1(q, k, v, QuantSpec(4, values="e4m3"))
    both = relative_l1(q, k, v, QuantSpec(4, values="e4m3", smooth_q=True))
    assert smooth_k < bare / 2 and both < smooth_k / 1.5
    v = v + 8.5 * loud
    eight = relative_l1(q, k, v, QuantSpec(8, values="e4m3", smooth_q=True))
    smooth_v = relative_l1(q, k, v, QuantSpec(8, values="e4m3", smooth_q=True, smooth_v=True))
    assert smooth_v < eight / 1.5


def test_hadamard_spreads_loud_channels():
    q, k, v = qkv(1024, dim=128)
    loud = torch.ones(128)
    loud[:3] = 12.0
    plain = relative_l1(q * loud, k * loud, v, QuantSpec(8, values="full"))
    rotated = relative_l1(q * loud, k * loud, v, QuantSpec(8, values="full", hadamard=True))
    assert rotated < plain / 1.5


@pytest.mark.parametrize("values", ["int7", "int8", "e4m3"])
def test_late_small_keys_are_not_flushed(values):
    """One key far above the rest: the tail still counts, thanks to P's block-local range."""
    q, k, v = qkv(64, keys=20_000, heads=1)
    k = 0.02 * k
    q, k[..., 0, :] = q.abs(), 0.55
    v = v + 1.0
    assert relative_l1(q, k, v, QuantSpec(8, values=values, smooth_v=True)) < 0.02


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 127, 129])
def test_odd_lengths(bits, tokens):
    q, k, v = qkv(tokens, keys=max(1, tokens - 2))
    assert relative_l1(q, k, v, QuantSpec(bits)) < {4: 0.4, 6: 0.1, 8: 0.05}[bits]


@pytest.mark.parametrize("case", ["zero", "constant keys", "huge values"])
def test_degenerate_inputs_stay_finite_and_right(case):
    q, k, v = qkv(200, dim=40)
    if case == "zero":
        q, k, v = q * 0, k * 0, v * 0
    elif case == "constant keys":
        k = torch.full_like(k, 3.0)
    else:
        v = v * 6e4
    assert relative_l1(q, k, v, QuantSpec(8)) < 0.03
    out, lse = quantized_attention(q, k, v, QuantSpec(8), scale=0.2)
    assert torch.isfinite(out).all() and torch.isfinite(lse).all()


@pytest.mark.parametrize("smooth_q", [False, True])
def test_log_sum_exp_is_of_the_unsmoothed_logits(smooth_q):
    q, k, v = qkv(300, dim=80)
    k = k + 2.0
    _, exact = full_attention(q.double(), k.double(), v.double(), scale=0.1)
    _, lse = quantized_attention(q, k, v, QuantSpec(8, smooth_q=smooth_q), scale=0.1)
    assert float((lse - exact).abs().max()) < 0.02


def test_masks_combine_and_a_masked_row_is_zero():
    q, k, v = qkv(130, keys=130)
    keep = torch.rand(1, 1, 130, 130, generator=torch.Generator().manual_seed(3)) > 0.3
    keep[..., 7, :] = False
    mask = additive_mask(
        (1, 2, 130, 130),
        attn_mask=keep,
        key_lengths=torch.tensor([100]),
        is_causal=True,
        device=q.device,
        dtype=torch.float32,
    )
    position = torch.arange(130)
    expected = keep & (position < 100) & (position[None] <= position[:, None])
    assert torch.equal(mask.expand(1, 1, 130, 130) == 0, expected)
    out, lse = quantized_attention(q, k, v, QuantSpec(8), scale=0.125, mask=mask)
    assert torch.equal(out[..., 7, :], torch.zeros_like(out[..., 7, :]))
    assert (lse[..., 7] == -math.inf).all()
    assert relative_l1(q, k, v, QuantSpec(8), mask=mask) < 0.05


def test_full_attention_is_torchs():
    q, k, v = qkv(97, dim=40, keys=33)
    mask = torch.randn(1, 1, 97, 33)
    ours, _ = full_attention(q, k, v, scale=40**-0.5, mask=mask)
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_query_chunks_do_not_change_the_result(monkeypatch):
    q, k, v = qkv(700, heads=1)
    whole, _ = quantized_attention(q, k, v, QuantSpec(8, smooth_q=True), scale=0.1)
    monkeypatch.setattr("accel.kernels.reference.QUERY_ROWS", 128)
    parts, _ = quantized_attention(q, k, v, QuantSpec(8, smooth_q=True), scale=0.1)
    assert torch.equal(whole, parts)


def test_scale_groups_are_those_of_the_paper():
    queries = group_ids(256, "thread", 128, is_key=False)
    assert [int(i) for i in torch.nonzero(queries == 3)[:, 0]] == [3, 11, 19, 27]
    keys = group_ids(128, "thread", 64, is_key=True)
    first = [int(i) for i in torch.nonzero(keys == 1)[:, 0]]
    assert first == [8 * r + c for r in range(8) for c in (2, 3)]
    assert int(group_ids(130, "block", 64, is_key=True).max()) == 2


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_quantize_stays_within_half_a_scale(bits):
    x = torch.randn(3, 50, 16, generator=torch.Generator().manual_seed(0))
    x[0, 5] = 0
    codes, scale = quantize(x, bits, torch.arange(50))
    assert float(codes.abs().max()) == 2 ** (bits - 1) - 1
    assert ((codes * scale - x).abs() <= scale / 2 * 1.0001).all()


def test_e4m3_rounding():
    x = torch.tensor([0.0, 1.0, 1.06, 447.0, 1e6, -500.0, 2**-9])
    expected = torch.tensor([0.0, 1.0, 1.0, 448.0, 448.0, -448.0, 2**-9])
    assert torch.equal(round_e4m3(x), expected)


@pytest.mark.parametrize("size", [40, 64, 80, 128])
def test_hadamard_is_orthogonal(size):
    h = hadamard_matrix(size, device=torch.device("cpu"), dtype=torch.float64)
    torch.testing.assert_close(h @ h.T, torch.eye(size, dtype=torch.float64))


def test_bad_spec_names_value():
    with pytest.raises(ValueError, match="got 5"):
        QuantSpec(5)
