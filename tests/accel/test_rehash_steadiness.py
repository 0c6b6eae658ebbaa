"""Runs whose steps cannot be predicted: noticed while they go on, computed, and told."""

import logging
import math

import pytest
import torch
from helpers.rehash_pipe import Pipe, plan

import accel
from accel.rehash.steadiness import SAMPLES, TOO_FAST, TURNED, Steadiness
from accel.rehash.stored import Branch

STEPS = 25
COND, UNCOND = Branch("t", ("t", "cond")), Branch("t", ("t", "uncond"))


def turned(angle):
    """A vector of length 1 at an angle in radians."""
    return torch.tensor([[math.cos(angle), math.sin(angle)]])


def follow(outputs, scale=None, doubled=False):
    """What is said after each output, one a step."""
    steady, found = Steadiness(), []
    for step, output in enumerate(outputs):
        steady.take(COND, step, 1000.0 - step, output)
        steady.judge(0, scale, doubled)
        found.append(steady.why)
    return found


def test_smooth_outputs_are_steady():
    assert set(follow([turned(0.3 * i) for i in range(STEPS)])) == {""}


def test_a_fast_change_is_noticed_until_it_is_steady_again():
    angles = [0.0, 0.1, 0.2, 0.9, 1.0, 1.1, 1.2, 1.3]
    found = follow([turned(a) for a in angles])
    assert found == ["", "", "", TOO_FAST, TOO_FAST, "", "", ""]


def test_small_changes_in_any_direction_are_steady_after_a_while():
    """As with the rounding of INT8, which guidance multiplies."""
    angles = [0.0, 0.1, 0.2, 0.9, 0.86, 0.9, 0.86, 0.9, 0.86]
    assert follow([turned(a) for a in angles])[3:] == [TOO_FAST] * 5 + [""]


def test_the_first_change_of_a_run_is_not_yet_too_fast():
    assert set(follow([turned(a) for a in (0.0, 0.9, 1.0, 1.1)])) == {""}


@pytest.mark.parametrize(("swing", "expected"), [(0.18, TURNED), (0.05, "")])
def test_outputs_that_swing_are_noticed_where_the_swing_is_large(swing, expected):
    found = follow([turned(swing * (-1) ** i) for i in range(STEPS)])
    assert found[2:] == [expected] * (STEPS - 2)


def test_a_longer_distance_allows_a_larger_change():
    for distance, expected in ((1, TOO_FAST), (2, "")):
        steady = Steadiness()
        for step, angle in ((0, 0.0), (1, 0.1), (2, 0.2), (2 + distance, 0.7)):
            steady.take(COND, step, 1000.0 - step, turned(angle))
            steady.judge(0, None, False)
        assert steady.why == expected


@pytest.mark.parametrize(("scale", "expected"), [(1.5, ""), (7.0, TOO_FAST)])
def test_the_scale_of_guidance_counts(scale, expected):
    """The same two branches, told apart by name, more or less far apart."""
    steady = Steadiness()
    for step in range(4):
        u = turned(0.02 * step)
        c = u + 0.3 * turned(1.0 + 0.5 * step)
        for branch, output in ((UNCOND, u), (COND, c)):
            steady.take(branch, step, 1000.0 - step, output)
        steady.judge(0, scale, True)
    assert steady.why == expected


def test_a_doubled_batch_is_two_branches():
    one, both = [], []
    for step in range(6):
        u = turned(0.02 * step)
        one.append(u + 7 * 0.3 * turned(1.0 + 0.5 * step))
        both.append(torch.cat([u, u + 0.3 * turned(1.0 + 0.5 * step)]))
    assert follow(both, 7.0, True) == follow(one) != follow(both, 7.0, False)


def test_the_least_steady_of_a_batch_counts():
    calm, fast = [turned(0.1 * i) for i in range(5)], [turned(0.6 * i) for i in range(5)]
    assert follow([torch.cat(pair) for pair in zip(calm, fast, strict=True)])[-1] == TOO_FAST


def test_two_outputs_at_one_time_are_one():
    """Heun's method computes a step twice."""
    steady = Steadiness()
    for step, (time, angle) in enumerate(((9, 0.0), (8, 0.38), (8, 0.05), (7, 0.43), (7, 0.1))):
        steady.take(COND, step, float(time), turned(angle))
        steady.judge(0, None, False)
    assert steady.why == ""


def test_another_denoiser_starts_anew():
    steady = Steadiness()
    for step, angle in enumerate((0.0, 0.1, 0.2)):
        steady.take(COND, step, 1000.0 - step, turned(angle))
        steady.judge(0, None, False)
    steady.take(Branch("t2", ("t2", "cond")), 3, 997.0, turned(2.0))
    steady.judge(0, None, False)
    assert steady.why == ""


def test_few_values_are_kept_and_a_saved_state_goes_on():
    g = torch.Generator().manual_seed(0)
    outputs = [torch.randn(2, 7, 100, 100, generator=g) for _ in range(6)]
    steady, again = Steadiness(), Steadiness()
    for step, output in enumerate(outputs):
        for one in (steady, again):
            one.take(COND, step, 1000.0 - step, output)
        again = Steadiness.from_dict(again.to_dict())
        for one in (steady, again):
            one.judge(0, None, False)
        assert steady.why == again.why
    assert again.why and all(v.shape[1] <= SAMPLES for _, _, v in steady.to_dict()["past"])


@pytest.mark.parametrize("level", ["output", "features"])
def test_a_run_that_swings_computes_more_and_says_so(level, caplog):
    pipe = Pipe("wan")
    with accel.patched(pipe, plan=plan(speedup=1.9, level=level)) as handle:
        pipe(STEPS)
        calm = handle.report().rehash
    assert len(calm.keys) == round(STEPS / 1.9) and not calm.notes
    forward = pipe.module.forward

    def swinging(*args, **kwargs):
        output = forward(*args, **kwargs)
        step = pipe.scheduler.step_index or 0
        return (output[0] * (1 + 0.8 * (step > 5) * (-1) ** step), *output[1:])

    pipe.module.forward = swinging
    with accel.patched(pipe, plan=plan(speedup=1.9, level=level)) as handle:
        with caplog.at_level(logging.WARNING, "accel"):
            pipe(STEPS)
        report = handle.report()
    more = report.rehash.computed["more than asked"]
    assert more == len(report.rehash.keys) - round(STEPS / 1.9) > 5
    assert f"computed {more} more steps: the guided output" in str(report)
    assert any(f"computed {more} more steps" in line for line in caplog.messages)
