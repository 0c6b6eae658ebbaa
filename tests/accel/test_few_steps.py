"""Runs of few steps: a preset of their own, which reports of the other presets name."""

from __future__ import annotations

import pytest
from helpers.rehash_pipe import Pipe

import accel
from accel import Plan
from accel.attention.policy import precision_at
from accel.rehash.schedule import FEW


@pytest.mark.parametrize("steps", [3, 4, 8])
def test_the_preset_quantizes_every_step_and_skips_none(steps):
    plan = Plan.preset("few-step")
    assert plan.rehash is None and plan.slicing is None
    for config in (plan.attention, plan.linear):
        found = {precision_at(config, "blocks.0.attn1", step, steps) for step in range(steps)}
        assert found == {"int8"}


def test_reports_of_short_runs_name_the_preset():
    pipe = Pipe("wan")
    for name, steps, told in (
        ("balanced", 4, True), ("balanced", FEW + 1, False), ("few-step", 4, False),
    ):  # fmt: skip
        with accel.patched(pipe, plan=Plan(name, None)) as handle:  # the name alone counts
            pipe(steps)
            assert ("preset 'few-step'" in str(handle.report())) is told, (name, steps)
