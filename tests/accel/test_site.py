"""A site's call: the policy gives the precision, one decision says what runs, the record says why.

What a result must be is ``test_guard``.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from accel import AttentionConfig, Rule
from accel.attention import site as module
from accel.attention.call import Call
from accel.attention.site import Site
from accel.calibration.probing import Probe, Sums
from accel.kernels import dispatch
from accel.kernels.attention_call import Options
from accel.kernels.dispatch import Decision
from accel.reporting import site_report

LOSES = "torch's own attention is faster on this card: measured 0.50x"


def state(step=3):
    """Step ``step`` of ten."""
    return SimpleNamespace(step=step, steps=10, sigma=0.5, refresh=lambda: 0)


def tensors(keys=160, queries=160):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 2, n, 64, generator=generator) for n in (queries, keys, keys)]


def attend(site, q, k, v, mask=None, scale=None):
    return site.attend(q, k, v, mask, False, scale, False)


@pytest.fixture
def four_bits_lose(monkeypatch):
    """A machine where "auto" leaves INT4 to torch and runs INT8."""

    def fastest(call, precision):
        if precision == "int4":
            return Decision(precision, "full", "torch", LOSES)
        return Decision(precision, precision, "reference")

    monkeypatch.setattr(dispatch, "_fastest", fastest)


def test_whether_a_call_pays_is_judged_by_the_rule_that_matched(four_bits_lose):
    """Not by the plan's default, which loses here."""
    site = Site("blocks.0.attn1", AttentionConfig("int4", (Rule("int8", end=0.5),)), state())
    q, k, v = tensors()
    exact = F.scaled_dot_product_attention(q, k, v)
    assert not torch.equal(attend(site, q, k, v), exact)
    assert site.record.ran == {("int8", "reference"): 1} and not site.record.kept
    site.state.step = 7
    assert torch.equal(attend(site, q, k, v), exact)
    assert site.record.ran == {("int8", "reference"): 1} and site.record.kept == {LOSES: 1}


def test_a_rule_that_loses_keeps_its_calls_though_the_default_would_win(four_bits_lose):
    site = Site("blocks.0.attn1", AttentionConfig("int8", (Rule("int4"),)), state())
    attend(site, *tensors())
    assert site.record.kept == {LOSES: 1} and not site.record.ran


@pytest.mark.parametrize(
    ("config", "change", "reason"),
    [
        (None, {}, "not inside an attention module accel knows"),
        (AttentionConfig("full"), {}, "full precision by plan"),
        (AttentionConfig("full"), {"keys": 20}, "full precision by plan"),
        (AttentionConfig(), {"keys": 20}, "20 keys, quantized attention pays from 128 on"),
        (AttentionConfig(), {"queries": 7}, "7 queries, quantized attention pays from 96 on"),
        (AttentionConfig(impl="cpu"), {"dtype": torch.float64}, "dtype float64"),
        (AttentionConfig(), {"dim": 3}, "3 dimensions, need [B, H, T, D]"),
        (AttentionConfig(), {"batch": 3}, "shapes that broadcast"),
        (AttentionConfig(), {"device": "meta"}, "meta tensors"),
    ],
)
def test_calls_that_stay_at_full_precision_say_why(config, change, reason):
    site = Site("blocks.0.attn1", config, state())
    change = dict(change)
    dtype, device = change.pop("dtype", torch.float32), change.pop("device", "cpu")
    dim, batch = change.pop("dim", 4), change.pop("batch", 1)
    q, k, v = (x.to(device, dtype) for x in tensors(**change))
    q = q.expand(batch, -1, -1, -1) if dim == 4 else q
    if dim == 3:
        q, k, v = q[0], k[0], v[0]
    out = attend(site, q, k, v)
    assert site.record.kept == {reason: 1} and not site.record.ran
    if device == "cpu":
        torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v))


@pytest.mark.parametrize("impl", ["auto", "cpu", "reference"])
def test_a_call_is_decided_once(monkeypatch, impl):
    asked = []

    def decide(call, precision, impl, timed):
        asked.append((precision, impl))
        return dispatch.decide(call, precision, impl)

    monkeypatch.setattr(module, "decide", decide)
    config = AttentionConfig("int4", (Rule("int6", end=0.5), Rule("full", start=0.9)), impl)
    site = Site("blocks.0.attn1", config, state())
    for step in (3, 7, 9):
        site.state.step = step
        attend(site, *tensors())
    assert asked == [("int6", impl), ("int4", impl)]  # what is full by plan needs no decision
    assert {precision for precision, _ in site.record.ran} == {"int6", "int4"}
    assert site.record.kept == {"full precision by plan": 1}


def test_sizes_that_are_too_short_are_decided_once(monkeypatch):
    seen, real = [], dispatch.decide
    monkeypatch.setattr(module, "decide", lambda *args: seen.append(args) or real(*args))
    site = Site("blocks.0.attn1", AttentionConfig("int8"), state())
    short = tensors(keys=20)
    for _ in range(3):
        assert torch.equal(attend(site, *short), F.scaled_dot_product_attention(*short))
    ((reason, calls),) = site.record.kept.items()
    assert len(seen) == 1 and calls == 3 and dispatch.PAYS_FROM in reason
    assert site.record.steps[3] == "full"
    attend(site, *tensors(keys=21))
    assert len(seen) == 2  # of other sizes nothing is known


def test_a_call_that_runs_in_another_precision_is_counted(monkeypatch):
    why = "this card has no four-bit tensor cores"
    monkeypatch.setattr(
        dispatch, "_fastest", lambda call, asked: Decision(asked, "int8", "reference", why)
    )
    site = Site("blocks.0.attn1", AttentionConfig("int4"), state())
    attend(site, *tensors())
    assert site.record.instead == {f"int4 ran as int8: {why}": 1}
    assert site.record.ran == {("int8", "reference"): 1} and site.record.steps[3] == "int8"


def test_options_scale_and_masks_reach_the_kernel(monkeypatch):
    seen = []
    run = module.run_attention
    monkeypatch.setattr(module, "run_attention", lambda *given: seen.append(given) or run(*given))
    config = AttentionConfig(impl="cpu", smooth_q=True, smooth_v=False, hadamard=True)
    mask = torch.rand(1, 1, 1, 160) > 0.2
    attend(Site("x", config, state()), *tensors(), mask, scale=0.3)
    ((call, decision),) = seen
    assert call.options == Options(smooth_q=True, hadamard=True) and call.scale == 0.3
    assert call.attn_mask is mask and decision == Decision("int8", "int8", "cpu")


def test_calibration_measures_what_some_precision_would_run(four_bits_lose):
    call = Call(*tensors(), None, False, None, False)

    def why(precisions, impl):
        sums = Sums(precisions, 64, impl, Options())
        return Probe("a", AttentionConfig("full"), state(), sums=sums).why_full(call)

    assert why(("int8", "int4"), "auto") == ""
    assert why(("int4",), "auto") == LOSES
    assert why(("int4",), "reference") == ""


def test_a_kept_share_leaves_out_blocks_and_the_report_says_how_many():
    def near(tokens=2304):
        place = torch.arange(tokens, dtype=torch.float32)[:, None] / tokens
        waves = torch.cat([(place * 3.14 * f).sin() for f in range(32)], 1)
        waves = torch.cat([waves, (place * 3.14 * torch.arange(32)).cos()], 1)
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(1, 1, tokens, 64, generator=generator)
        return 2 * waves[None, None], 2 * waves[None, None], noise

    config = AttentionConfig("int8", (Rule("int8", end=0.2, kept_share=1.0),), kept_share=0.95)
    dense, sparse = Site("x", config, state(1)), Site("x", config, state(3))
    first, second = attend(dense, *near()), attend(sparse, *near())
    assert dense.record.sparse_calls == 0 and sparse.record.sparse_calls == 1
    assert not torch.equal(first, second)
    assert (first - second).abs().sum() < 0.1 * first.abs().sum()
    report = site_report(sparse)
    assert 0 < report.blocks_computed < 0.8 and "share 0.95" in next(iter(
        sparse.verdicts.values())).kind  # fmt: skip
    assert sparse.record.error < 0.1


def test_blocks_are_all_computed_where_leaving_some_out_is_too_far_off():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 2304, 64, generator=generator) for _ in range(3))
    site = Site("x", AttentionConfig("int8", kept_share=0.3), state())
    dense = Site("x", AttentionConfig("int8"), state())
    for _ in range(2):
        assert torch.equal(attend(site, q, k, v), attend(dense, q, k, v))
    assert site.simpler.dense == {"int8"} and site.record.sparse_calls == 1
    assert sum(n for why, n in site.record.instead.items() if "all blocks of keys" in why) == 2
    site.enter_run(1)
    assert not site.simpler.dense
