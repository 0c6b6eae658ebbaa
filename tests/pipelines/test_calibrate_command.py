"""``accel calibrate``: files out of job files, and one clear error for what cannot be."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from accel.calibration import precision
from accel.calibration.choose import uniform
from accel.calibration.table import ErrorTable
from accel.cli import main, one_model
from accel.pipelines.pictures import COLORS, frame_strip, heat_map
from accel.plans import Plan


@pytest.fixture
def jobs(tmp_path):
    path = tmp_path / "jobs.yaml"
    path.write_text("defaults: {steps: 3, frames: 5}\njobs: [{prompt: a red crescent, seed: 1}]\n")
    return path


def table(sites=4, steps=6):
    shape = (sites, steps, 1)
    errors = {p: np.full((5, *shape), e) for p, e in {"int8": 0.01, "int4": 0.3}.items()}
    names = tuple(f"blocks.{i}.attn1" for i in range(sites))
    costs = {p: np.ones(sites) for p in ("full", *errors)}
    return ErrorTable(
        names, np.linspace(1, 0, steps), np.ones(sites), np.ones(shape), errors, costs
    )


def test_twenty_four_mixed_plans_are_run_unless_told_otherwise():
    assert precision.calibrate.__kwdefaults__["probe_runs"] == 24


@pytest.mark.slow
@pytest.mark.proof
def test_job_files_become_a_table_a_plan_and_pictures(jobs, tmp_path, capsys, monkeypatch):
    out, real, made = tmp_path / "out", one_model.generate, []
    monkeypatch.setitem(precision.calibrate.__kwdefaults__, "probe_runs", 5)
    monkeypatch.setattr(
        one_model, "generate", lambda pipe, job: made.append(job) or real(pipe, job)
    )
    assert main(["calibrate", str(jobs), "--out", str(out), "--share", "0.5", "--impl",
                 "reference"]) == 0  # fmt: skip
    assert len(made) == 1 + 5 + 1  # with errors measured, mixed plans, the plan
    said = capsys.readouterr().out
    assert "PREDICTED" in said and "one job typically" in said and "on the first job" in said
    found = ErrorTable.load(out / "table.json")
    attended = [site for site in found.sites if site not in found.linear]
    assert len(attended) == 12 and len(found.linear) == 48
    assert len(found.sigmas) == 3 and found.step_weight is not None
    plan = Plan.load(out / "plan.json")
    assert plan.attention is not None and plan.attention.impl == "reference"
    assert {plan.attention.precision, *(r.precision for r in plan.attention.rules)} == {
        "int4", "int8"
    }  # fmt: skip
    assert plan.linear is None  # a share is one of attention's work
    for name in ("precision.png", "frames.png"):
        assert Image.open(out / name).size[0] > 100
    assert main(["calibrate", str(jobs), "--out", str(out), "--quality", "30", "--impl",
                 "reference", "--merge", str(out / "table.json")]) == 0  # fmt: skip
    assert ErrorTable.load(out / "table.json").jobs == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--share", "1.5"], "--share must be a number from 0 to 1, got 1.5"),
        (["--bound", "-1"], "--bound must be a number from 0 to 1000, got -1"),
        (["--merge", "missing.json"], "missing.json"),
        (["--impl", "gpu"], "cuda tensors only"),
    ],
)
def test_what_cannot_be_is_named(jobs, tmp_path, capsys, arguments, message):
    assert main(["calibrate", str(jobs), "--out", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_jobs_of_two_models_are_refused(tmp_path, capsys):
    path = tmp_path / "jobs.json"
    path.write_text(json.dumps({"jobs": [{"prompt": "a"}, {"prompt": "b", "model": "x/y"}]}))
    assert main(["calibrate", str(path), "--out", str(tmp_path / "out")]) == 2
    assert "one model at a time" in capsys.readouterr().err


def test_heat_map_shows_errors_and_choice():
    t = table()
    choice = uniform(t, "int8")
    choice[2, 3:] = "int4"
    picture = np.asarray(heat_map(t, choice))
    int8, int4, chosen = (picture[40, 197 + k * 98] for k in range(3))
    assert int4.sum() < int8.sum() < 3 * 255  # darker is worse
    assert tuple(chosen) == COLORS["int8"]
    assert tuple(picture[32 + 2 * 14 + 7, 190 + 2 * 98 + 4 * 14 + 7]) == COLORS["int4"]


def test_frame_strip_shows_the_difference():
    a = np.full((9, 4, 4, 3), 100, np.uint8)
    b = a.copy()
    b[4] += 5
    strip = np.asarray(frame_strip(a, b, enlarge=1))
    assert strip.shape == (12, 20, 3)
    assert strip[9, 9, 0] == 40 and strip[9, 0, 0] == 0  # eight times the difference
    with pytest.raises(ValueError, match="different shape"):
        frame_strip(a, b[1:])
