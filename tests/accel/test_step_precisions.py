"""Which steps of a short run may be quantized: rules for any set of steps, most steps first."""

from __future__ import annotations

from itertools import chain, combinations

import pytest

from accel import AttentionConfig
from accel.attention.policy import precision_at
from accel.calibration.plan_runs import decibels_of, error_of
from accel.calibration.step_precisions import full_but, worth_running


@pytest.mark.parametrize("steps", range(1, 9))
def test_rules_hold_for_exactly_the_other_steps(steps):
    sets = chain.from_iterable(combinations(range(steps), n) for n in range(steps + 1))
    for quantized in sets:
        config = AttentionConfig("int8", full_but(steps, quantized))
        found = [precision_at(config, "blocks.0", step, steps) for step in range(steps)]
        assert found == ["int8" if step in quantized else "full" for step in range(steps)]


def test_sets_of_most_steps_come_first_and_leave_out_what_harms_most():
    alone = [[30.0, 31.0], [45.0, 46.0], [40.0, 41.0], [50.0, 51.0]]
    assert list(worth_running(alone, 0.0)) == [(1, 2, 3), (1, 3)]
    assert list(worth_running(alone, 99.0)) == []


def test_errors_of_steps_add_up():
    together = decibels_of(error_of(40.0) + error_of(40.0))
    assert together == pytest.approx(40.0 - 3.0103, abs=1e-3)
    alone = [[40.0] * 3] * 3
    assert list(worth_running(alone, together - 0.01)) == [(0, 1)]
    assert list(worth_running(alone, together + 0.01)) == []
    assert decibels_of(0.0) == 100.0
