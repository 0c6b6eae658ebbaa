"""Predicted bytes of packed linear layers against those that are packed, and where they count."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import accel
from accel import LinearConfig, Plan, Rule
from accel.families import models
from accel.kernels.cpu.native import library
from accel.kernels.linear import pack
from accel.kernels.packed_weight import packed_bytes
from accel.memory.configurations import of_pipeline
from accel.memory.decide import placement
from accel.memory.fit import WHOLE, Needs, peak_of_plan
from accel.memory.meta_models import Video
from accel.memory.packed_layers import LayerSize, PackedLayers, packed_layers
from accel.memory.pieces import Demand, Piece, demand
from accel.memory.placement import Room
from accel.memory.simulate import denoiser_call, simulate
from accel.memory.ways import EACH_CALL, Way
from accel.pipelines.generate import generate
from accel.pipelines.job import Job

needs_native = pytest.mark.skipif(library().lib is None, reason="no native library")
VIDEO = Video(64, 64, 5)
TEXT = 16  # rows; prompts are simulated at their longest, and here are 32 tokens


@needs_native
@pytest.mark.parametrize("size", [(1, 1), (16, 64), (100, 70), (1536, 8960), (320, 40)])
@pytest.mark.parametrize("options", [{}, {"smooth": True}, {"outliers": 3}])
def test_bytes_of_one_copy(size, options):
    weight = torch.randn(*size)
    kept = min(options.get("outliers", 0), size[1])
    made = {"smooth": torch.ones(size[1])} if options.get("smooth") else {}
    if kept:
        made["outliers"] = torch.arange(kept)
    packed = pack(weight, impl="cpu", **made).nbytes
    known = {"smooth": False, "outliers": 0, **options}
    # Cards pad more inputs, and have a factor where columns are kept.
    most = packed_bytes(*size, **known)
    assert packed <= most <= packed + 16 * -(-size[0] // 16) * 16 + 4 * size[1] * bool(kept)
    if size[1] % 16 == 0 and not kept:
        assert packed == most


@pytest.fixture(scope="module")
def pipe():
    return accel.load("tiny")


@pytest.fixture(scope="module")
def predicted(pipe):
    return simulate(of_pipeline(pipe), VIDEO, (1,), decode=False).packed


OPTIONS = {
    "plain": {},
    "smooth": {"smooth": True},
    "a part at full precision": {"rules": (Rule("full", "*.ffn.*"),)},
    "a part of the run": {"rules": (Rule("full", end=0.5),)},
}


@needs_native
@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_the_embedded_model_packs_what_was_predicted(pipe, predicted, name):
    linear = LinearConfig(impl="cpu", min_rows=TEXT, **OPTIONS[name])
    job = Job("a red circle moves right", preset=None, width=64, height=64, frames=5, steps=2)
    with accel.patched(pipe, plan=Plan("t", None, linear=linear)) as handle:
        generate(pipe, job)
        measured = handle.report().linear.packed_bytes
        sites = {name: site.weight.nbytes for name, site in handle.layers.items()}
    assert measured and set(sites) == set(predicted.layers)
    assert predicted.bytes(linear) == measured == sum(sites.values())


@needs_native
@pytest.mark.slow
def test_the_embedded_model_with_channels_that_are_kept(pipe, predicted):
    linear = LinearConfig(impl="cpu", min_rows=TEXT, outliers=16)
    job = Job("a red circle moves right", preset=None, width=64, height=64, frames=5, steps=1)
    with accel.patched(pipe, plan=Plan("t", None, linear=linear)) as handle:
        generate(pipe, job)
        measured = handle.report().linear.packed_bytes
    factors = sum(4 * size.inputs for size in predicted.layers.values())  # cards only
    assert predicted.bytes(linear) == measured + factors


@pytest.mark.slow
def test_peaks_grow_by_what_is_packed(pipe, predicted):
    model, linear = of_pipeline(pipe), LinearConfig()
    plain = peak_of_plan(model, VIDEO, None, None)
    assert peak_of_plan(model, VIDEO, None, None, linear) - plain in range(
        1, predicted.bytes(linear) + 1
    )
    whole = simulate(model, VIDEO, (1,))
    made = demand(model, whole, packed=whole.packed.bytes(linear))
    assert made.packed == predicted.bytes(linear)
    assert demand(model, whole, packed=made.packed, kind="int8").packed == 0  # quantized already


def test_both_denoisers_of_a_model_are_packed():
    model = models()["wan-1.3b"]
    denoiser, kwargs = denoiser_call(model, Video(64, 64, 5))
    one = packed_layers(model, denoiser, kwargs)
    two = packed_layers(replace(model, second=model.denoiser), denoiser, kwargs)
    linear = LinearConfig(min_rows=1)
    assert two.bytes(linear) == 2 * one.bytes(linear) > 10**9
    assert {name.split(".")[0] for name in two.layers} == {"transformer", "transformer_2"}
    assert len(one.layers) == 30 * 10 and one.layers["blocks.29.ffn.net.0.proj"].rows == 4 * 4 * 2


def test_layers_with_few_rows_are_not_packed():
    """Flux has 19 blocks whose modulation alone would be a fifth of all copies."""
    model = models()["flux"]
    denoiser, kwargs = denoiser_call(model, Video(256, 256, 1))
    layers = packed_layers(model, denoiser, kwargs).layers
    rows = {name.partition(".")[0] + name[-12:]: size.rows for name, size in layers.items()}
    assert rows["transformer_blocksnorm1.linear"] == 1 and set(rows.values()) > {1, 256}


LAYERS = PackedLayers({"a": LayerSize(64, 64, 500), "b": LayerSize(32, 64, 500)})
COPIES = [packed_bytes(n, 64, smooth=False, outliers=0) for n in (64, 32)]


def test_originals_that_go_to_the_cpu_make_room_for_the_copies(monkeypatch):
    on_device, away = LinearConfig(), LinearConfig(keep="cpu")
    assert LAYERS.bytes(None) == 0 and LAYERS.bytes(on_device) == sum(COPIES)
    assert LAYERS.bytes(LinearConfig(min_rows=501)) == 0
    both = LinearConfig(rules=(Rule("fp8", "a", end=0.5),))
    assert LAYERS.bytes(both) == sum(COPIES) + COPIES[0]
    for card, most in ((False, sum(COPIES)), (True, max(COPIES))):
        monkeypatch.setattr(torch.cuda, "is_available", lambda card=card: card)
        assert LAYERS.bytes(away) == most and LAYERS.bytes(on_device) == sum(COPIES)


def test_copies_count_while_denoising_and_decoding():
    needs = Needs({1: 100, 16: 50}, {WHOLE: 80, "strips": 60}, encode=90, packed=LAYERS)
    more = LAYERS.bytes(LinearConfig())
    assert needs.phases(1, None, LinearConfig()) == {
        "encode": 90, "denoise": 100 + more, "decode": 80 + more,
    }  # fmt: skip
    assert needs.peak(1) == 100 and needs.fewest_slices(100) == 1
    assert needs.fewest_slices(100 + more - 1, None, LinearConfig()) == 16
    with pytest.raises(ValueError, match="no number of slices fits"):
        needs.fewest_slices(50 + more, None, LinearConfig())


@pytest.mark.parametrize("way", Way)
def test_weights_that_move_at_each_call_have_no_copies(way):
    piece = Piece("x", 100, 10, 5, 20)
    job = Demand((piece,), (piece,), piece, {1: 30}, {WHOLE: 40})
    room = Room(10**6, 10**6)
    plain, packed = (
        placement(one, room, way, 1, WHOLE).device for one in (job, replace(job, packed=7))
    )
    more = 0 if way in EACH_CALL else 7
    assert packed == {**plain, "denoise": plain["denoise"] + more, "decode": plain["decode"] + more}
