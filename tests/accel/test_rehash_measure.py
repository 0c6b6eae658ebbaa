"""Measured schedules on the embedded model, and what is asked of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from accel import Plan, patched
from accel.calibration.step_measurement import LOSSLESS, Measurement, Point, student
from accel.calibration.steps import measure_steps
from accel.config import RehashConfig
from accel.core.quality import psnr
from accel.core.run_pipeline import call
from accel.pipelines.load import load

JOB = {
    "prompt": "a red circle on a striped blue background", "height": 64, "width": 64,
    "num_frames": 5, "num_inference_steps": 12, "guidance_scale": 3.0, "max_sequence_length": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def pipe():
    pipe = load("tiny")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def measured(pipe):
    said = []
    found = measure_steps(pipe, [{**JOB, "seed": 1}], speedups=(1.2, 1.6), say=said.append)
    assert said and "step" not in vars(pipe.scheduler)
    return found


@pytest.mark.slow
@pytest.mark.proof
def test_points_are_what_real_runs_reach(pipe, measured):
    full = call(pipe, {**JOB, "seed": 1})
    for point in measured.points:
        config = measured.at_speedup(12 / len(point.keys) - 1e-6)
        assert config.keys == point.keys
        with patched(pipe, plan=Plan("t", None, rehash=config)):
            frames = call(pipe, {**JOB, "seed": 1})
        assert min(LOSSLESS, psnr(full, frames)) == pytest.approx(point.psnr[0])


@pytest.mark.slow
def test_the_map_is_a_similarity(measured):
    s = measured.similarity()
    assert s.shape == (12, 12) and np.allclose(np.diag(s), 1) and np.allclose(s, s.T)
    assert s[5, 6] > s[5, 11]
    assert list(measured.times) == sorted(measured.times, reverse=True)


@pytest.mark.slow
def test_round_trip(measured, tmp_path):
    measured.save(tmp_path / "m.json")
    assert Measurement.load(tmp_path / "m.json") == measured
    origin = measured.origin
    assert (origin.made_by, origin.steps, origin.frames) == ("measure_steps", 12, 5)
    assert origin.jobs == 1 and origin.measured == measured.config.origin


@pytest.mark.slow
def test_decibels_and_speedups_choose_among_the_measured(measured):
    points = (
        Point(tuple(range(10)), (40.0, 42.0), "a"),
        Point((0, 1, 2, 5, 8, 11), (30.0, 31.0), "b"),
    )
    m = replace(measured, points=points)
    fast, slow = points[1].expected, points[0].expected
    assert m.at_quality(fast - 0.1).keys == points[1].keys
    assert m.at_quality(slow - 0.1).keys == points[0].keys
    assert m.at_quality(70.0).keys == tuple(range(12)) and m.at_quality(70.0).quality == 70.0
    assert m.at_speedup(1.2).keys == points[0].keys and m.at_speedup(2.0).keys == points[1].keys
    with pytest.raises(ValueError, match=r"no schedule for 5×.*2.00×"):
        m.at_speedup(5.0)


def test_how_far_a_promise_backs_off():
    """Student's t for 1 in 20, against published values; never above the worst; one job: 10 dB."""
    for freedom, value in ((1, 6.314), (2, 2.920), (4, 2.132), (7, 1.895), (29, 1.699)):
        assert student(freedom) == pytest.approx(value, abs=0.01)
    spread = Point((0,), (38.0, 40.0, 42.0), "")
    assert spread.expected == pytest.approx(40 - 2.920 * 2.0 * (4 / 3) ** 0.5)
    assert Point((0,), (40.0, 40.0), "").expected == 40.0
    assert Point((0,), (40.0,), "").expected == 30.0


def test_promises_hold_for_normal_jobs():
    """Of 400 measurements on 6 jobs, a further job reaches what was expected in 9 of 10."""
    draws = np.random.default_rng(0).normal(36, 4, (400, 7))
    kept = [d[6] >= Point((0,), tuple(d[:6]), "").expected for d in draws]
    assert np.mean(kept) > 0.92


def test_what_cannot_be_measured_is_named(pipe):
    with pytest.raises(ValueError, match="at least one job"):
        measure_steps(pipe, [])
    with pytest.raises(ValueError, match="8 steps or fewer"):
        measure_steps(pipe, [{**JOB, "num_inference_steps": 4}])
    with pytest.raises(ValueError, match="mapping"):
        Measurement.from_dict({"config": None})
    assert RehashConfig().keys == ()


def test_the_benchmark_goes_on_where_it_ended(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bench"))
    from rehash_results import Result, Results

    first = Results(tmp_path, "model")
    first.add(["ours", "1.9×"], JOB, Result(1.9, 40.0, 0.99, None, 7))
    with first.file.open("a") as out:
        out.write('{"key": "cut o')
    again = Results(tmp_path, "model")
    assert again.get(["ours", "1.9×"], JOB) == Result(1.9, 40.0, 0.99, None, 7)
    assert again.get(["ours", "2.4×"], JOB) is None
    assert Results(tmp_path, "another").get(["ours", "1.9×"], JOB) is None
