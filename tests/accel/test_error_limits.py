"""What a quantized result may cost: the limit of its class, head by head, and what runs instead."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from accel import AttentionConfig
from accel.attention import check
from accel.attention import site as module
from accel.attention.call import Call, compare
from accel.attention.simpler import WITHOUT
from accel.attention.site import Site
from accel.reporting import site_report


def site(precision="int8", **config):
    state = SimpleNamespace(step=3, steps=10, sigma=0.5, refresh=lambda: 0)
    return Site("x", AttentionConfig(precision, impl="cpu", **config), state)


def normal(queries=160, keys=512, heads=4, dim=64):
    g = torch.Generator().manual_seed(1)
    return [torch.randn(1, heads, n, dim, generator=g) for n in (queries, keys, keys)]


def sink(q, k, v, heads, rows=slice(None), logit=6.0):
    """Make the first key dominate some rows of some heads."""
    to = torch.nn.functional.normalize(torch.ones(q.shape[-1]), dim=0)
    for head in heads:
        q[:, head, rows] = q[:, head, rows] * 0.3 + 4 * to
        k[:, head] *= 0.3
        k[:, head, 0] = 2 * logit * to
        v[:, head, 0] *= 0.05
    return q, k, v


def attend(at, q, k, v, causal=False):
    return at.attend(q, k, v, None, causal, None, False)


@pytest.mark.parametrize("precision", ["int8", "int6", "int4"])
@pytest.mark.parametrize("dim", [40, 64, 128])
@pytest.mark.parametrize("keys", [128, 1024])
def test_normal_data_stay_within_half_of_their_limit(precision, dim, keys):
    at = site(precision)
    attend(at, *normal(keys=keys, dim=dim))
    assert at.record.ran and not at.record.recomputed
    assert 0 < at.record.error < 1.1 * check.NORMAL[precision]


def drowned(q, k, v, heads, rows=slice(None), factor=100.0):
    """Drown what some rows of some heads look for in a loud channel of the keys."""
    for head in heads:
        k[:, head, :, 7] *= factor
        q[:, head, rows, 7] = 0
    return q, k, v


ROWS = pytest.mark.parametrize(
    ("heads", "rows"),
    [
        ((0, 1, 2, 3), slice(None)),
        ((2,), slice(None)),  # one of four heads
        ((1,), slice(0, 40)),  # a quarter of the rows of one head, such as a text's
        ((3,), slice(None, None, 4)),
    ],
)


@ROWS
@pytest.mark.parametrize("logit", [5.5, 6.0, 7.0])
def test_a_sink_stays_quantized(heads, rows, logit):
    q, k, v = sink(*normal(heads=4), heads, rows, logit)
    at = site()
    attend(at, q, k, v)
    assert at.record.ran and not at.record.recomputed and at.record.error < 0.05


@ROWS
@pytest.mark.parametrize("factor", [50.0, 100.0, 300.0])
def test_drowned_rows_leave_for_full_precision(heads, rows, factor):
    q, k, v = drowned(*normal(heads=4), heads, rows, factor)
    at = site()
    assert torch.equal(attend(at, q, k, v), F.scaled_dot_product_attention(q, k, v))
    (why,) = at.record.recomputed
    assert f"over the limit of {check.LIMITS['int8']}" in why and not at.record.ran


@pytest.mark.parametrize("causal", [False, True])
def test_what_is_too_far_off_for_a_class_passes_in_a_lower_one(causal):
    q, k, v = normal(queries=512)
    for precision, passes in (("int8", False), ("int4", True)):
        at = site(precision)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        wrong = out + 0.2 * out.abs().mean() * torch.randn_like(out)
        sample = check.sample(Call(q, k, v, None, causal, None, False), 64)
        error, _ = sample.error(wrong)
        assert 0.1 < error < 0.5
        assert (error <= check.limit(at.config, precision)) == passes


def test_an_explicit_limit_holds_for_every_precision():
    for precision in ("int8", "int6", "int4"):
        assert check.limit(AttentionConfig(precision, max_error=0.3), precision) == 0.3


def test_causal_calls_are_checked():
    q, k, v = drowned(*normal(queries=512), heads=(0, 1, 2, 3))
    exact = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    at = site()
    assert torch.equal(attend(at, q, k, v, causal=True), exact)
    assert "over the limit" in next(iter(at.record.recomputed))


@pytest.mark.parametrize("hot", [1e3, 1e4, 1e5])
def test_one_hot_value_runs_without_smooth_v(hot):
    q, k, v = normal(keys=160)
    v[0, 0, 5, 3] = hot
    exact = F.scaled_dot_product_attention(q, k, v)
    at = site()
    for _ in range(2):
        out = attend(at, q, k, v)
        assert float((out - exact).abs().sum() / exact.abs().sum()) < 0.05
    assert at.record.ran == {("int8", "cpu"): 2} and at.record.instead == {
        f"int8 {WITHOUT['unsmoothed']}": 2
    }
    assert "without smooth_v" in site_report(at).note


def test_smooth_v_stays_where_it_helps():
    q, k, v = normal()
    v += 50
    at = site("int4")
    attend(at, q, k, v)
    assert at.record.ran and not at.simpler.unsmoothed and at.record.error < 0.01


@pytest.mark.parametrize("size", [1e-13, 1e-20, 1e-35])
def test_values_however_small_are_seen(size):
    q, k, v = normal()
    exact = F.scaled_dot_product_attention(q, k, v * size)
    assert compare(torch.zeros_like(exact), exact)[0] == pytest.approx(1)
    assert compare(exact, exact)[::2] == (0, 0) and compare(exact, exact)[1] == pytest.approx(1)
    at = site()
    out = attend(at, q, k, v * size)
    assert float((out - exact).double().abs().sum() / exact.double().abs().sum()) < 0.05


def test_values_of_zero_have_no_error():
    q, k, v = normal()
    at = site()
    assert not attend(at, q, k, v * 0).any() and at.record.error == 0


@pytest.mark.parametrize("error", [MemoryError("no scratch"), RuntimeError("bad\nlaunch")])
@pytest.mark.parametrize("late", [False, True])
def test_a_kernel_that_fails_leaves_the_call_to_torch(monkeypatch, error, late):
    q, k, v = normal()
    exact, at, real = F.scaled_dot_product_attention(q, k, v), site(), module.run_attention

    def fails(*_):
        raise error

    if late:
        attend(at, q, k, v)
    monkeypatch.setattr(module, "run_attention", fails)
    assert torch.equal(attend(at, q, k, v), exact)
    (why,) = at.record.recomputed
    assert why == f"int8 by cpu failed: {type(error).__name__}: {str(error).splitlines()[0]}"
    monkeypatch.setattr(module, "run_attention", real)
    assert torch.equal(attend(at, q, k, v), exact)
    assert at.record.kept == {f"demoted: {why}": 1}


def test_an_error_of_torch_itself_is_raised(monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("mine: out of memory")

    monkeypatch.setattr(module, "run_attention", fails)
    monkeypatch.setattr(Call, "full", fails)
    with pytest.raises(RuntimeError, match="mine: out of memory"):
        attend(site(), *normal())


def test_a_decision_that_fails_leaves_the_call_to_torch(monkeypatch):
    q, k, v = normal()

    def fails(*_):
        raise ValueError("the compiler is broken")

    monkeypatch.setattr(module, "decide", fails)
    at = Site("x", AttentionConfig("int8"), site().state)
    assert torch.equal(attend(at, q, k, v), F.scaled_dot_product_attention(q, k, v))
    assert "the compiler is broken" in next(iter(at.record.kept))
    with pytest.raises(ValueError, match="compiler"):
        attend(site(), q, k, v)


def test_rows_that_drown_later_in_a_run_are_seen():
    at, (q, k, v) = site(), normal()
    attend(at, q, k, v)
    q, k, v = drowned(q, k, v, heads=(0, 1))
    at.state.step = 5
    assert torch.equal(attend(at, q, k, v), F.scaled_dot_product_attention(q, k, v))
    assert at.record.ran and "over the limit" in next(iter(at.record.recomputed))
