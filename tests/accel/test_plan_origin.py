"""Where a plan comes from: kept through JSON, no part of ids, and held against each use."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from helpers import error_tables
from helpers.rehash_pipe import STEPS, Pipe

import accel
from accel import (
    AttentionConfig,
    ErrorTable,
    LinearConfig,
    Measurement,
    Plan,
    RehashConfig,
    Rule,
    choose,
)
from accel.attention.policy import unmatched
from accel.calibration.step_measurement import Point
from accel.cli import main
from accel.core import origin as origin_module
from accel.core.key_steps import Origin
from accel.core.origin import plan_origin_of
from accel.core.plan_origin import PlanOrigin
from accel.pipelines.batch.identity import job_id, plan_digest
from accel.pipelines.job import Job
from accel.pipelines.job_settings import job_from_settings, settings_text

WHOLE = PlanOrigin(
    "search", "2026-11-30", "WanPipeline", {"transformer": "A"}, {"transformer": "f0"},
    Origin((("transformer", "ab"),), "Euler", "cd"), 25, (16, 5, 8, 8), 64, 64, 17, 6,
    {"torch": "2.13.0"}, {"processor": "one", "isa": "avx2", "device": "cpu"},
    36.0, "expected in 9 of 10 jobs, measured", 1.52, "of whole runs, measured",
)  # fmt: skip


def test_an_origin_survives_json_and_changes_no_comparison(tmp_path):
    plan = Plan("mine", origin=WHOLE)
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))).origin == WHOLE
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json").origin == WHOLE
    assert plan == Plan("mine") and hash(plan) == hash(Plan("mine"))
    assert "origin" not in Plan("mine").to_dict()
    assert PlanOrigin("hand").to_dict() == {"made_by": "hand"}
    assert Plan("mine", origin=PlanOrigin("hand")).to_dict()["origin"] == {"made_by": "hand"}


def test_an_origin_decides_no_id_and_no_byte():
    with_it, without = (
        Job("p", preset=None, plan=Plan("mine", origin=origin).to_dict())
        for origin in (WHOLE, None)
    )
    assert job_id(with_it) == job_id(without) and plan_digest(with_it) == plan_digest(without)
    assert settings_text(with_it) == settings_text(without)
    assert job_from_settings(settings_text(with_it), "a file")[0].accel_plan() == Plan("mine")


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"made_by": "magic"}, r"made_by must be one of \['calibrate'.*got 'magic'"),
        ({"made_by": 3}, "made_by must be one of"),
        ({"date": "yesterday"}, "date must be a day such as '2026-11-30', got 'yesterday'"),
        ({"date": 20261130}, "origin date must be text, got 20261130"),
        ({"pipeline": ["WanPipeline"]}, "origin pipeline must be text"),
        ({"classes": ["A"]}, "origin classes must be a mapping of texts"),
        ({"machine": {"isa": 2}}, "origin machine 'isa' must be text, got 2"),
        ({"versions": {3: "x"}}, "key of origin versions must be text, got 3"),
        ({"measured": "ab"}, "origin measured must be a mapping, got 'ab'"),
        ({"measured": {"weights": []}}, "origin measured lacks"),
        ({"steps": 0}, "origin steps must be a whole number from 1, got 0"),
        ({"jobs": True}, "origin jobs must be a whole number from 1, got True"),
        ({"inputs": "16"}, "origin inputs must be a list of sizes"),
        ({"inputs": [16, -1]}, "origin input size must be a whole number from 0, got -1"),
        ({"decibels": float("nan")}, "origin decibels must be a number"),
        ({"speedup": "fast"}, "origin speedup must be a number, got 'fast'"),
        ({"author": "me"}, "plan origin has an unknown key 'author'"),
    ],
)
def test_what_is_wrong_in_an_origin_is_one_clear_error(changed, error):
    data = {**Plan("mine").to_dict(), "origin": {"made_by": "hand", **changed}}
    with pytest.raises(ValueError, match=error):
        Plan.from_dict(data)


@pytest.mark.parametrize("origin", [3, "search", ["search"], {}])
def test_an_origin_is_a_mapping_with_a_maker(origin):
    with pytest.raises(ValueError, match="plan origin"):
        Plan.from_dict({"origin": origin})


def used(pipe, origin, caplog, rehash=None):
    """The notes and the log lines of a run of a plan with that origin."""
    caplog.clear()
    with (
        caplog.at_level(logging.INFO, "accel"),
        accel.patched(pipe, plan=Plan("p", None, rehash=rehash, origin=origin)) as handle,
    ):
        pipe()
        pipe()
        notes = handle.report().notes
    said = [(r.levelname, r.getMessage()) for r in caplog.records if "plan: " in r.getMessage()]
    return notes, said


def made(pipe):
    """The origin of a plan that is made on a pipeline now, for runs like its own."""
    origin = replace(plan_origin_of(pipe, "search"), decibels=36.0)
    with accel.patched(pipe, plan=Plan("p", None)) as handle:
        pipe()
        return replace(origin, steps=handle.steps, inputs=handle.origin.inputs)


def test_a_run_like_the_measured_ones_says_only_where_the_plan_comes_from(caplog):
    pipe = Pipe("wan")
    origin = made(pipe)
    assert origin.steps == STEPS and len(origin.inputs) >= 2 and origin.classes and origin.machine
    notes, said = used(pipe, origin, caplog)
    assert [n for n in notes if "made" in n] == [f"the plan was {origin}"] and not said


def test_each_thing_that_does_not_hold_is_one_line(caplog):
    pipe = Pipe("wan")
    origin = made(pipe)
    other = replace(
        origin, pipeline="FluxPipeline", steps=4, inputs=(1, 2, 3), width=64, height=32, frames=9,
        machine={**origin.machine, "isa": "vnni"}, versions={**origin.versions, "torch": "1.0"},
    )  # fmt: skip
    notes, said = used(pipe, other, caplog)
    for text in (
        "made for FluxPipeline, used on Pipe: 36.0 dB is not promised",
        f"made for 4 steps, this run has {STEPS}: 36.0 dB is not promised",
        "made for inputs of [1, 2, 3] (64x32x9), this run has ",
    ):
        assert sum(n.startswith(text) for n in notes) == 1
        assert [level for level, line in said if text in line] == ["WARNING"]
    machine = next(n for n in notes if n.startswith("made with isa vnni (here "))
    assert "torch 1.0 (here " in machine and "integer precisions keep" in machine
    assert ("INFO", f"plan: {machine}") in said and len(said) == 4


def test_other_classes_sizes_weights_and_samplers_are_told(caplog):
    pipe = Pipe("wan")
    origin = made(pipe)
    (name,) = origin.classes
    notes, _ = used(pipe, replace(origin, classes={name: "OtherModel"}), caplog)
    assert any(n.startswith(f"made for OtherModel as {name!r}, used on ") for n in notes)
    notes, _ = used(pipe, replace(origin, classes={"unet": "OtherModel"}), caplog)
    assert "made for a denoiser 'unet' of class OtherModel, which is not there" in notes
    notes, _ = used(pipe, replace(origin, sizes={name: "0"}), caplog)
    assert any("another configuration" in n for n in notes)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=4.0)
    with torch.no_grad():
        next(pipe.module.parameters()).mul_(2)
    notes, said = used(pipe, origin, caplog)
    (line,) = [n for n in notes if n.startswith("it was measured with other weights")]
    assert "other settings of FlowMatchEulerDiscreteScheduler" in line
    assert said == [("WARNING", f"plan: {line}")]


def test_what_a_step_schedule_says_itself_is_not_said_twice(caplog):
    pipe = Pipe("wan")
    origin = made(pipe)
    rehash = accel.RehashConfig(keys=(0, 1, 2, STEPS - 1), steps=STEPS, origin=origin.measured)
    with torch.no_grad():
        next(pipe.module.parameters()).mul_(2)
    notes, said = used(pipe, origin, caplog, rehash)
    assert not said and not any("weights" in n for n in notes)


def test_rules_that_name_no_site_are_told():
    attention = AttentionConfig("int8", (Rule("full", ("blocks.0", "blocks.9", "up.*")),))
    linear = LinearConfig("int8", (Rule("full", end=0.5), Rule("full", "blocks.*.ffn")))
    assert unmatched(attention, ["blocks.0"], linear, ["blocks.0.ffn"]) == [
        "attention rules name what this model does not have: blocks.9, up.*"
    ]
    assert unmatched(attention, [], linear, [])[1].endswith("does not have: blocks.*.ffn")
    many = AttentionConfig("int8", (Rule("full", tuple(f"a.{i}" for i in range(9))),))
    assert unmatched(many, ["b"], None, [])[0].endswith(": a.0, a.1, a.2 and 6 more")
    assert unmatched(None, [], None, []) == []


def test_plans_of_a_measurement_have_its_origin_with_what_it_promises():
    points = (Point((*range(20), 24), (41.0, 41.2), "a"), Point((*range(9), 24), (31.0, 31.2), "b"))
    known = replace(WHOLE, made_by="measure_steps", decibels=None, speedup=None)
    m = Measurement(25, (1.0,) * 25, ((1.0,),), RehashConfig(), 1, points, origin=known)
    assert Measurement.from_dict(json.loads(json.dumps(m.to_dict()))).origin == known
    origin = accel.plan(None, None, quality=30.0, measured=m).origin
    assert (origin.made_by, origin.decibels, origin.speedup) == ("measure_steps", 30.0, 2.5)
    assert origin.decibels_are == "in 9 of 10 jobs, measured" and origin.measured == WHOLE.measured
    assert accel.plan(None, None, quality=30.0, measured=replace(m, origin=None)).origin is None


def test_plans_of_a_table_have_its_origin_with_what_is_predicted():
    known = replace(WHOLE, made_by="calibrate", decibels=None, speedup=None, jobs=None)
    table = replace(error_tables.made(), origin=known)
    again = ErrorTable.from_dict(json.loads(json.dumps(table.to_dict())))
    assert again.origin == known and "origin" not in error_tables.made().to_dict()
    choice = choose.uniform(table, "int8")
    origin = choose.to_plan(again, choice).origin
    assert origin.decibels == choose.predicted(table, choice) and origin.jobs == table.jobs
    assert origin.speedup == 1 / choose.relative_cost(table, choice)
    full = choose.to_plan(again, choose.uniform(table, "full")).origin
    assert full.decibels is None and full.speedup == 1.0
    with pytest.raises(ValueError, match="table origin lacks"):
        ErrorTable.from_dict({**table.to_dict(), "origin": {}})


def test_weights_that_cannot_be_read_as_numbers_are_not_compared(monkeypatch):
    def strange(weight):
        raise NotImplementedError("packed by another package")

    monkeypatch.setattr(origin_module, "_some", strange)
    assert origin_module.weights_hash(torch.nn.Linear(2, 2)) == ""


def test_plan_diff_says_where_plans_come_from(tmp_path, capsys):
    Plan.preset("fast").save(tmp_path / "a.json")
    replace(Plan.preset("fast"), origin=WHOLE).save(tmp_path / "b.json")
    assert main(["plan-diff", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("B was made by search, on 2026-11-30, for WanPipeline, 64x64x17")
    assert "25 steps, 6 jobs, 36.0 dB expected in 9 of 10 jobs, measured, 1.52x" in first
    assert second.startswith("origin: none -> ")
    other = replace(WHOLE, jobs=8, machine={**WHOLE.machine, "isa": "amx"})
    replace(Plan.preset("fast"), origin=other).save(tmp_path / "a.json")
    assert main(["plan-diff", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:] == ["origin.jobs: 8 -> 6", "origin.machine.isa: amx -> avx2"]
