"""Block-sparse attention: the native kernel against the reference, and which blocks are chosen."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers.tensors import qkv

from accel.kernels import sparse
from accel.kernels.attention import BITS, attention, run
from accel.kernels.attention_call import AttentionCall, Options
from accel.kernels.cpu.attention import attention as native
from accel.kernels.cpu.native import library
from accel.kernels.dispatch import Decision, decide
from accel.kernels.shared_keys import shared_keys
from accel.kernels.sparse import KEY_BLOCK, POOL, QUERY_BLOCK, block_mask, computed

TIGHT = 2e-3  # as in test_cpu_attention.py: one code of P off
LSE = Options(return_lse=True)


def random_blocks(call: AttentionCall, seed: int = 0) -> torch.Tensor:
    """Half of the blocks, the first one of every query block among them."""
    size = (-(-call.shape[2] // QUERY_BLOCK), sparse.blocks(call.k))
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(*call.shape[:2], *size, generator=g) < 0.5
    mask[..., 0] = True
    return mask.to(torch.uint8)


def focused(tokens: int = 1024, dim: int = 64, heads: int = 2) -> tuple[torch.Tensor, ...]:
    """Q and K that change slowly along the tokens, so that every token attends to near ones."""
    turn = torch.linspace(0, 6.0, tokens)[:, None] * torch.linspace(0.5, 4.0, dim // 2)
    place = torch.cat([turn.sin(), turn.cos()], 1).expand(1, heads, -1, -1)
    q, k, v = qkv(tokens, tokens, dim, heads=heads)
    return 1.5 * place + 0.3 * q, 1.5 * place + 0.3 * k, v


def relative(out: torch.Tensor, exact: torch.Tensor) -> float:
    return float((out.double() - exact.double()).abs().sum() / exact.double().abs().sum())


def both(call: AttentionCall, precision: str = "int8"):
    """Result and log-sum-exp of the native kernel and of the specification."""
    ours = run(call, Decision(precision, precision, "cpu"))
    return ours, run(call, Decision(precision, precision, "reference"))


def assert_same(call: AttentionCall, precision: str = "int8") -> None:
    (out, lse), (expected, expected_lse) = both(call, precision)
    assert relative(out, expected) < TIGHT
    finite = expected_lse > -math.inf
    assert torch.equal(finite, lse > -math.inf) and finite.any()
    assert float((lse - expected_lse)[finite].abs().max()) < 1e-3


@pytest.mark.parametrize("precision", ["int8", "int6", "int4"])
@pytest.mark.parametrize("options", [LSE, replace(LSE, smooth_q=True, smooth_v=True)])
def test_a_mask_of_ones_changes_no_bit(precision, options):
    call = AttentionCall(*qkv(300, 500, 64), options=options)
    ones = replace(call, block_mask=torch.ones_like(random_blocks(call)))
    dense, sparse_ = native(call, BITS[precision]), native(ones, BITS[precision])
    assert torch.equal(dense[0], sparse_[0]) and torch.equal(dense[1], sparse_[1])


@pytest.mark.parametrize("precision", ["int8", "int6", "int4"])
@pytest.mark.parametrize(
    ("queries", "keys"), [(1, 129), (97, 300), (500, 385), (96, 128), (191, 640)]
)
def test_the_kernel_leaves_out_what_the_reference_does(precision, queries, keys):
    call = AttentionCall(*qkv(queries, keys, 64), options=LSE)
    call = replace(call, block_mask=random_blocks(call))
    assert_same(call, precision)
    if keys > 256:
        dense = run(replace(call, block_mask=None), Decision(precision, precision, "cpu"))
        assert relative(both(call, precision)[0][0], dense[0]) > 0.05


@pytest.mark.parametrize("kind", ["causal", "boolean", "additive", "lengths", "smooth_q"])
def test_it_composes_with_masks_and_options(kind):
    q, k, v = qkv(300, 420, 72, batch=2, heads=3)
    g = torch.Generator().manual_seed(2)
    call = AttentionCall(q, k, v, options=LSE)
    if kind == "causal":
        call = replace(call, is_causal=True)
    elif kind == "boolean":
        call = replace(call, attn_mask=torch.rand(2, 3, 300, 420, generator=g) > 0.4)
    elif kind == "additive":
        call = replace(call, attn_mask=torch.randn(300, 420, generator=g))
    elif kind == "lengths":
        call = replace(call, key_lengths=torch.tensor([420, 130]))
    else:
        call = replace(call, options=replace(LSE, smooth_q=True, hadamard=True))
    assert_same(replace(call, block_mask=random_blocks(call)))


def test_grouped_queries():
    q, _, _ = qkv(200, 1, 64, heads=6)
    _, k, v = qkv(1, 500, 64, heads=2, value_dim=24)
    call = AttentionCall(q, k, v, options=LSE)
    assert_same(replace(call, block_mask=random_blocks(call)))
    repeated = block_mask(q, k.repeat_interleave(3, 1), 0.5, scale=1.0)
    assert torch.equal(block_mask(q, k, 0.5, scale=1.0), repeated)


@pytest.mark.parametrize("isa", ["scalar", "emulated", "avx2", "avxvnni", "avx512vnni"])
def test_every_instruction_set_leaves_out_the_same(isa):
    lib = library().lib
    call = AttentionCall(*qkv(250, 400, 64), options=LSE)
    call = replace(call, block_mask=random_blocks(call))
    default, default_lse = native(call, 8)
    if not lib.accel_choose_isa(isa.encode()):
        pytest.skip(f"this processor has no {isa}")
    try:
        other, other_lse = native(call, 8)
    finally:
        lib.accel_choose_isa(None)
    torch.testing.assert_close(other, default, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(other_lse, default_lse, atol=1e-4, rtol=1e-4)


def test_log_sum_exp_is_of_the_kept_blocks():
    """Both halves of the keys by themselves, put together by their log-sum-exp, give the whole."""
    call = AttentionCall(*qkv(200, 512, 64), options=LSE)
    left = torch.zeros_like(random_blocks(call))
    left[..., :1] = 1
    parts = [native(replace(call, block_mask=mask), 8) for mask in (left, 1 - left)]
    whole, lse = native(call, 8)
    weights = torch.stack([part[1] for part in parts]).softmax(0)[..., None]
    together = sum(w * part[0] for w, part in zip(weights, parts, strict=True))
    torch.testing.assert_close(together, whole, atol=1e-5, rtol=1e-4)
    total = torch.logaddexp(parts[0][1], parts[1][1])
    torch.testing.assert_close(total, lse, atol=1e-5, rtol=1e-5)


def test_packed_keys_serve_slices_with_other_blocks():
    call = AttentionCall(*qkv(2 * QUERY_BLOCK, 400, 64), options=LSE)
    call = replace(call, block_mask=random_blocks(call))
    whole, _ = native(call, 8)
    with shared_keys() as store:
        for i in range(2):
            rows = slice(i * QUERY_BLOCK, (i + 1) * QUERY_BLOCK)
            mask = call.block_mask[:, :, i : i + 1].contiguous()
            part, _ = native(replace(call, q=call.q[:, :, rows], block_mask=mask), 8)
            assert torch.equal(part, whole[:, :, rows])
    assert (store.made, store.found) == (1, 1)


def test_a_row_without_blocks_gives_zeros():
    call = AttentionCall(*qkv(200, 300, 64), options=LSE)
    mask = torch.ones_like(random_blocks(call))
    mask[:, :, 1] = 0
    out, lse = native(replace(call, block_mask=mask), 8)
    rows = slice(QUERY_BLOCK, 2 * QUERY_BLOCK)
    assert not out[:, :, rows].any() and (lse[:, :, rows] == -math.inf).all()
    assert torch.isfinite(out).all() and torch.isfinite(lse[:, :, :QUERY_BLOCK]).all()


@pytest.mark.parametrize("wrong", ["size", "dtype", "strides"])
def test_a_mask_the_kernel_cannot_read_is_refused(wrong):
    call = AttentionCall(*qkv(200, 300, 64))
    mask = random_blocks(call)
    mask = {
        "size": mask[..., 1:].contiguous(),
        "dtype": mask.bool(),
        "strides": mask.mT.contiguous().mT,
    }[wrong]
    with pytest.raises(ValueError, match="block_mask must be contiguous uint8"):
        native(replace(call, block_mask=mask), 8)


@pytest.mark.parametrize(
    ("precision", "impl"), [("full", "torch"), ("full", "reference"), ("int8", "gpu")]
)
def test_a_mask_is_refused_by_what_would_not_read_it(precision, impl):
    call = AttentionCall(*qkv(200, 300, 64))
    call = replace(call, block_mask=random_blocks(call))
    with pytest.raises(ValueError, match=f"a block mask is not for {precision} by {impl}"):
        run(call, Decision(precision, precision, impl))


# ------------------------------------------------------------------------------ the chosen blocks


def by_hand(q, k, share, scale, *, is_causal=False, valid=None) -> torch.Tensor:
    """``block_mask`` of one head in loops; q [Tq, D], k [Tk, D], valid [Tk]."""
    keep = torch.zeros(-(-len(q) // QUERY_BLOCK), -(-len(k) // KEY_BLOCK), dtype=torch.uint8)
    for start in range(0, len(q), POOL):
        mean = q[start : start + POOL].double().mean(0)
        weight = torch.zeros(keep.shape[1], dtype=torch.float64)
        alone = torch.zeros_like(weight)
        for first in range(0, len(k), POOL):
            part = k[first : first + POOL].double()
            part = part if valid is None else part[valid[first : first + POOL]]
            if not len(part) or (is_causal and first > start + POOL - 1):
                continue
            weight[first // KEY_BLOCK] += len(part) * (scale * (mean @ part.mean(0))).exp()
            farthest = part[(part - part.mean(0)).square().sum(1).argmax()]
            alone[first // KEY_BLOCK] = max(
                alone[first // KEY_BLOCK], (scale * (mean @ farthest)).exp()
            )
        keep[start // QUERY_BLOCK] |= (alone > (1 - share) * weight.sum()).to(torch.uint8)
        weight /= weight.sum()
        held = 0.0
        for block in weight.argsort(descending=True).tolist():
            if held >= share:
                break
            keep[start // QUERY_BLOCK, block] = 1
            held += float(weight[block])
    if is_causal:
        keep[:, 0] = 1
    return keep


@pytest.mark.parametrize(
    ("queries", "keys"), [(1, 1), (97, 129), (300, 500), (288, 512), (65, 700)]
)
@pytest.mark.parametrize("kind", ["plain", "causal", "valid"])
def test_blocks_are_chosen_as_specified(queries, keys, kind):
    q, k, _ = qkv(queries, keys, 64, batch=2, heads=3)
    q, k = q * 3, k * 3
    valid = torch.rand(2, keys, generator=torch.Generator().manual_seed(3)) > 0.3
    valid[:, keys // 2 :] = False
    valid[:, 0] = True
    options = {"plain": {}, "causal": {"is_causal": True}, "valid": {"valid": valid}}[kind]
    mask = block_mask(q, k, 0.8, scale=0.7, **options)
    for b in range(2):
        for h in range(3):
            one = dict(options, valid=valid[b]) if kind == "valid" else options
            assert torch.equal(mask[b, h], by_hand(q[b, h], k[b, h], 0.8, 0.7, **one))
    assert mask.any(-1).all()


def test_a_key_that_draws_all_queries_is_kept():
    """Its pool's mean hides it; without it the result would be another."""
    q, k, v = focused()
    q = q + 1.0
    k[:, :, 700] = 3.0
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    drawn = (q @ k.mT * 64**-0.5).softmax(-1)[..., 700]
    assert float(drawn.mean()) > 0.3
    assert block_mask(q, k, 0.9, scale=64**-0.5)[..., 700 // KEY_BLOCK].all()
    dense = relative(attention(q, k, v, impl="cpu"), exact)
    assert relative(attention(q, k, v, impl="cpu", kept_share=0.95), exact) < dense + 0.03


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("share", [1e-9, 0.5, 0.999])
def test_every_row_sees_a_key(share, is_causal):
    q, k, v = qkv(400, 400, 64)
    call = AttentionCall(
        4 * q, 4 * k, v, is_causal=is_causal, options=replace(LSE, kept_share=share)
    )
    _, lse = run(call, decide(call, "int8", "cpu"))
    assert torch.isfinite(lse).all()


def test_padding_can_hold_anything():
    q, k, v = focused()
    lengths = torch.tensor([700])
    padded = [x.clone() for x in (k, v)]
    for x in padded:
        x[:, :, 700:] = math.nan
    expected = attention(q, k, v, impl="cpu", key_lengths=lengths, kept_share=0.9)
    out = attention(q, *padded, impl="cpu", key_lengths=lengths, kept_share=0.9)
    assert torch.equal(out, expected) and torch.isfinite(out).all()
    alone = attention(q, k[:, :, :700], v[:, :, :700], impl="cpu", kept_share=0.9)
    assert relative(out, alone) < 0.01


# --------------------------------------------------------------------------------- the public op


def test_share_one_is_dense_bit_for_bit():
    q, k, v = focused()
    assert torch.equal(
        attention(q, k, v, impl="cpu", kept_share=1.0), attention(q, k, v, impl="cpu")
    )


@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_a_larger_share_is_nearer_and_computes_more(impl):
    q, k, v = focused()
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    errors, parts = [], []
    for share in (0.5, 0.9, 0.99):
        errors.append(relative(attention(q, k, v, impl=impl, kept_share=share), exact))
        call = AttentionCall(q, k, v)
        parts.append(computed(sparse.with_block_mask(call, share, None)))
    dense = relative(attention(q, k, v, impl=impl), exact)
    assert errors[0] > errors[1] > errors[2] and errors[2] < dense + 0.01
    assert parts[0] < parts[1] < parts[2] < 0.8


def test_computed_counts_only_what_a_causal_mask_leaves():
    q, k, v = focused()
    call = AttentionCall(q, k, v, is_causal=True)
    assert computed(call) == 1.0
    call = replace(call, block_mask=torch.ones_like(random_blocks(call)))
    assert computed(call) == 1.0
    hidden = torch.zeros_like(call.block_mask)
    hidden[..., -1, :] = 1  # the last rows see all blocks
    seen = sum(min(8, ((i + 1) * QUERY_BLOCK - 1) // KEY_BLOCK + 1) for i in range(11))
    assert computed(replace(call, block_mask=hidden)) == pytest.approx(8 / seen)


@pytest.mark.parametrize("kind", ["by query", "by head", "additive"])
def test_masks_that_the_estimate_does_not_know_leave_all_blocks(kind):
    q, k, v = focused()
    keep = torch.rand(1, 2, 1024, 1024, generator=torch.Generator().manual_seed(1)) > 0.3
    mask = {"by query": keep[0, 0], "by head": keep[:, :, :1], "additive": keep[0, 0, :1].float()}[
        kind
    ]
    dense = attention(q, k, v, impl="cpu", attn_mask=mask)
    call = AttentionCall(q, k, v, mask, options=Options(kept_share=0.9))
    assert torch.equal(attention(q, k, v, impl="cpu", attn_mask=mask, kept_share=0.9), dense)
    assert sparse.why_dense(call) and decide(call, "int8", "cpu").kept_share == 1.0


def test_auto_leaves_out_blocks_only_of_long_calls(monkeypatch):
    q, k, v = focused()
    monkeypatch.setattr(sparse, "MIN_TOKENS", 1025)
    assert torch.equal(attention(q, k, v, kept_share=0.9), attention(q, k, v))
    monkeypatch.setattr(sparse, "MIN_TOKENS", 1024)
    out = attention(q, k, v, kept_share=0.9)
    assert torch.equal(out, attention(q, k, v, impl="cpu", kept_share=0.9))
    assert not torch.equal(out, attention(q, k, v))


def test_full_precision_computes_all_blocks():
    q, k, v = focused()
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert torch.equal(attention(q, k, v, precision="full", kept_share=0.5), exact)


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, math.nan])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match="kept_share must be above 0 and at most 1"):
        attention(*qkv(10, 10, 64), kept_share=share)


def test_in_a_graph():
    q, k, v = focused()
    compiled = torch.compile(
        lambda *x: attention(*x, impl="cpu", kept_share=0.8), fullgraph=True, backend="eager"
    )
    assert torch.equal(compiled(q, k, v), attention(q, k, v, impl="cpu", kept_share=0.8))


def test_a_value_that_is_not_finite_shows():
    q, k, v = focused()
    for tensor in (q, k, v):
        broken = tensor.clone()
        broken[0, 0, 5, 3] = math.nan
        changed = [broken if x is tensor else x for x in (q, k, v)]
        assert not torch.isfinite(attention(*changed, impl="cpu", kept_share=0.5)).all()
