"""Which steps are computed: pure functions over numbers."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest

from accel import Plan
from accel.calibration.step_search import best_keys, coefficients, error, gap_costs, step_weights
from accel.config import RehashConfig
from accel.rehash.schedule import (
    Rate,
    budget,
    forced,
    head,
    lead,
    similar_keys,
    similar_keys_of_count,
    stretch,
    weights,
)


def run_rate(rate: Rate, steps: int, errors) -> list[int]:
    keys: list[int] = []
    for step in range(steps):
        if rate.key(step):
            if len(keys) > rate.order:
                rate.observe(step, errors(step), keys[:-3:-1], 1.0)
            keys.append(step)
    return keys


@pytest.mark.parametrize("steps", [9, 10, 25, 50])
def test_forced_steps(steps):
    must = forced(steps)
    assert must == {*range(math.ceil(steps / 5)), steps - 1} and head(steps) == len(must) - 1
    assert forced(8) == set(range(8))
    assert budget(steps, 1.0) == steps and budget(steps, 5.0) >= len(must)


@pytest.mark.parametrize("steps", [9, 20, 25, 50, 99])
@pytest.mark.parametrize("speedup", [1.0, 1.3, 1.9, 2.5, 5.0])
@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("errors", [lambda s: 1 / (1 + s), lambda s: 0.0, lambda s: math.inf])
def test_the_rule_computes_exactly_as_many_steps_as_asked(steps, speedup, order, errors):
    keys = run_rate(Rate(steps, budget(steps, speedup), order), steps, errors)
    count = budget(steps, speedup)
    assert len(keys) == count and {*range(lead(steps, count)), steps - 1} <= set(keys)


def test_the_start_of_a_run_takes_less_where_few_steps_are_computed():
    assert [lead(25, count) for count in (17, 13, 10, 8, 6)] == [5, 4, 3, 2, 2]
    assert all(lead(steps, steps) == head(steps) for steps in range(9, 60))


@pytest.mark.parametrize("count", [8, 10, 13, 17])
def test_planned_gaps_grow_along_a_run_without_surprises(count):
    rate = Rate(25, count, 1)
    gaps = np.diff([step for step in range(25) if rate.key(step)])
    rest = gaps[rate.head - 1 :]
    half = len(rest) // 2
    assert rest[:half].mean() <= rest[half:].mean()
    assert gaps[: rate.head - 1].max() == 1 and np.abs(np.diff(rest)).max() <= 2


def test_the_rule_computes_where_prediction_fails():
    """More than it does in the same part of a run without failures."""
    failing, calm = (
        run_rate(Rate(60, 30, 1), 60, lambda s, e=e: e if 28 <= s < 44 else 0.01)
        for e in (1.0, 0.01)
    )
    assert sum(28 <= k < 44 for k in failing) > 1.3 * sum(28 <= k < 44 for k in calm)


def test_the_rule_goes_on_from_its_saved_state():
    whole, rate = Rate(40, 20, 1), Rate(40, 20, 1)
    first = run_rate(whole, 40, lambda s: math.sin(s) ** 2)
    keys: list[int] = []
    for step in range(40):
        if step == 17:
            saved, rate = json.loads(json.dumps(rate.to_dict())), Rate(40, 20, 1)
            rate.restore(saved)
        if rate.key(step):
            if len(keys) > 1:
                rate.observe(step, math.sin(step) ** 2, keys[:-3:-1], 1.0)
            keys.append(step)
    assert keys == first


def test_algorithm_1():
    """By hand: 0 serves 1; 2 is the next anchor and serves 3 and 4; the last step is a key."""
    similarity = [
        [1.0, 0.9, 0.5, 0.9, 0.9],
        [0.9, 1.0, 0.9, 0.9, 0.9],
        [0.5, 0.9, 1.0, 0.9, 0.9],
        [0.9, 0.9, 0.9, 1.0, 0.9],
        [0.9, 0.9, 0.9, 0.9, 1.0],
    ]
    assert similar_keys(similarity, 0.8) == {0, 2, 4}
    assert similar_keys(similarity, 1.0) == {0, 1, 2, 3, 4}
    assert similar_keys(similarity, 0.0) == {0, 4}


def test_algorithm_1_of_a_count():
    t = np.linspace(1, 0, 30)
    similarity = np.exp(-20 * (t[:, None] - t[None]) ** 2).tolist()
    counts = [len(similar_keys_of_count(similarity, n)) for n in range(7, 31)]
    assert counts == sorted(counts) and all(
        c <= n for c, n in zip(counts, range(7, 31), strict=True)
    )
    assert forced(30) <= similar_keys_of_count(similarity, 12)


@pytest.mark.parametrize("steps", [9, 20, 25, 37, 50])
def test_a_stretched_schedule_keeps_its_share_and_shape(steps):
    keys = [0, 1, 2, 3, 4, 6, 8, 10, 13, 16, 19, 22, 24]
    found = stretch(keys, 25, steps)
    assert forced(steps) <= found and max(found) == steps - 1
    assert abs(len(found) - 13 * steps / 25) <= 1.5
    inner = sorted(found - forced(steps))
    if len(inner) > 6:
        gaps = np.diff(inner)
        assert gaps[: len(gaps) // 2].mean() < gaps[len(gaps) // 2 :].mean()  # dense first
    assert stretch(keys, 25, 25) == set(keys)


def test_weights_draw_a_line():
    for time in (0.0, 3.0, 7.5):
        (a, b) = weights([5.0, 9.0], time)
        assert a * (2 * 5 + 1) + b * (2 * 9 + 1) == pytest.approx(2 * time + 1)
    assert weights([5.0], 2.0) == [1.0] and weights([5.0, 5.0], 2.0) == [1.0, 0.0]


def smooth_run(steps: int):
    """Outputs [steps, 40] that bend most in the middle, their inner products, and timesteps."""
    times = np.linspace(1000, 40, steps)
    u, v = np.random.default_rng(0).normal(size=(2, 40))
    outputs = np.stack([u * np.tanh((t - 500) / 120) + v * t / 1000 for t in times])
    return outputs, outputs @ outputs.T, times.tolist()


@pytest.mark.parametrize("order", [0, 1])
def test_error_is_the_final_latents(order):
    """Against Euler's method with the outputs replaced as the coefficients say."""
    outputs, gram, times = smooth_run(12)
    keys = {0, 1, 2, 5, 8, 11}
    lengths = step_weights(times, 0.0)
    c = coefficients(keys, times, order, lengths)
    known, off = [], 0.0
    for j, time in enumerate(times):
        if j in keys:
            known = [j, *known][: order + 1]
        else:
            w = weights([times[k] for k in known], time)
            guess = sum(a * outputs[k] for a, k in zip(w, known, strict=True))
            off = off + lengths[j] * (guess - outputs[j])
    assert np.allclose(c @ outputs, off)
    assert error(keys, gram, times, order) == pytest.approx(float(np.sum(off**2)))


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("growth", [0.0, 2.0])
def test_of_all_schedules_one_of_the_best_is_found(order, growth):
    """Among all 210, by the errors of whole schedule and gaps."""
    _, gram, times = smooth_run(14)
    must, costs = forced(14), gap_costs(gram, times, order, growth)
    free = [i for i in range(14) if i not in must]

    def objective(keys):
        k = sorted(keys)
        apart = sum(costs[a, b, c] for a, b, c in zip(k, k[1:], k[2:], strict=False))
        return apart + error(k, gram, times, order, growth)

    every = sorted(objective(must | set(more)) for more in itertools.combinations(free, 4))
    keys = best_keys(gram, times, len(must) + 4, order, growth)
    assert len(keys) == len(must) + 4 and must <= keys
    assert objective(keys) <= every[2] * (1 + 1e-9)


def test_costs_of_gaps_are_those_of_schedules():
    _, gram, times = smooth_run(12)
    costs = gap_costs(gram, times, 1, 1.0)
    rest = set(range(12)) - {6, 7}
    assert costs[4, 5, 8] == pytest.approx(error(rest, gram, times, 1, 1.0))
    assert costs[3, 4, 5] == 0.0 and np.isinf(costs[5, 4, 6]) and np.isinf(costs[3, 4, 4])


def test_more_computed_steps_have_smaller_errors():
    _, gram, times = smooth_run(25)
    few, some, all_ = (
        error(best_keys(gram, times, n, 0, 1.0), gram, times, 0, 1.0) for n in (8, 14, 25)
    )
    assert few > 4 * some > 0 and all_ == 0.0


def test_config_and_plan_round_trip(tmp_path):
    plan = Plan("p", None, rehash=RehashConfig(1.5, keys=(0, 3, 9), steps=10, store="int8"))
    plan.save(tmp_path / "p.json")
    assert Plan.load(tmp_path / "p.json") == plan
    assert Plan.from_dict({"rehash": {"speedup": 2}}).rehash == RehashConfig(2)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"speedup": 0.5}, "0.5"),
        ({"speedup": 3.7}, r"from 1 to 3.6 \(beyond it a run of fewer steps, num_inference_steps"),
        ({"speedup": 9, "keys": (0, 5), "steps": 10}, "from 1 to 5, got 9"),
        ({"level": "outputs"}, "did you mean 'output'"),
        ({"store": "fp4"}, "int8"),
        ({"order": 2}, "order"),
        ({"order": 1, "level": "features"}, "features"),
        ({"tail": -1}, "tail"),
        ({"entries": 1}, "entries must be a whole number from 2 to 6"),
        ({"keys": (0, 30), "steps": 25}, "30"),
        ({"keys": (0, 3)}, "steps"),
    ],
)
def test_bad_settings_are_named(wrong, named):
    with pytest.raises(ValueError, match=named):
        RehashConfig(**wrong)
