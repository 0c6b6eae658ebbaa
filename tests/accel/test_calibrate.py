"""Calibration: what it measures, how tables combine, and which plans follow from them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import accel
from accel.attention.policy import precision_at
from accel.calibration import choose
from accel.calibration.precision import calibrate
from accel.calibration.probing import sample
from accel.calibration.table import METRICS, ErrorTable
from accel.config import AttentionConfig, LinearConfig
from accel.core.latent_errors import latent_errors, latents_by_step
from accel.patching import patched
from accel.pipelines.generate import generate
from accel.pipelines.job import Job
from accel.pipelines.load import load
from accel.plans import Plan
from tests.helpers.error_tables import COST, made

STEPS = 5


def run(seed):
    prompt = "a red circle on a striped blue background"
    job = Job(prompt, seed=seed, steps=STEPS, frames=5, preset=None)
    return lambda pipe: generate(pipe, job).frames


@pytest.fixture(scope="module")
def pipe():
    return load("tiny")


@pytest.fixture(scope="module")
def measured(pipe):
    plain = run(0)(pipe)
    table = calibrate(pipe, [run(0)], impl="reference", linear=False, probe_runs=10, progress=False)
    assert np.array_equal(run(0)(pipe), plain)  # the pipeline is as it was
    return table, plain


@pytest.mark.slow
def test_every_site_step_and_branch_is_measured(measured):
    table, _ = measured
    assert table.sites == tuple(f"blocks.{i}.attn{k}" for i in range(6) for k in (1, 2))
    assert table.counts.shape == (12, STEPS, 2) and (table.counts == 1).all()
    assert (np.diff(table.sigmas) < 0).all() and (table.work > 0).all()
    int8, int4 = (table.mean("l2", p) for p in ("int8", "int4"))
    own = [s.endswith("attn1") for s in table.sites]
    assert (int8[own] < int4[own]).all() and (int8 > 0).all()
    assert (table.mean("score", "int8") <= 1).all()
    assert table.site_weight.shape == (12, STEPS) and (table.site_weight > 0).all()
    assert table.step_weight.mean() == pytest.approx(1) and 0 < table.spread < 20
    origin = table.origin
    assert (origin.made_by, origin.steps, origin.frames, origin.width) == ("calibrate", 5, 5, 64)
    assert origin.pipeline == "WanPipeline" and len(origin.inputs) == 4


@pytest.mark.slow
def test_prediction_is_as_near_as_the_table_says(pipe, measured):
    table, plain = measured
    # The reference is slower than torch; a choice by time needs the times of a kernel.
    costs = {p: np.full(len(table.sites), cost) for p, cost in COST.items()}
    table = replace(table, costs=costs)
    attention = AttentionConfig(impl="reference", smooth_q=True, check_rows=0)
    like = Plan("", attention, linear=LinearConfig(impl="reference", check_rows=0))
    decibels = []
    for choice in (
        choose.uniform(table, "int4"),
        choose.by_share(table, 0.5, low="int4"),
        choose.by_quality(table, 35.0),
        choose.uniform(table, "int8"),
    ):
        # Without the check that sends a site back to full precision: it is no part of the choice.
        plan = choose.to_plan(table, choice, like=like)
        with patched(pipe, plan=plan) as handle:
            found = accel.core.quality.psnr(plain, run(0)(pipe))
            assert not any("promised" in note or "it was" in note for note in handle.report().notes)
        predicted = choose.predicted(table, choice)
        assert (plan.origin.decibels, plan.origin.jobs) == (predicted, 1)
        assert abs(found - predicted) < 3 * table.spread  # one job of five steps: a typical error
        decibels.append((predicted, found))
    assert decibels == sorted(decibels)  # predicted in the order in which they are measured
    assert [found for _, found in decibels] == sorted(found for _, found in decibels)


def test_sampled_rows_are_whole_blocks_all_over():
    assert sample(100, 128).tolist() == list(range(100))
    rows = sample(4096, 128)
    assert len(rows) == 128 and rows.max() < 4096
    starts = rows.view(4, 32)[:, 0]
    assert (rows.view(4, 32) - starts[:, None] == torch.arange(32)).all()
    assert starts[0] == 0 and starts[-1] == 4064


@pytest.mark.slow
def test_a_table_survives_json(tmp_path, measured):
    measured[0].save(tmp_path / "t.json")
    again = ErrorTable.load(tmp_path / "t.json")
    assert again.to_dict() == measured[0].to_dict()


def test_merging_tables_averages_and_keeps_the_worst():
    one, two = made(seed=0), made(seed=1)
    both = one.merge(two)
    for p in one.precisions:
        for i, metric in enumerate(METRICS):
            wanted = np.maximum if metric == "worst" else lambda a, b: (a + b) / 2
            np.testing.assert_allclose(
                both.errors[p][i], wanted(one.errors[p][i], two.errors[p][i])
            )
    assert both.jobs == 2 and (both.counts == 2).all()


def test_merged_tables_must_be_of_one_model():
    with pytest.raises(ValueError, match="another model"):
        made(3).merge(made(4))


def test_errors_belong_to_noise_levels():
    table = made()
    np.testing.assert_allclose(table.at(table.sigmas).errors["int4"], table.errors["int4"])
    fine = table.at(np.linspace(1, 0.1, 11))
    np.testing.assert_allclose(fine.errors["int4"][..., ::2, :], table.errors["int4"])
    whole = [choose.predicted(t, choose.uniform(t, "int4")) for t in (table, fine)]
    assert abs(whole[0] - whole[1]) < 0.5
    assert made().merge(fine).sigmas.shape == (6,)


@pytest.mark.parametrize("axis", ["both", "site", "step"])
@pytest.mark.parametrize("rank", ["score", "damage"])
def test_a_share_of_the_work_runs_low(axis, rank):
    table = made(4, 8)
    choice = choose.by_share(table, 0.5, rank=rank, axis=axis)
    assert np.mean(choice == "int4") == 0.5 and set(choice.ravel()) == {"int4", "int8"}
    if axis == "site":
        assert (choice == choice[:, :1]).all()
    if axis == "step":
        assert (choice == choice[:1]).all()


def test_choosing_by_both_is_never_worse():
    table = made(5, 10, seed=3)
    by = {a: choose.predicted(table, choose.by_share(table, 0.5, axis=a)) for a in ("site", "step")}
    assert choose.predicted(table, choose.by_share(table, 0.5)) >= max(by.values())


@pytest.mark.parametrize("decibels", [20.0, 28.0, 33.0, 60.0])
def test_quality_is_met_at_the_least_cost(decibels):
    table = made(4, 8)
    choice = choose.by_quality(table, decibels)
    assert choose.predicted(table, choice) >= decibels
    cheaper = choose.by_quality(table, decibels - 5)
    assert choose.relative_cost(table, cheaper) <= choose.relative_cost(table, choice)
    for p in ("int8", "int4"):
        even = choose.uniform(table, p)
        if choose.predicted(table, even) >= decibels:
            assert choose.relative_cost(table, choice) <= choose.relative_cost(table, even)
    changes = (choice[:, 1:] != choice[:, :-1]).any(0).sum()
    assert changes <= 2


@pytest.mark.parametrize("limit", [0.36, 0.4, 0.43, 1.0])
def test_the_best_quality_within_a_cost(limit):
    table = made(4, 8)
    choice = choose.by_cost(table, limit)
    assert choose.relative_cost(table, choice) <= limit + 1e-9
    for p in ("full", "int8", "int6", "int4"):
        if limit >= COST[p]:
            even = choose.uniform(table, p)
            assert choose.predicted(table, choice) >= choose.predicted(table, even) - 1e-9


def test_a_cost_that_cannot_be_met_is_named():
    with pytest.raises(ValueError, match=r"0\.36 of full precision's time, the limit is 0\.2"):
        choose.by_cost(made(), 0.2)


def test_a_bound_holds_for_every_call():
    table = made()
    choice = choose.by_bound(table, 1e-3)
    for p in set(choice.ravel()) - {"full"}:
        assert (table.mean("worst", p)[choice == p] <= 1e-3).all()
    assert "int4" not in choose.by_bound(table, 1e-9) and len(set(choice.ravel())) > 1


def test_of_what_costs_the_same_the_more_exact_is_taken():
    table = made()
    loose = choose.by_bound(table, 10.0)
    assert COST["int6"] == COST["int4"] and (loose == "int6").all()


def test_work_is_counted_where_it_is_done():
    """Two denoisers that share the steps: half of the cells never run."""
    table = made(4, 6)
    table.counts[:2, 3:], table.counts[2:, :3] = 0, 0
    choice = choose.by_share(table, 0.5)
    runs = table.counts.sum(-1) > 0
    assert np.mean(choice[runs] == "int4") == 0.5
    fine = table.at(np.linspace(1, 0.1, 11))
    assert (fine.errors["int4"][0, :2, -1] > 0).all()  # what was not measured is not free of error
    assert (fine.counts[:2, -1] == 0).all()


def test_a_plan_is_its_choice():
    table = made(4, 9, seed=5)
    for choice in (choose.by_quality(table, 31.0), choose.by_share(table, 0.3, phases=None)):
        config = choose.to_plan(table, choice).attention
        for i, site in enumerate(table.sites):
            assert [precision_at(config, site, k, 9) for k in range(9)] == choice[i].tolist()


def test_without_sensitivity_there_is_no_choice_by_quality():
    table = made()
    bare = replace(table, site_weight=None, step_weight=None)
    assert np.mean(choose.by_share(bare, 0.5, rank="score") == "int4") == 0.5
    with pytest.raises(ValueError, match="sensitivity"):
        choose.by_quality(bare, 30.0)
    assert math.isinf(choose.predicted(table, choose.uniform(table, "full")))


@pytest.mark.parametrize(
    ("jobs", "options", "message"),
    [
        ([], {}, "at least one job"),
        ([run(0)], {"precisions": ("int8", "int5")}, "int5"),
        ([run(0)], {"impl": "gpu"}, "cuda"),
    ],
)
def test_bad_calibrations_are_named(pipe, jobs, options, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        calibrate(pipe, jobs, progress=False, **options)


def test_a_patched_pipeline_is_not_calibrated(pipe):
    with patched(pipe, "balanced"), pytest.raises(ValueError, match="unpatch"):
        calibrate(pipe, [run(0)], progress=False)


@pytest.mark.slow
def test_jobs_are_call_arguments_too(pipe):
    job = {"prompt": "a blue crescent", "height": 64, "width": 64, "num_frames": 5,
           "num_inference_steps": 2, "max_sequence_length": 32}  # fmt: skip
    table = calibrate(
        pipe, [job, job], impl="reference", linear=False, probe_runs=0, progress=False
    )
    assert (table.counts == 2).all() and table.counts.shape == (12, 2, 2)


@pytest.mark.slow
def test_latent_error_grows_from_step_to_step(pipe):
    traces = []
    for preset in (None, None, "balanced"):
        job = Job("a blue crescent", seed=3, steps=8, frames=5, preset=preset)
        with latents_by_step(pipe) as latents:
            generate(pipe, job)
        traces.append(latents)
    assert len(traces[0]) == 8 and latent_errors(traces[0], traces[1]) == [0.0] * 8
    errors = latent_errors(traces[0], traces[2])
    assert errors[0] == 0 and 0 < errors[1] < errors[-1] < 1
    with pytest.raises(ValueError, match="8 and 7"):
        latent_errors(traces[0], traces[1][1:])
