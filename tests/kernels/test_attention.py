"""The public attention op: options, masks, layouts, errors, torch.library contract."""

from __future__ import annotations

import sys
from dataclasses import FrozenInstanceError

import pytest
import torch
import torch.nn.functional as F
from helpers.proofs import backends
from helpers.tensors import qkv

from accel.kernels import dispatch
from accel.kernels.attention import attention
from accel.kernels.attention_call import AttentionCall, Options
from accel.kernels.dispatch import Decision, decide
from accel.kernels.masks import seen_keys

SHAPES = [(1, 2, 64, 64, 64), (2, 3, 65, 127, 40), (1, 1, 1, 1, 128), (1, 4, 130, 77, 80)]


def close(out, exact, bound):
    error = (out.double() - exact.double()).abs().sum() / exact.double().abs().sum()
    assert out.dtype == exact.dtype and out.shape == exact.shape
    assert float(error) < bound, float(error)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("precision", "bound"), [("int8", 0.05), ("int6", 0.1), ("int4", 0.4)])
@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_near_torchs_attention(shape, precision, bound, impl):
    batch, heads, queries, keys, dim = shape
    q, k, v = qkv(queries, keys, dim, batch=batch, heads=heads)
    exact = F.scaled_dot_product_attention(q, k, v)
    close(attention(q, k, v, precision=precision, impl=impl), exact, bound)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_dtypes(dtype, impl):
    q, k, v = qkv(100, 90, 64, dtype=dtype)
    close(attention(q, k, v, impl=impl), F.scaled_dot_product_attention(q, k, v), 0.06)


def test_auto_never_takes_what_is_slower_than_torch(monkeypatch):
    meta = torch.empty(1, 1, 999, 64, device="meta")
    decision = decide(AttentionCall(meta, meta, meta), "int8", "auto")
    assert decision.impl == "torch" and "no quantized kernel for meta" in decision.why
    broken = dispatch.Impl("cpu", "", lambda device: "missing")
    monkeypatch.setattr(dispatch, "ATTENTION", (broken, dispatch.ATTENTION[1]))
    q, k, v = qkv(300, 300, 64)
    assert torch.equal(attention(q, k, v), F.scaled_dot_product_attention(q, k, v))
    assert "missing" in decide(AttentionCall(q, q, q), "int8", "auto").why


def test_auto_leaves_short_calls_to_torch():
    q, k, v = qkv(100, 20, 64)
    assert torch.equal(attention(q, k, v), F.scaled_dot_product_attention(q, k, v))
    q, k, v = qkv(300, 300, 64)
    assert not torch.equal(attention(q, k, v), F.scaled_dot_product_attention(q, k, v))


FEW_KEYS = "127 keys, quantized attention pays from 128 on"
FEW_QUERIES = "95 queries, quantized attention pays from 96 on"


@pytest.mark.parametrize(
    ("tokens", "asked", "impl", "lse", "expected"),
    [
        ((96, 128), "int6", "auto", False, ("int6", "cpu", "")),
        ((96, 127), "int6", "auto", False, ("full", "torch", FEW_KEYS)),
        ((95, 128), "int8", "auto", False, ("full", "torch", FEW_QUERIES)),
        ((95, 128), "int8", "auto", True, ("full", "torch", FEW_QUERIES)),
        ((1, 1), "int4", "cpu", False, ("int4", "cpu", "")),
        ((999, 999), "int8", "reference", False, ("int8", "reference", "")),
        ((999, 999), "full", "auto", False, ("full", "torch", "")),
        ((999, 999), "full", "auto", True, ("full", "torch", "")),
        ((999, 999), "full", "reference", False, ("full", "reference", "")),
    ],
)
def test_what_is_decided_on_the_cpu(tokens, asked, impl, lse, expected):
    q, k, v = qkv(*tokens, 64)
    call = AttentionCall(q, k, v, options=Options(return_lse=lse))
    assert decide(call, asked, impl) == Decision(asked, *expected)


def test_a_call_is_decided_once(monkeypatch):
    seen, module = [], sys.modules["accel.kernels.attention"]
    monkeypatch.setattr(module, "decide", lambda *given: seen.append(given) or decide(*given))
    for tokens in (20, 300):
        for mask in (None, torch.ones(tokens, dtype=torch.bool)):
            for precision in ("int8", "full"):
                attention(*qkv(tokens, tokens, 64), precision=precision, attn_mask=mask)
    assert len(seen) == 8


def test_what_torch_computes_has_a_gradient_and_what_the_kernel_computes_says_that_it_has_none():
    for tokens, options in ((20, {}), (300, {"precision": "full"})):
        q, k, v = qkv(tokens, tokens, 64)
        q.requires_grad_()
        attention(q, k, v, **options).sum().backward()
        found, q.grad = q.grad, None
        F.scaled_dot_product_attention(q, k, v).sum().backward()
        torch.testing.assert_close(found, q.grad)
    q, k, v = qkv(300, 300, 64)
    out = attention(q.requires_grad_(), k, v)
    with pytest.raises(RuntimeError, match="autograd"):
        out.sum().backward()


def test_a_call_cannot_be_changed():
    q, k, v = qkv(8, 9, 64, batch=2, heads=3)
    call = AttentionCall(q, k, v)
    assert call.shape == (2, 3, 8, 9) and call.softmax_scale == 0.125 and not call.masked
    with pytest.raises(FrozenInstanceError):
        call.scale = 1.0
    assert not hasattr(call, "__dict__") and not hasattr(Decision("", "", ""), "__dict__")


def test_full_precision_is_torchs_own():
    q, k, v = qkv(100, 90, 64)
    assert torch.equal(
        attention(q, k, v, precision="full"), F.scaled_dot_product_attention(q, k, v)
    )


@pytest.mark.parametrize(
    "mask",
    [
        torch.rand(2, 1, 1, 90) > 0.3,
        torch.rand(2, 3, 70, 90) > 0.3,
        torch.randn(70, 90),
        torch.where(torch.rand(2, 1, 1, 90) > 0.5, 0.0, -10000.0),
    ],
    ids=["key padding", "boolean", "additive [Tq, Tk]", "additive padding"],
)
@pytest.mark.parametrize(
    ("precision", "impl"), [("int8", "reference"), ("int8", "cpu"), ("full", "auto")]
)
def test_masks(mask, precision, impl):
    q, k, v = qkv(70, 90, 64, batch=2, heads=3)
    exact = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    close(attention(q, k, v, precision=precision, impl=impl, attn_mask=mask), exact, 0.05)


@pytest.mark.parametrize(
    ("precision", "impl"), [("int8", "reference"), ("int8", "cpu"), ("full", "auto")]
)
def test_a_mask_of_keys_alone(precision, impl):
    q, k, v = qkv(70, 90, 64)
    mask = torch.arange(90) % 3 > 0
    exact = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[None])
    close(attention(q, k, v, precision=precision, impl=impl, attn_mask=mask), exact, 0.05)


@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_causal_scale_gqa_and_lengths(impl):
    q, k, v = qkv(80, 80, 64, batch=2, heads=6, key_heads=2)
    exact = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3, enable_gqa=True)
    close(attention(q, k, v, impl=impl, is_causal=True, scale=0.3, enable_gqa=True), exact, 0.06)
    lengths = torch.tensor([80, 33])
    keep = torch.arange(80) < lengths.view(2, 1, 1, 1)
    exact = F.scaled_dot_product_attention(q, k, v, attn_mask=keep, enable_gqa=True)
    close(attention(q, k, v, impl=impl, key_lengths=lengths, enable_gqa=True), exact, 0.06)


@pytest.mark.parametrize(
    ("precision", "impl"), [("int8", "reference"), ("int8", "cpu"), ("full", "auto")]
)
def test_fully_masked_row_gives_zeros(precision, impl):
    q, k, v = qkv(70, 70, 64, heads=1)
    keep = torch.ones(70, 70, dtype=torch.bool)
    keep[5] = False
    options = {"precision": precision, "impl": impl, "attn_mask": keep}
    out, lse = attention(q, k, v, **options, return_lse=True)
    assert not out[..., 5, :].any() and lse[..., 5].item() == -float("inf")
    alone = attention(q, k, v, **options)
    torch.testing.assert_close(out, alone, atol=1e-5, rtol=1e-5)


def test_strided_views_are_read_right_and_left_alone():
    fused = torch.randn(1, 70, 3, 2, 64, generator=torch.Generator().manual_seed(0))
    q, k, v = fused.permute(2, 0, 3, 1, 4)
    before = fused.clone()
    for impl in ("reference", "cpu"):
        strided = attention(q, k, v, impl=impl)
        dense = attention(q.contiguous(), k.contiguous(), v.contiguous(), impl=impl)
        torch.testing.assert_close(strided, dense, atol=1e-6, rtol=1e-5)
    assert torch.equal(fused, before)


@pytest.mark.parametrize("option", ["smooth_q", "smooth_v", "hadamard"])
@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_options_keep_the_result(option, impl):
    q, k, v = qkv(100, 90, 64)
    exact = F.scaled_dot_product_attention(q, k, v)
    with_option = attention(q, k, v, impl=impl, **{option: True})
    close(with_option, exact, 0.05)
    assert not torch.equal(with_option, attention(q, k, v, impl=impl))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "int3"}, "int3"),
        ({"impl": "gpu"}, "gpu"),
        ({"impl": "fast"}, "fast"),
        ({"k": torch.randn(1, 2, 9, 32)}, "fit together"),
        ({"k": torch.randn(1, 2, 9, 64).half()}, "float16"),
        ({"q": torch.randn(2, 8, 64)}, "B, H, T, D"),
        ({"attn_mask": torch.ones(3, 9, dtype=torch.bool)}, "does not broadcast"),
        ({"attn_mask": torch.ones(8, 9, dtype=torch.int32)}, "int32"),
        ({"key_lengths": torch.tensor([1, 2])}, "key_lengths"),
        ({"k": torch.randn(1, 1, 9, 64), "v": torch.randn(1, 1, 9, 64)}, "enable_gqa"),
    ],
)
def test_bad_input_is_named(change, message):
    q, k, v = qkv(8, 9, 64)
    arguments = {"q": q, "k": k, "v": v, **change}
    with pytest.raises((ValueError, RuntimeError), match=message):
        attention(arguments.pop("q"), arguments.pop("k"), arguments.pop("v"), **arguments)


def test_named_impl_that_cannot_run_says_what_can():
    q, k, v = qkv(8, 9, 64)
    with pytest.raises((RuntimeError, ValueError), match="reference"):
        attention(q, k, v, impl="gpu")


def test_torch_library_contract():
    q, k, v = qkv(65, 70, 64)
    mask = torch.rand(1, 1, 1, 70) > 0.2
    for lse in (False, True):
        arguments = (q, k, v, "int8", "cpu", mask, None, False, 0.1, True, False, False, lse)
        torch.library.opcheck(torch.ops.accel.attention.default, arguments)


@backends
def test_compiles_without_a_break(compiler):
    q, k, v = qkv(65, 70, 64)
    options = {"precision": "int4", "impl": "cpu"}
    compiled = torch.compile(
        lambda *x: attention(*x, **options) * 2, fullgraph=True, backend=compiler
    )
    assert torch.equal(compiled(q, k, v), attention(q, k, v, **options) * 2)


@pytest.mark.parametrize("impl", ["reference", "cpu"])
@pytest.mark.parametrize("kind", ["boolean", "additive", "lengths"])
def test_what_is_masked_cannot_disturb_the_rest(impl, kind):
    q, k, v = qkv(70, 200, 64, batch=2)
    seen = torch.tensor([40, 150])
    keep = torch.arange(200) < seen.view(2, 1, 1, 1)
    options = {
        "boolean": {"attn_mask": keep},
        "additive": {"attn_mask": torch.where(keep, 0.0, -10000.0)},
        "lengths": {"key_lengths": seen},
    }[kind]
    exact = F.scaled_dot_product_attention(q, k, v, attn_mask=keep)
    hidden = ~keep.transpose(-1, -2)
    k, v = k.masked_fill(hidden, 500.0), v.masked_fill(hidden, -3e4)
    close(attention(q, k, v, impl=impl, smooth_v=True, **options), exact, 0.03)


def test_seen_keys_are_told_only_where_some_are_hidden():
    k = torch.zeros(2, 1, 4, 8)
    assert seen_keys(None, None, k) is None
    assert seen_keys(torch.ones(3, 4, dtype=torch.bool), torch.tensor([4, 4]), k) is None
    found = seen_keys(None, torch.tensor([1, 0]), k)  # an entry without any key sees all
    assert found.tolist() == [[True, False, False, False], [True] * 4]
    additive = torch.tensor([0.0, -999.0, -1000.0, -torch.inf])
    assert seen_keys(additive, None, k).tolist() == [[True, True, False, False]] * 2
