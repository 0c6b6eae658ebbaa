"""A plan for a memory budget, on the embedded model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import accel
from accel.calibration.step_measurement import Measurement, Point
from accel.config import RehashConfig
from accel.families.components import size_of
from accel.memory import fit
from accel.memory.meta_models import Video, of_pipeline
from accel.memory.simulate import simulate
from accel.pipelines.job import Job
from accel.pipelines.load import load

JOB = Job(prompt="a", width=64, height=64, frames=17)


@pytest.fixture(scope="module")
def pipe():
    return load("tiny")


@pytest.fixture(scope="module")
def peaks(pipe):
    return simulate(of_pipeline(pipe), Video(64, 64, 17))


@pytest.fixture(scope="module")
def needs(pipe):
    return fit.of_loaded(pipe, Video(64, 64, 17))


def given(monkeypatch, needs):
    monkeypatch.setattr(fit, "of_loaded", lambda pipe, video: needs)


@pytest.mark.slow
@pytest.mark.proof
def test_all_weights_that_are_loaded_count_in_every_phase(pipe, peaks, needs):
    modules = [c for c in pipe.components.values() if isinstance(c, torch.nn.Module)]
    weights = sum(t.nbytes for m in modules for t in (*m.parameters(), *m.buffers()))
    assert needs.denoise == {n: size + weights for n, size in peaks.denoise.items()}
    assert needs.decode["whole"] == peaks.decode["whole"] + weights
    assert needs.encode == max(peaks.encode.values()) + weights
    own = fit.of_peaks(of_pipeline(pipe), peaks)  # one component at a time
    assert own.denoise[1] == peaks.denoise[1] + peaks.denoiser_weights < needs.denoise[1]


@pytest.mark.slow
def test_the_fewest_slices_that_fit(pipe, needs, monkeypatch):
    needs = replace(needs, decode=dict.fromkeys(needs.decode, 0), encode=0)
    given(monkeypatch, needs)
    assert accel.plan(pipe, JOB, memory=needs.denoise[1]).slicing is None
    plan = accel.plan(pipe, JOB, memory=needs.denoise[4])
    fewest = min(n for n, size in needs.denoise.items() if size <= needs.denoise[4])
    assert plan.slicing == accel.SlicingConfig(fewest, 1) and plan.attention is None
    with pytest.raises(ValueError, match=r"denoising in 16 slices needs .* GiB"):
        accel.plan(pipe, JOB, memory=needs.denoise[16] - 1)


@pytest.mark.slow
def test_text_encoding_that_does_not_fit_is_said(pipe, needs, monkeypatch):
    given(monkeypatch, replace(needs, decode=dict.fromkeys(needs.decode, 0)))
    assert needs.encode > needs.denoise[16]  # of 512 tokens
    assert accel.plan(pipe, JOB, memory=max(needs.encode, needs.denoise[1]))
    with pytest.raises(ValueError, match=r"text encoding needs .* GiB.*pass prompt_embeds"):
        accel.plan(pipe, JOB, memory=needs.encode - 1)


@pytest.mark.slow
def test_on_an_accelerator_finished_frames_are_not_counted(pipe, peaks, monkeypatch):
    monkeypatch.setattr(fit, "simulate", lambda model, video: peaks)
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    weights = sum(map(size_of, parts))
    for kind, way in (("cpu", "16 strips"), ("cuda", "16 strips, frames to the CPU")):
        here = type("WanPipeline", (type(pipe),), {"_execution_device": torch.device(kind)})
        needed = fit.of_loaded(here(**pipe.components), Video(64, 64, 17))
        assert needed.decode["strips"] == peaks.decode[way] + weights


@pytest.mark.slow
def test_the_plan_can_be_patched_with(pipe):
    plan = accel.plan(pipe, JOB, memory="64GiB")
    assert plan == replace(accel.Plan(), name="within 64GiB", attention=None)
    with accel.patched(pipe, plan=plan) as handle:
        assert handle.plan is plan


@pytest.mark.slow
def test_decoding_that_does_not_fit_says_what_would_help(pipe, needs, monkeypatch):
    given(monkeypatch, needs)
    plan = accel.plan(pipe, JOB, memory=needs.decode["whole"] - 1)
    assert plan.slicing == accel.SlicingConfig(16, 1)  # in strips it does
    with pytest.raises(ValueError, match=r"decoding needs .* GiB.*enable_tiling\(\) decodes"):
        accel.plan(pipe, JOB, memory=needs.decode["strips"] - 1)


@pytest.mark.parametrize(
    ("job", "memory", "message"),
    [
        (replace(JOB, frames=None), "8GiB", "width, height and frames, got 64 x 64, None frames"),
        (JOB, "plenty", "memory must look like '8GiB'"),
    ],
)
def test_bad_arguments_are_one_clear_error(pipe, job, memory, message):
    with pytest.raises(ValueError, match=message):
        accel.plan(pipe, job, memory=memory)


@pytest.mark.slow
def test_decibels_take_a_measurement_and_memory_counts_what_it_keeps(pipe, needs, monkeypatch):
    given(monkeypatch, needs)
    times = tuple(float(t) for t in range(25, 0, -1))
    points = (Point((*range(20), 24), (41.0, 41.2), "a"), Point((*range(9), 24), (31.0, 31.2), "b"))
    m = Measurement(25, times, ((1.0,) * 25,) * 25, RehashConfig(), 1, points)
    plan = accel.plan(pipe, JOB, quality=30.0, measured=m)
    assert plan.rehash.keys == points[1].keys and plan.rehash.quality == 30.0
    assert plan.slicing is None and plan.attention is None
    kept = needs.kept.bytes(RehashConfig(multistep=None)) or 1
    assert needs.phases(1, plan.rehash)["denoise"] == needs.denoise[1] + kept
    loose = max(needs.denoise[1] + kept, needs.decode["whole"], needs.encode)
    both = accel.plan(pipe, JOB, memory=loose, quality=40.0, measured=m)
    assert both.rehash.keys == points[0].keys and "40 dB" in both.name
    with pytest.raises(
        ValueError, match=r"quality=36 dB needs a measurement.*measure_steps\(pipe, jobs\)"
    ):
        accel.plan(pipe, JOB, quality=36.0)
    with pytest.raises(ValueError, match=r"at_quality\(36\).*speedup"):
        RehashConfig(quality=36.0)
    with pytest.raises(ValueError, match="give a budget"):
        accel.plan(pipe, JOB)
