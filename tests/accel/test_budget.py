"""A plan for a memory budget, on the embedded model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import accel
from accel.budget import family
from accel.config import RehashConfig
from accel.memory import simulate
from accel.models import Video
from accel.pipelines.job import Job
from accel.pipelines.load import load
from accel.rehash.measurement import Measurement, Point

JOB = Job(prompt="a", width=64, height=64, frames=17)


@pytest.fixture(scope="module")
def pipe():
    return load("tiny")


@pytest.fixture(scope="module")
def needs(pipe):
    """Bytes of all weights, and of activations by slices and in decoding."""
    modules = [c for c in pipe.components.values() if isinstance(c, torch.nn.Module)]
    weights = sum(t.numel() * t.itemsize for m in modules for t in m.parameters())
    weights += sum(t.numel() * t.itemsize for m in modules for t in m.buffers())
    return weights, simulate(family(pipe), Video(64, 64, 17))


def test_the_fewest_slices_that_fit(pipe, needs, monkeypatch):
    weights, peaks = needs
    monkeypatch.setattr("accel.budget._decode_peak", lambda peaks, vae: 0)
    monkeypatch.setattr("accel.budget._encode_peak", lambda peaks, loaded: 0)
    assert accel.plan(pipe, JOB, memory=weights + peaks.denoise[1]).slicing is None
    plan = accel.plan(pipe, JOB, memory=weights + peaks.denoise[4])
    fewest = min(n for n, size in peaks.denoise.items() if size <= peaks.denoise[4])
    assert plan.slicing == accel.SlicingConfig(fewest, 1) and plan.attention is None
    with pytest.raises(ValueError, match=r"denoising in 16 slices needs .* GiB"):
        accel.plan(pipe, JOB, memory=weights)


def test_text_encoding_that_does_not_fit_is_said(pipe, needs, monkeypatch):
    weights, peaks = needs
    monkeypatch.setattr("accel.budget._decode_peak", lambda peaks, vae: 0)
    (encode,) = peaks.encode.values()
    assert encode > peaks.denoise[16]  # of 512 tokens
    assert accel.plan(pipe, JOB, memory=weights + max(encode, peaks.denoise[1]))
    with pytest.raises(ValueError, match=r"text encoding needs .* GiB.*pass prompt_embeds"):
        accel.plan(pipe, JOB, memory=weights + encode - 1)


def test_on_an_accelerator_finished_frames_are_not_counted(pipe, needs):
    from types import SimpleNamespace

    from accel.budget import _strips_peak

    _, peaks = needs
    here = type("WanPipeline", (SimpleNamespace,), {})
    for kind, way in (("cpu", "16 strips"), ("cuda", "16 strips, frames to the CPU")):
        fake = here(vae=pipe.vae, _execution_device=torch.device(kind))
        assert _strips_peak(peaks, fake) == peaks.decode[way]


def test_the_plan_can_be_patched_with(pipe):
    plan = accel.plan(pipe, JOB, memory="64GiB")
    assert plan == replace(accel.Plan(), name="within 64GiB", attention=None)
    with accel.patched(pipe, plan=plan) as handle:
        assert handle.plan is plan


def test_decoding_that_does_not_fit_says_what_would_help(pipe, needs):
    weights, peaks = needs
    plan = accel.plan(pipe, JOB, memory=weights + peaks.decode["whole"] - 1)
    assert plan.slicing == accel.SlicingConfig(16, 1)  # in strips it does
    with pytest.raises(ValueError, match=r"decoding needs .* GiB.*enable_tiling\(\) decodes"):
        accel.plan(pipe, JOB, memory=weights + peaks.decode["16 strips"] - 1)


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


def test_decibels_take_a_measurement_and_memory_counts_what_it_keeps(pipe, needs):
    times = tuple(float(t) for t in range(25, 0, -1))
    points = (Point((*range(20), 24), (41.0, 41.2), "a"), Point((*range(9), 24), (31.0, 31.2), "b"))
    m = Measurement(25, times, ((1.0,) * 25,) * 25, RehashConfig(), 1, points)
    plan = accel.plan(pipe, JOB, quality=30.0, measured=m)
    assert plan.rehash.keys == points[1].keys and plan.rehash.quality == 30.0
    assert plan.slicing is None and plan.attention is None
    weights, peaks = needs
    just = weights + peaks.denoise[1]
    loose = just + 2 * peaks.rehash["output, measured"]
    both = accel.plan(
        pipe, JOB, memory=max(loose, weights + peaks.decode["whole"]), quality=40.0, measured=m
    )
    assert both.rehash.keys == points[0].keys and "40 dB" in both.name
    with pytest.raises(
        ValueError, match=r"quality=36 dB needs a measurement.*measure\(pipe, jobs\)"
    ):
        accel.plan(pipe, JOB, quality=36.0)
    with pytest.raises(ValueError, match=r"at_quality\(36\).*speedup"):
        RehashConfig(quality=36.0)
    with pytest.raises(ValueError, match="give a budget"):
        accel.plan(pipe, JOB)
