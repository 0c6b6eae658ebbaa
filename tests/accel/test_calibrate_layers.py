"""Calibration of linear layers beside attention: measured, chosen and made a plan of."""

from __future__ import annotations

import numpy as np
import pytest

import accel
from accel.attention.policy import precision_at
from accel.calibration import choose
from accel.calibration.precision import calibrate
from accel.calibration.sensitivity import probes
from accel.calibration.table import ErrorTable
from accel.config import AttentionConfig, LinearConfig
from accel.patching import patched
from accel.pipelines.generate import generate
from accel.pipelines.job import Job
from accel.pipelines.load import load
from accel.plans import Plan
from tests.helpers.error_tables import LAYERS, with_layers

STEPS = 3


def run(pipe):
    job = Job("a red circle", seed=0, steps=STEPS, frames=5, width=64, height=64, preset=None)
    return generate(pipe, job).frames


@pytest.fixture(scope="module")
def pipe():
    return load("tiny")


@pytest.fixture(scope="module")
def measured(pipe):
    return calibrate(pipe, [run], impl="cpu", probe_runs=24, progress=False)


def unchecked() -> Plan:
    attention = AttentionConfig(impl="cpu", smooth_q=True, check_rows=0)
    return Plan("", attention, linear=LinearConfig(impl="cpu", check_rows=0))


@pytest.mark.slow
def test_every_layer_of_the_blocks_is_measured(measured):
    own = [site for site in measured.sites if site.endswith("attn1.to_q")]
    assert own == [f"blocks.{i}.attn1.to_q" for i in range(6)] and set(own) <= measured.linear
    layers = np.array([site in measured.linear for site in measured.sites])
    assert measured.has("int8").all() and not measured.has("int4")[layers].any()
    assert measured.has("int4")[~layers].all()
    error = measured.mean("l1", "int8")[layers]
    assert (error > 1e-4).all() and (error < 0.1).all()
    assert (measured.costs["full"] > 0).all() and (measured.costs["int8"] > 0).all()
    assert (measured.site_weight > 0).all()


@pytest.mark.slow
def test_a_mixed_plan_is_no_worse_than_predicted(pipe, measured):
    plain, found, predicted = run(pipe), {}, {}
    for name in ("full", "int8", "mixed"):
        choice = choose.uniform(measured, "int8" if name == "int8" else "full")
        if name == "mixed":
            odd = [site in measured.linear and int(site[7]) % 2 == 1 for site in measured.sites]
            choice[odd] = "int8"
        plan = choose.to_plan(measured, choice, like=unchecked())
        assert (plan.linear is None) == (name == "full")
        with patched(pipe, plan=plan):
            found[name] = accel.core.quality.psnr(plain, run(pipe))
        predicted[name] = choose.predicted(measured, choice)
        assert found[name] > predicted[name] - 3 * measured.spread or name == "full"
    assert predicted["int8"] < predicted["mixed"]
    assert found["full"] == np.inf and found["int8"] < found["mixed"]


def test_a_layer_never_gets_a_precision_that_it_does_not_have():
    table = with_layers()
    layers = [table.sites.index(name) for name in LAYERS]
    choices = [
        choose.uniform(table, "int4"), choose.by_share(table, 0.7), choose.by_bound(table, 10.0),
        choose.by_quality(table, 15.0), choose.by_cost(table, 0.45),
    ]  # fmt: skip
    for choice in choices:
        assert set(choice[layers].ravel()) <= {"full", "int8"}
    assert (choices[0][:3] == "int4").all() and (choices[2][layers] == "int8").all()
    assert "int8" in choices[3][layers] and np.isfinite(choose.predicted(table, choices[3]))


def test_a_layer_that_does_not_pay_stays_full():
    choice = choose.by_quality(with_layers(layer_cost=1.2), 15.0)
    assert (choice[-2:] == "full").all() and "full" not in choice[:-2]
    assert choose.to_plan(with_layers(), choice).linear is None


def test_a_plan_has_rules_for_both():
    table = with_layers(steps=9)
    choice = choose.uniform(table, "int8")
    choice[1, :3], choice[3, 4:] = "int4", "full"
    plan = choose.to_plan(table, choice, like=Plan("", AttentionConfig(smooth_q=True)))
    assert plan.attention.smooth_q and plan.name == "calibrated"
    for i, site in enumerate(table.sites):
        config = plan.linear if site in LAYERS else plan.attention
        assert [precision_at(config, site, k, 9) for k in range(9)] == choice[i].tolist()


def test_time_is_that_of_what_ran():
    table = with_layers(sites=2, layer_cost=0.25)
    assert choose.relative_cost(table, choose.uniform(table, "full")) == 1.0
    wanted = (2 * 0.43 + 2 * 0.25) / 4
    assert choose.relative_cost(table, choose.uniform(table, "int8")) == pytest.approx(wanted)


def test_a_table_with_layers_survives_json(tmp_path):
    table = with_layers()
    table.save(tmp_path / "t.json")
    again = ErrorTable.load(tmp_path / "t.json")
    assert again.to_dict() == table.to_dict() and again.linear == table.linear
    assert not again.has("int4")[-1] and "Infinity" not in (tmp_path / "t.json").read_text()
    both = table.merge(again)
    assert both.costs["int4"][-1] == np.inf and both.costs["int8"][-1] == 0.5


def test_probes_draw_from_what_a_site_has():
    own = [("full", "int8", "int4")] * 3 + [("full", "int8")] * 3
    found = probes(own, 6, 20)
    assert {p for c in found for p in c[:3].ravel()} == {"full", "int8", "int4"}
    assert {p for c in found for p in c[3:].ravel()} == {"full", "int8"}
