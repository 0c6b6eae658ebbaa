"""Any plan and any job survive JSON, and say no to what they do not know."""

from __future__ import annotations

import json
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel import AttentionConfig, Multistep, Plan, RehashConfig, Rule, SlicingConfig
from accel.config import Impl, Precision, Storage
from accel.core.key_steps import Origin
from accel.pipelines.job import FORMATS, Job, make_job
from accel.pipelines.job_settings import job_from_settings, settings_text
from accel.plans import PRESETS

names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)
counts = st.integers(1, 4096)
numbers = st.floats(-1e3, 1e3, allow_nan=False)
precisions = st.sampled_from(get_args(Precision))
shares = st.none() | st.floats(1e-3, 1)


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    start, end = sorted(draw(st.tuples(st.floats(0, 1), st.floats(0, 1)).filter(len_differs)))
    sites = draw(st.one_of(names, st.lists(names, min_size=1, max_size=3).map(tuple)))
    return Rule(draw(precisions), sites, start, end, draw(shares))


def len_differs(pair: tuple[float, float]) -> bool:
    return pair[0] != pair[1]


@st.composite
def rehashes(draw: st.DrawFn) -> RehashConfig:
    settings = {
        "speedup": draw(st.floats(1, 3.6)),
        "entries": draw(st.integers(2, 6)),
        "tail": draw(st.integers(0, 4)),
        "store": draw(st.sampled_from(get_args(Storage))),
    }
    if not draw(st.booleans()):
        level = draw(st.sampled_from(["output", "features"]))
        order = draw(st.sampled_from([None, 0] if level == "features" else [None, 0, 1]))
        return RehashConfig(level=level, order=order, **settings)
    steps = draw(st.integers(1, 12))
    keys = draw(st.sets(st.integers(0, steps - 1), min_size=1).map(sorted).map(tuple))
    rows = st.lists(numbers, min_size=1, max_size=3)
    multistep = None
    if draw(st.booleans()):
        weights = draw(st.lists(rows, min_size=steps, max_size=steps))
        times = draw(st.lists(numbers, min_size=steps, max_size=steps))
        multistep = Multistep(weights, times, draw(names))
    quality = draw(st.none() | st.floats(1, 99))
    pairs = st.lists(st.tuples(names, names), max_size=2)
    settings["origin"] = draw(st.none() | st.builds(Origin, pairs, names, names))
    return RehashConfig(keys=keys, steps=steps, multistep=multistep, quality=quality, **settings)


attentions = st.builds(
    AttentionConfig,
    precision=precisions,
    rules=st.lists(rules(), max_size=3).map(tuple),
    impl=st.sampled_from(get_args(Impl)),
    smooth_q=st.booleans(),
    smooth_v=st.booleans(),
    hadamard=st.booleans(),
    check_rows=st.integers(0, 512),
    max_error=st.none() | st.floats(1e-3, 10),
    kept_share=shares,
)
slicings = st.builds(SlicingConfig, counts, counts, st.booleans())
plans = st.builds(
    Plan,
    name=names,
    attention=st.none() | attentions,
    slicing=st.none() | slicings,
    rehash=st.none() | rehashes(),
)


@given(plans)
def test_a_plan_survives_json(plan: Plan) -> None:
    text = json.dumps(plan.to_dict())
    again = Plan.from_dict(json.loads(text))
    assert again == plan
    assert json.dumps(again.to_dict()) == text


@given(plans, st.text("abcdefghij_", min_size=1, max_size=8))
def test_a_plan_names_a_key_it_does_not_know(plan: Plan, key: str) -> None:
    data = plan.to_dict()
    with pytest.raises(ValueError, match=f"unknown key {key + 'x'!r}"):
        Plan.from_dict({**data, key + "x": 1})


jobs = st.builds(
    Job,
    prompt=names,
    negative_prompt=names,
    seed=st.integers(0, 2**63 - 1),
    steps=st.none() | counts,
    guidance=st.none() | st.floats(0, 1e3),
    width=st.none() | counts,
    height=st.none() | counts,
    frames=st.none() | counts,
    fps=st.none() | st.floats(1e-3, 1e3),
    preset=st.none() | st.sampled_from(PRESETS),
    plan=st.none() | plans.map(lambda plan: json.loads(json.dumps(plan.to_dict()))),
    motion=st.none() | st.just({"camera": {"pan": [1.0, 0.0]}}),
    strength=st.floats(0, 1),
    format=st.sampled_from(FORMATS),
    name=names,
)


@given(jobs)
def test_a_job_survives_json(job: Job) -> None:
    assert make_job(json.loads(json.dumps(job.to_dict()))) == job


@given(jobs, st.text("0123456789abcdef", max_size=12))
def test_the_settings_in_a_file_are_the_job(job: Job, job_id: str) -> None:
    """All but its name, which does not decide the bytes."""
    again, found = job_from_settings(settings_text(job, job_id), "a file")
    assert found == job_id
    written = {**job.to_dict(), "motion": job.motion and {"version": 2, **job.motion}}
    assert {**again.to_dict(), "name": job.name} == written
    assert settings_text(again, job_id) == settings_text(job, job_id)


@given(jobs)
def test_file_names_are_plain(job: Job) -> None:
    name = job.file_name
    assert 0 < len(name) <= 120 and "/" not in name and not name.startswith((".", "-"))
