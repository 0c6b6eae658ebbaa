"""The tab Plan: what is predicted, from what, and how it becomes a job."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from accel.memory.fit import Kept, Needs
from accel.pipelines.job import Job, JobError
from accel.pipelines.ui import plan_tab, predicted
from accel.pipelines.ui.predicted import Choice, Simulations
from accel.plans import Plan

GIB = 2**30
NEEDS = Needs({1: 5 * GIB, 2: 4 * GIB, 16: 2 * GIB}, {"whole": 4 * GIB, "strips": 3 * GIB})
NONE = Choice(None, math.inf, 0, 9.0)
BALANCED = Choice("balanced", 40.0, 3, 5.0)
FAST = Choice("fast", None, 0, None)


@pytest.mark.parametrize(
    ("budget", "slices"), [(6, 1), (5, 1), (4.5, 2), (4, 2), (3.9, 16), (3, 16)]
)
def test_fewest_slices_that_fit(budget: float, slices: int) -> None:
    assert NEEDS.fewest_slices(int(budget * GIB)) == slices
    assert NEEDS.peak(slices) <= budget * GIB


def test_what_does_not_fit_says_what_is_needed() -> None:
    with pytest.raises(JobError, match=r"fits in 2\.900 GiB; at least 3\.000 GiB is needed"):
        predicted.predict(NEEDS, (NONE,), 2.9, 0.0)


def test_the_fastest_that_keeps_the_quality() -> None:
    every = (FAST, BALANCED, NONE)
    assert predicted.best(every, 30.0) is BALANCED
    assert predicted.best(every, 41.0) is NONE
    assert predicted.best(every, 0.0) is BALANCED  # a time that is known counts
    assert predicted.best((FAST, NONE), 0.1) is NONE
    unknown = tuple(replace(c, seconds=None) for c in every)
    assert predicted.best(unknown, 0.0).preset == "fast"
    assert predicted.best(unknown, 30.0).preset == "balanced"


def test_what_step_rehash_keeps_counts_for_the_presets_that_use_it() -> None:
    needs, fast = replace(NEEDS, kept=Kept({"output": GIB // 4})), Plan.preset("fast").rehash
    assert needs.phases(1, fast)["denoise"] == 5.5 * GIB and needs.phases(1) == NEEDS.phases(1)
    assert (needs.fewest_slices(5 * GIB), needs.fewest_slices(5 * GIB, fast)) == (1, 2)
    plan = predicted.predict(needs, (FAST,), 5.0, 0.0)
    assert plan.slices == 2 and plan.peaks["denoise"] == 4.5 * GIB


def test_decibels_are_those_of_nine_jobs_in_ten() -> None:
    assert predicted.expected([]) is None
    assert predicted.expected([44.0]) == 34.0
    several = predicted.expected([44.0, 45.0, 46.0])
    assert several is not None and 40.0 < several < 44.0


def test_a_prediction_becomes_the_settings_of_a_job() -> None:
    choices = (FAST, BALANCED, NONE)
    whole = predicted.predict(NEEDS, choices, 6.0, 30.0)
    assert whole.settings() == {"preset": "balanced", "plan": None}
    sliced = predicted.predict(NEEDS, choices, 3.0, 30.0)
    assert sliced.name == "balanced, 16 slices" and sliced.peaks["decode"] == 3 * GIB
    job = Job("x", **sliced.settings())
    plan = job.accel_plan()
    assert plan is not None and plan.slicing is not None
    assert (plan.slicing.slices, plan.slicing.min_tokens) == (16, 1)
    assert plan.attention == Plan.preset("balanced").attention
    none = predicted.predict(NEEDS, choices, 3.0, 90.0)
    plan = Job("x", **none.settings()).accel_plan()
    assert plan is not None and plan.attention is None
    text = plan_tab.shown(sliced, Job("x", width=64, height=64, frames=17), 3.0)
    assert text.count('class="bar"') == 4 and text.count('class="limit"') == 1
    assert "~3.000 GiB, ~5.0 s without slices, 40.0 dB or more" in text and "generate once" in text


@pytest.mark.slow
@pytest.mark.proof
def test_simulated_in_a_process_of_its_own_and_once() -> None:
    simulations, job = Simulations(), Job("x", width=16, height=16, frames=1)
    try:
        needs = simulations.needs(job)
        assert min(needs.denoise.values()) > 10**7 and set(needs.decode) == {"whole", "strips"}
        assert needs.kept.bytes(Plan.preset("fast").rehash) > 0
        assert simulations.known(job) is needs and simulations.known(replace(job, frames=5)) is None
        with pytest.raises(JobError, match="cannot be simulated: width must be a multiple of 8"):
            simulations.needs(replace(job, width=12))
        with pytest.raises(JobError, match="config not local"):
            simulations.needs(replace(job, model="owner/name"))
        with pytest.raises(JobError, match="leaves its size"):
            simulations.needs(Job("x"))
        assert simulations.needs(job) is needs
    finally:
        simulations.close()
