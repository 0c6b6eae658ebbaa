"""On a card nothing is read per call: checks wait for the end of the denoiser's call.

Reads are counted on the CPU, where a stand-in says that reading waits.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from helpers.rehash_pipe import Pipe

import accel
from accel import AttentionConfig, LinearConfig, Plan, RehashConfig
from accel.attention import deferred, site
from accel.attention.deferred import AGAIN
from accel.core import run_state

STEPS, BRANCHES = 8, 2
ATTENTION = AttentionConfig("int8", impl="cpu")
PLANS = {
    "attention": Plan("t", ATTENTION),
    "layers": Plan("t", None, linear=LinearConfig(impl="cpu", min_rows=8)),
    "both": Plan("t", ATTENTION, linear=LinearConfig(impl="cpu", min_rows=8)),
}
READS = ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "cpu", "numpy")


@pytest.fixture
def on_a_card(monkeypatch):
    """Let the CPU count as a device where reading waits."""
    for module in (deferred, run_state):
        monkeypatch.setattr(module, "reading_waits", lambda device: True)
    monkeypatch.setattr("accel.patching.may_wait", lambda: True)


@pytest.fixture
def reads(monkeypatch):
    """Count reads of values by step."""
    found: Counter[int] = Counter()
    at = [0]

    def count(real):
        def counted(*args, **kwargs):
            found[at[0]] += 1
            return real(*args, **kwargs)

        return counted

    for name in READS:
        monkeypatch.setattr(torch.Tensor, name, count(getattr(torch.Tensor, name)))
    return found, at


def run(at=None, steps=STEPS, **how):
    """Return the result of a run whose steps are noted in ``at``."""
    pipe = Pipe("wan")

    def guided(step):
        if at is not None:
            at[0] = step
        return BRANCHES

    pipe.guided = guided
    handle = accel.patch(pipe, **how) if how else None
    out = pipe(steps)
    return out, handle


@pytest.mark.parametrize("name", PLANS)
def test_reads_do_not_grow_with_attention_calls_and_layers(on_a_card, reads, name):
    found, at = reads
    run(at)
    plain = dict(found)
    found.clear()
    at[0] = 0
    _, handle = run(at, plan=PLANS[name])
    more = {step: found[step] - plain.get(step, 0) for step in range(1, STEPS)}
    assert set(more.values()) == {BRANCHES}  # all checks of a denoiser call at once
    assert found[0] - plain[0] > BRANCHES  # a site's first call is read at once
    quantized = handle.report()
    assert all(s.error is not None for s in quantized.sites + quantized.layers if s.ran)


@pytest.mark.parametrize("name", PLANS)
def test_the_result_is_that_of_checks_at_once(on_a_card, monkeypatch, name):
    later, _ = run(plan=PLANS[name])
    monkeypatch.undo()
    assert torch.equal(later, run(plan=PLANS[name])[0])


def poisoned(monkeypatch, calls, how):
    """Let our kernel's results be ``how(out)`` at some of its calls."""
    real, count = site.run_attention, [0]

    def attention(*given):
        out, lse = real(*given)
        count[0] += 1
        return (how(out) if count[0] in calls else out), lse

    monkeypatch.setattr(site, "run_attention", attention)


def nan(out):
    return out.masked_fill(torch.ones_like(out, dtype=torch.bool), float("nan"))


def test_a_bad_result_is_computed_again_by_the_denoiser(on_a_card, monkeypatch):
    sites = len([s for s in run(plan=PLANS["attention"])[1].report().sites if s.ran])
    bad = 3 * BRANCHES * sites + 2  # the second site of a call in the fourth step
    poisoned(monkeypatch, {bad}, nan)
    out, handle = run(plan=PLANS["attention"])
    assert torch.isfinite(out).all()
    report = handle.report()
    blamed = [s for s in report.sites if s.recomputed]
    assert [s.recomputed for s in blamed] == [{f"result not finite; {AGAIN}": 1}]
    assert all(why.startswith("demoted: result not finite") for why in blamed[0].kept)
    plain, _ = run()
    assert (out - plain).abs().mean() < 0.05 * plain.abs().mean()


def test_whatever_goes_on_being_bad_ends_at_full_precision(on_a_card, monkeypatch):
    poisoned(monkeypatch, range(20, 10**6), nan)
    out, handle = run(plan=PLANS["attention"])
    assert torch.isfinite(out).all()
    again = sum(n for s in handle.report().sites for n in s.recomputed.values())
    assert again == len([s for s in handle.report().sites if s.ran])


def test_an_error_that_grows_late_is_found(on_a_card, monkeypatch):
    poisoned(monkeypatch, range(17, 10**6), lambda out: 2 * out)
    out, handle = run(plan=PLANS["attention"])
    why = [w for s in handle.report().sites for w in s.recomputed]
    assert why and all("over the limit" in w and AGAIN in w for w in why)
    plain, _ = run()
    assert (out - plain).abs().mean() < 0.5 * plain.abs().mean()


def test_step_rehash_keeps_the_good_output(on_a_card, monkeypatch):
    poisoned(monkeypatch, {9}, nan)
    out, handle = run(steps=12, plan=Plan("t", ATTENTION, rehash=RehashConfig(speedup=1.5)))
    assert torch.isfinite(out).all()
    assert sum(handle.report().rehash.reused.values())


def test_nothing_is_deferred_on_the_cpu():
    _, handle = run(plan=PLANS["both"])
    assert all(s.checks is None for s in handle.sites.values())
    handle.unpatch()


def test_unpatching_takes_the_hook_away(on_a_card):
    pipe = Pipe("wan")
    before = dict(vars(pipe.module))
    handle = accel.patch(pipe, plan=PLANS["both"])
    assert "accel_checks" in pipe.module._diffusers_hook.hooks
    handle.unpatch()
    assert vars(pipe.module).keys() == before.keys()
