"""What skipped outputs are predicted by: weights, the choice among them, and what it costs."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from diffusers import FlowMatchHeunDiscreteScheduler
from helpers.rehash_pipe import STEPS, Pipe, plan

import accel
from accel import RehashConfig
from accel.memory.fit import Kept
from accel.rehash.prediction import DAMPING, DEFAULT, Choice, candidates, ridge

WISH = {"speedup": 1.6}
PLACES = [0.40, 0.52, 0.70, 0.86, 1.00]


def predicted(weights, outputs):
    return sum(w * y for w, y in zip(weights, outputs, strict=False))


def quadratic(t):
    return 3 * t**2 - 2 * t + 5


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("at", [0.0, 0.31, 0.52])
def test_constants_are_kept_by_every_candidate(count, at):
    for name, weights in candidates(PLACES[:count], at).items():
        assert sum(weights) == pytest.approx(1.0), name
        assert len(weights) <= count
    assert ("ridge" in candidates(PLACES[:count], at)) == (count > 2)


def test_a_ridge_polynomial_without_penalty_is_exact_on_quadratics():
    outputs, true = [quadratic(t) for t in PLACES], quadratic(0.25)
    off = [
        abs(predicted(ridge(PLACES, 0.25, penalty), outputs) - true)
        for penalty in (1e-1, 1e-3, 1e-6, 1e-10)
    ]
    assert off == sorted(off, reverse=True) and off[-1] < 1e-6 < off[0]


def test_a_large_penalty_leaves_the_mean():
    assert ridge(PLACES, 0.25, 1e9) == pytest.approx([0.2] * 5, abs=1e-6)


def test_equal_places_of_heuns_method_define_no_line():
    found = candidates([0.5, 0.5], 0.4)
    assert "ridge" not in found and found["line"] == [1.0, 0.0] == found[DEFAULT]
    assert sum(ridge([0.5, 0.5, 0.7], 0.4)) == pytest.approx(1.0)


def test_the_damped_line_is_between_repeat_and_line():
    found = candidates(PLACES[:2], 0.31)
    assert found[DEFAULT][1] == pytest.approx(DAMPING * found["line"][1])


def chosen(outputs):
    """Names of the predictions along a run whose outputs are all computed."""
    choice, names = Choice(), []
    times = np.linspace(1.0, 0.1, len(outputs)).tolist()
    for j in range(2, len(outputs)):
        known, before = times[:j][::-1][:5], outputs[:j][::-1][:5]
        tried = candidates(known, times[j]).items()
        true = outputs[j]
        choice.observe({n: abs(predicted(w, before) - true) / (1 + abs(true)) for n, w in tried})
        names.append(choice.name)
    return names


def test_the_order_falls_back_and_rises_by_itself():
    assert chosen([3.0 * j for j in range(10)])[-1] == "line"
    assert set(chosen([8.0 + (-1) ** j for j in range(12)])) & {"repeat", "ridge"}
    assert chosen([8.0] * 6)[-1] == DEFAULT, "all are exact"
    assert chosen([quadratic(0.9 - 0.08 * j) for j in range(10)])[0] == DEFAULT


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_an_error_that_says_nothing_is_not_counted(bad):
    choice = Choice()
    choice.observe({"repeat": 0.1, DEFAULT: bad})
    assert choice.errors == {"repeat": pytest.approx(0.01)} and choice.name == DEFAULT


@pytest.mark.parametrize("speedup", [1.5, 1.9, 2.5, 3.0])
@pytest.mark.parametrize("entries", [2, 5])
def test_the_budget_is_exact(speedup, entries):
    pipe, steps = Pipe("wan"), 25
    with accel.patched(pipe, plan=plan(speedup=speedup, entries=entries)) as handle:
        assert torch.isfinite(pipe(steps)).all()
        report = handle.report().rehash
    assert len(report.keys) == round(steps / speedup) and report.keys[-1] == steps - 1
    assert report.calls["computed"] == 2 * len(report.keys)
    assert "predicted (" in report.what


@pytest.mark.parametrize("entries", [2, 4])
@pytest.mark.parametrize(("store", "share"), [("native", 1.0), ("int8", 0.25), ("cpu", 0.0)])
def test_memory_is_as_predicted(entries, store, share):
    pipe, latent = Pipe("wan"), 4
    size = latent * pipe.inputs["hidden_states"].numel()
    config = RehashConfig(1.6, entries=entries, store=store)
    kept = Kept({"output": 2 * size}, 2, 4)
    assert kept.bytes(config) == 2 * entries * size * share
    with accel.patched(pipe, plan=plan(speedup=1.6, entries=entries, store=store)) as handle:
        assert torch.isfinite(pipe()).all()
        state = handle.report().rehash.state_bytes
    scales = 4 * pipe.inputs["hidden_states"].shape[1] if store == "int8" else 0
    assert state == 2 * entries * (size * (share or 1.0) + scales)


def test_errors_so_far_are_saved_and_restored():
    pipe = Pipe("wan")
    with accel.patched(pipe, plan=plan(entries=4, **WISH)) as handle:
        states, real = [], pipe.scheduler.step

        def step(y, t, x, **kwargs):
            states.append(copy.deepcopy(handle.run_state()))
            return real(y, t, x, **kwargs)

        pipe.scheduler.step = step
        pipe()
        saved, state = states[9]["rehash"], handle._rehash
        assert set(saved["errors"]["transformer"]) == {"repeat", DEFAULT, "line", "ridge"}
        state.restore(saved)
        assert state.to_dict()["errors"] == saved["errors"] and state.to_dict()["first"] > 0


def test_two_denoisers_choose_for_themselves():
    class Two(Pipe):
        def __init__(self, family):
            super().__init__(family)
            self.transformer_2 = copy.deepcopy(self.module)

        def _call(self, branch, inputs):
            late = (self.scheduler.step_index or 0) >= 7
            first, self.module = self.module, self.transformer_2 if late else self.module
            try:
                return super()._call(branch, inputs)
            finally:
                self.module = first

    pipe, seen = Two("wan"), []
    with accel.patched(pipe, plan=plan(**WISH)) as handle:
        real = pipe.scheduler.step

        def step(y, t, x, **kwargs):
            seen.append({n: dict(c.errors) for n, c in handle._rehash._choices.items()})
            return real(y, t, x, **kwargs)

        pipe.scheduler.step = step
        assert torch.isfinite(pipe()).all()
        report = handle.report().rehash
    early, late = (next(s for s in seen[k:] if s) for k in (0, STEPS - 1))
    assert set(early) == {"transformer"} and set(late) == {"transformer", "transformer_2"}
    assert late["transformer"] == seen[7]["transformer"], "the second tells the first nothing"
    assert {0, 1, 7, 8, STEPS - 1} <= set(report.keys) and not report.notes


def test_heuns_method_is_predicted_too():
    pipe = Pipe("wan", scheduler=FlowMatchHeunDiscreteScheduler())
    plain = pipe(12)
    with accel.patched(pipe, plan=plan(entries=4, **WISH)) as handle:
        got = pipe(12)
        report = handle.report().rehash
    assert len(report.keys) == round(report.steps / 1.6) and report.calls["reused"]
    assert float((got - plain).norm() / plain.norm()) < 0.2
