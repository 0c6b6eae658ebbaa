"""Poisoned attention calls: the result is always finite, and the report names what was done."""

from __future__ import annotations

import itertools

import pytest
import torch

from accel import AttentionConfig, Rule
from accel.attention.site import Site
from accel.reporting import site_report

SHAPE = (1, 2, 160, 64)


class State:
    """A run that never ends."""

    run, step, steps, sigma = 0, 3, 10, 0.5

    def refresh(self):
        return 0


def poison(kind, dtype, generator):
    """Q, K and V with one thing wrong."""
    q, k, v = (torch.randn(SHAPE, generator=generator) for _ in range(3))
    if kind == "constant":
        q, k, v = (torch.full(SHAPE, 3.0) for _ in range(3))
    elif kind == "zero":
        q, k, v = (torch.zeros(SHAPE) for _ in range(3))
    elif kind == "loud channel":
        k[..., 7], q[..., 9] = k[..., 7] * 300, q[..., 9] * 300
    elif kind == "large values":
        v *= 1e5 if dtype != torch.float16 else 3e4
    elif kind == "overflowing logits":
        q, k = q * 200, k * 200
    elif kind == "sink":
        k[:, :, 0] *= 60
        v[:, :, 0] = 0
    elif kind.startswith("nan"):
        {"q": q, "k": k, "v": v}[kind[-1]][0, 1, 5, 3] = float("nan")
    elif kind.startswith("inf"):
        {"q": q, "k": k, "v": v}[kind[-1]][0, 0, 9, 1] = float("inf")
    return [t.to(dtype) for t in (q, k, v)]


KINDS = (
    "constant", "zero", "loud channel", "large values", "overflowing logits", "sink", "nan in q",
    "nan in k", "nan in v", "inf in q", "inf in k", "inf in v",
)  # fmt: skip
CASES = list(
    itertools.product(
        KINDS, (torch.float32, torch.bfloat16, torch.float16), ("int8", "int6", "int4"), (0, 1)
    )
)


@pytest.mark.slow
def test_two_hundred_poisoned_calls_give_finite_results_and_are_named():
    assert len(CASES) >= 200
    generator, rescued = torch.Generator().manual_seed(0), 0
    for number, (kind, dtype, precision, smooth) in enumerate(CASES):
        config = AttentionConfig(precision, impl="reference", smooth_q=bool(smooth))
        site = Site(f"blocks.{number}.attn1", config, State())
        call = (*poison(kind, dtype, generator), None, False, None, False)
        first, second = site.attend(*call), site.attend(*call)
        assert torch.isfinite(first).all() and torch.isfinite(second).all(), (kind, dtype)
        assert first.dtype == dtype and first.shape == SHAPE
        report = site_report(site)
        assert report.name == f"blocks.{number}.attn1"
        assert bool(report.ran) != bool(report.recomputed)
        if report.recomputed:
            rescued += 1
            (why,) = report.recomputed
            assert "not finite" in why or "over the limit" in why
            assert any("demoted" in reason for reason in report.kept)
        if kind.startswith("nan"):
            assert "inputs replaced by finite numbers" in next(iter(report.recomputed))
        if kind in ("constant", "zero"):
            assert report.ran and report.error == pytest.approx(0, abs=0.02)
    assert rescued >= 6 * 18  # NaN and infinity, at least


def test_a_call_that_is_too_far_off_is_computed_again():
    config = AttentionConfig("int4", impl="reference", max_error=0.05)
    site = Site("blocks.0.attn1", config, State())
    q, k, v = poison("plain", torch.float32, torch.Generator().manual_seed(1))
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert torch.equal(site.attend(q, k, v, None, False, None, False), exact)
    (why,) = site_report(site).recomputed
    assert "int4 has error" in why and "over the limit of 0.05" in why


def test_each_precision_of_a_run_is_checked():
    """A plan may begin in INT8, which is near enough, and go on in INT4, which is not."""
    rules = (Rule("int8", end=0.5),)
    config = AttentionConfig("int4", rules, impl="reference", max_error=0.05)
    state = State()
    site = Site("blocks.0.attn1", config, state)
    q, k, v = poison("plain", torch.float32, torch.Generator().manual_seed(1))
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert not torch.equal(site.attend(q, k, v, None, False, None, False), exact)
    state.step = 7
    assert torch.equal(site.attend(q, k, v, None, False, None, False), exact)
    assert len(site_report(site).recomputed) == 1


@pytest.mark.parametrize("bad", [0, -1, float("nan")])
def test_the_limit_must_be_positive(bad):
    with pytest.raises(ValueError, match="max_error"):
        AttentionConfig(max_error=bad)
