"""What a dry run predicts: time from like runs, memory from configurations; else "unknown"."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch

from accel.cli import main
from accel.memory.meta_models import Video, find, in_dtype
from accel.memory.placement import Room
from accel.memory.simulate import simulate
from accel.pipelines.batch import simulated
from accel.pipelines.batch.helper_process import Helper
from accel.pipelines.batch.identity import model_fingerprint, plan_digest
from accel.pipelines.batch.placements import Placed
from accel.pipelines.batch.predict import Predictor, Totals, memory_text
from accel.pipelines.batch.simulated import Answer, Simulator, embedded_requests
from accel.pipelines.job import Job
from accel.pipelines.load import load, tiny_folder


@pytest.fixture
def simulator():
    found = Simulator()
    yield found
    found.close()


@pytest.fixture(scope="module")
def embedded():
    """Peaks of the embedded model, simulated once."""
    return {request: simulated.simulated(request) for request in embedded_requests()}


def configs(folder, *names):
    """The embedded model's configurations without its weights, plus files named ``names``."""
    for file in tiny_folder().rglob("*"):
        if file.suffix == ".json" or file.name in names:
            target = folder / file.relative_to(tiny_folder())
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    return folder


def test_time_scales_with_steps_and_size(simulator):
    job = Job("x").resolved()
    volume = job.width * job.height * job.frames
    row = {"steps": 10, "volume": volume, "seconds": 2.0}
    row |= {"model": model_fingerprint("tiny"), "plan": plan_digest(job)}
    predictor = Predictor([row], simulator)
    assert predictor.predict(job).seconds == pytest.approx(4.0)
    wide = Job("x", width=128).resolved()
    assert predictor._seconds(wide) == pytest.approx(8.0)
    assert predictor._seconds(replace(job, preset="fast")) is None  # not a like job
    assert "predicted time unknown" in str(Predictor([], simulator).predict(job))


@pytest.mark.slow
def test_peaks_kept_for_the_embedded_model_are_those_of_its_simulation(embedded):
    """If this fails, run python -m accel.pipelines.batch.simulated."""
    kept = json.loads(simulated.KNOWN.read_text())
    assert kept == {simulated.key_of(r): peak for r, peak in embedded.items()}


@pytest.mark.slow
def test_the_peak_is_that_of_accel_memory_and_of_the_weights(embedded):
    requests = [r for r in embedded if r.dtype == "float32" and r.slicing is None]
    whole, packed = sorted((r for r in requests if r.rehash is None), key=lambda r: bool(r.linear))
    family = find(str(tiny_folder()))
    family = in_dtype(family, torch.float32)
    peaks = simulate(family, Video(64, 64, 17), (1,))
    weights = peaks.denoiser_weights + peaks.vae_weights
    others = (peaks.decode["whole"], *peaks.encode.values())
    assert embedded[whole] == weights + max(peaks.denoise[1], *others)
    layers = peaks.packed.bytes(packed.linear)
    assert layers > 0 and embedded[packed] == embedded[whole] + layers
    (reusing,) = (r for r in requests if r.rehash is not None)  # both branches of guidance
    beside = weights + max(peaks.denoise[1] + 2 * peaks.rehash["output"], *others)
    assert embedded[reusing] == beside
    pipe = load("tiny")
    parts = (pipe.transformer, pipe.vae, pipe.text_encoder)
    real = sum(t.nbytes for part in parts for t in part.parameters())
    beside, all_known = simulated.other_weights(str(tiny_folder()), "float32")
    assert all_known and weights + beside == pytest.approx(real, rel=0.02)


@pytest.mark.slow
def test_slices_need_less_and_each_distinct_request_is_simulated_once(
    simulator, tmp_path, monkeypatch
):
    asked, real = [], simulated.simulated
    monkeypatch.setattr(simulated, "simulated", lambda r: asked.append(r) or real(r))
    folder = str(configs(tmp_path / "m"))
    job = Job("x", width=256, height=128, frames=5, model=folder)
    whole, sliced = simulator(job), simulator(replace(job, preset="lossless"))
    for seed in range(5):
        assert simulator(replace(job, seed=seed, preset="balanced")) == whole
    assert whole.peak > sliced.peak > 2**20 and len(asked) == 2
    assert whole.at_least and "more than" in memory_text(whole)  # the text encoder has no files


def test_unknown_is_said_with_its_reason(simulator, tmp_path):
    hub = simulator(Job("x", model="owner/never-downloaded", width=64, height=64, frames=5))
    assert memory_text(hub) == "memory unknown: config not local"
    folder = str(configs(tmp_path / "m"))
    assert "leaves its size" in simulator(Job("x", model=folder)).why_not
    odd = simulator(Job("x", model=folder, width=60, height=64, frames=5))
    assert "multiple of" in odd.why_not
    (tmp_path / "m" / "vae" / "config.json").unlink()
    simulated.config_of.cache_clear()
    assert (
        "cannot be read" in simulator(Job("x", model=folder, width=72, height=64, frames=5)).why_not
    )


@pytest.mark.slow
def test_the_helper_process_says_the_same():
    request = replace(embedded_requests()[0], width=32, height=32, frames=1)
    helper = Helper(simulated.simulated)
    try:
        assert helper.ask(request) == simulated.simulated(request) > 2**20
        helper._process.kill()
        assert helper.ask(request) == "the process that simulates it ended"
    finally:
        helper.close()


def test_totals_name_what_is_unknown():
    totals = Totals(invalid=1)
    predictor = Predictor([], lambda job: Answer(why_not="config not local"))
    totals.add(predictor.predict(Job("x")), wanted=True)
    totals.add(predictor.predict(Job("x")), wanted=False)
    assert str(totals) == (
        "1 to render, 1 already done, 1 invalid; predicted: time unknown for 1 (no like job has "
        "run here); peak memory unknown"
    )


def test_dry_run_prints_the_prediction(tmp_path, capsys):
    path = tmp_path / "jobs.json"
    path.write_text(json.dumps({"jobs": [{"prompt": "x"}, {"prompt": "y", "preset": "lossless"}]}))
    command = ["render", str(path), "--out", str(tmp_path / "out"), "--dry-run"]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert printed.out.count("predicted time unknown, ~0.0") == 2
    assert "peak memory ~0.0" in printed.err
    assert main([*command, "--progress", "json"]) == 0
    for line in capsys.readouterr().out.splitlines():
        predicted = json.loads(line)["predicted"]
        assert predicted["seconds"] is None and predicted["peak_bytes"] > 2**24


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (Placed("blocks from disk", 2**29, "table"), "~0.50 GiB, weights placed: blocks from disk"),
        ("no way fits", "GiB, and no way to place it fits here: no way fits"),
    ],
)
def test_what_does_not_fit_whole_is_predicted_as_it_would_be_placed(monkeypatch, found, told):
    asked = []
    monkeypatch.setattr(simulated, "free_room", lambda device: Room(10**6, 10**6, True))
    monkeypatch.setattr(Simulator, "_asked", lambda self, work, q: asked.append(q) or found)
    fresh = Simulator()
    job = Job("x").resolved()
    for _ in range(2):
        assert told in str(Predictor([], fresh).predict(job))
    assert len(asked) == 1 and asked[0].offload == "auto"
    str(Predictor([], fresh).predict(replace(job, load={"allow": "int8"})))
    assert len(asked) == 2 and asked[1].allow == ("int8",)
    whole = fresh(replace(job, load={"offload": "none"}))
    assert not whole.way and not whole.no_way
    assert "weights placed" not in str(Predictor([], lambda job: whole).predict(job))
