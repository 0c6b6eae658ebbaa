"""Measured schedules on the embedded model, and what is asked of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from accel import Plan, patched
from accel.config import RehashConfig
from accel.frames import call
from accel.pipelines.load import load
from accel.quality import psnr
from accel.rehash.measure import measure
from accel.rehash.measurement import LOSSLESS, Measurement, Point

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
    found = measure(pipe, [{**JOB, "seed": 1}], speedups=(1.2, 1.6), say=said.append)
    assert said and "step" not in vars(pipe.scheduler)
    return found


def test_points_are_what_real_runs_reach(pipe, measured):
    full = call(pipe, {**JOB, "seed": 1})
    for point in measured.points:
        config = measured.at_speedup(12 / len(point.keys) - 1e-6)
        assert config.keys == point.keys
        with patched(pipe, plan=Plan("t", None, rehash=config)):
            frames = call(pipe, {**JOB, "seed": 1})
        assert min(LOSSLESS, psnr(full, frames)) == pytest.approx(point.psnr[0])


def test_the_map_is_a_similarity(measured):
    s = measured.similarity()
    assert s.shape == (12, 12) and np.allclose(np.diag(s), 1) and np.allclose(s, s.T)
    assert s[5, 6] > s[5, 11]
    assert list(measured.times) == sorted(measured.times, reverse=True)


def test_round_trip(measured, tmp_path):
    measured.save(tmp_path / "m.json")
    assert Measurement.load(tmp_path / "m.json") == measured


def test_decibels_and_speedups_choose_among_the_measured(measured):
    points = (
        Point(tuple(range(10)), (40.0, 42.0), "a"),
        Point((0, 1, 2, 5, 8, 11), (30.0, 31.0), "b"),
    )
    m = replace(measured, points=points)
    assert m.at_quality(28.0).keys == points[1].keys
    assert m.at_quality(36.0).keys == points[0].keys
    assert m.at_quality(70.0).keys == tuple(range(12))
    assert m.at_speedup(1.2).keys == points[0].keys and m.at_speedup(2.0).keys == points[1].keys
    assert points[0].expected == pytest.approx(41 - 1.2816 * 2**0.5 * 1.5**0.5, abs=1e-3)
    with pytest.raises(ValueError, match=r"no schedule for 5×.*2.00×"):
        m.at_speedup(5.0)


def test_what_cannot_be_measured_is_named(pipe):
    with pytest.raises(ValueError, match="at least one job"):
        measure(pipe, [])
    with pytest.raises(ValueError, match="8 steps or fewer"):
        measure(pipe, [{**JOB, "num_inference_steps": 4}])
    with pytest.raises(ValueError, match="mapping"):
        Measurement.from_dict({"config": None})
    assert RehashConfig().keys == ()
