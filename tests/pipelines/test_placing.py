"""Pipelines placed in every way give the frames of the usual one, and faults are told."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import accel
from accel.memory.placement import Decision, NoWay, Placement, Room
from accel.memory.ways import Way
from accel.pipelines import fitting
from accel.pipelines.arranging import Arrangement, arrangement_of
from accel.pipelines.batch.tasks import Kind, Task
from accel.pipelines.batch.worker import Worker
from accel.pipelines.fitting import check_room, still_fits
from accel.pipelines.generate import generate
from accel.pipelines.job import Job
from accel.pipelines.load import load, tiny_folder
from accel.pipelines.placing import place
from accel.pipelines.stored_tensors import NotStreamable, Stored, ranges, stored
from accel.pipelines.streamed import BlockHook, Slot, skeleton

CPU = torch.device("cpu")
JOB = Job("a red ball", width=64, height=64, frames=5, steps=2, seed=1)
SLICED = accel.Plan("sliced", None, accel.SlicingConfig(4, 1)).to_dict()
ROOM = Room(2**30, 2**30, True)
PARTS = ("text_encoder", "transformer", "vae")


def row(way, blocks=0):
    return Placement(way, 1, "whole", {}, {}, "", blocks=blocks)


def placed(way, blocks=0, dtype=torch.float32):
    return place(Path(tiny_folder()), row(way, blocks), device=CPU, dtype=dtype)


def in_memory(pipe):
    return [part for part in PARTS if any(not p.is_meta for p in getattr(pipe, part).parameters())]


@pytest.fixture(scope="module")
def usual():
    return load("tiny")


def job(plan):
    return Job(**{**JOB.to_dict(), "preset": None, "plan": plan})


@pytest.mark.proof
def test_blocks_from_disk_give_the_same_frames_and_leave_nothing(usual):
    pipe, asked = placed(Way.DISK), job(SLICED)
    assert in_memory(pipe) == [] and pipe._execution_device == CPU
    expected, found = generate(usual, asked), generate(pipe, asked)
    assert np.array_equal(expected.frames, found.frames)
    assert in_memory(pipe) == ["vae"]  # the denoiser went before it came
    assert found.report is not None and "calls in 4 slices" in str(found.report)


@pytest.mark.proof
@pytest.mark.parametrize("preset", ["lossless", "fast"])
@pytest.mark.parametrize(
    ("way", "left"),
    [
        (Way.ENCODER_FIRST, ["transformer", "vae"]),
        (Way.TURNS, ["vae"]),
        (Way.DISK, ["vae"]),
        (Way.GROUP, list(PARTS)),
    ],
)
def test_every_way_gives_the_same_frames_twice(usual, way, left, preset):
    steps = 9 if preset == "fast" else 2  # so that some are reused
    asked = Job(**{**JOB.to_dict(), "preset": preset, "steps": steps, "width": 96})
    expected, pipe = generate(usual, asked), placed(way, blocks=2)
    for _ in range(2):
        found = generate(pipe, asked)
        assert np.array_equal(expected.frames, found.frames)
        assert in_memory(pipe) == left


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_component_without_weights_has_the_dtypes_and_buffers_of_a_loaded_one(dtype):
    import diffusers
    import transformers

    folder = Path(tiny_folder())
    for name, cls in (
        ("transformer", diffusers.WanTransformer3DModel),
        ("text_encoder", transformers.UMT5EncoderModel),
        ("vae", diffusers.AutoencoderKLWan),
    ):
        bare = skeleton(cls, folder / name, dtype)
        real = cls.from_pretrained(folder / name, dtype=dtype)
        assert {k: p.dtype for k, p in bare.named_parameters()} == {
            k: p.dtype for k, p in real.named_parameters()
        }
        assert all(p.is_meta for p in bare.parameters())
        for (k, a), (_, b) in zip(bare.named_buffers(), real.named_buffers(), strict=True):
            assert a.dtype == b.dtype and torch.equal(a, b), k


def test_tensors_are_read_as_they_are_stored():
    from safetensors.torch import load_file

    folder = Path(tiny_folder()) / "vae"
    expected = load_file(folder / "diffusion_pytorch_model.safetensors")
    found = stored(folder)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[k].read(), expected[k]) for k in expected)


def test_parts_of_files_are_asked_for_block_after_block(monkeypatch):
    asked = []
    monkeypatch.setattr(BlockHook, "ahead", lambda hook: asked.append(hook))
    pipe = placed(Way.DISK)
    blocks = pipe.transformer.blocks
    hooks = [block._hf_hook for block in blocks]
    assert [hook.next for hook in hooks] == [*hooks[1:], hooks[0]]  # the first for the next call
    generate(pipe, JOB)
    calls = [hook for hook in asked if hook in hooks]
    assert calls[: len(hooks)] == [*hooks[1:], hooks[0]]
    a, b = Path("a"), Path("b")
    parts = [Stored(f, i, i + 4, torch.float32, (1,)) for f, i in ((b, 0), (a, 8), (a, 4), (a, 16))]
    assert list(ranges(parts)) == [(a, 4, 12), (a, 16, 20), (b, 0, 4)] and not list(ranges([]))
    monkeypatch.undo()
    hooks[0].ahead()  # the system takes it
    assert hooks[0]._ranges and all(stop <= f.stat().st_size for f, _, stop in hooks[0]._ranges)


def test_a_tensor_that_is_dropped_gives_its_memory_back():
    entry = max(stored(Path(tiny_folder()) / "transformer").values(), key=lambda e: e.stop)
    module = torch.nn.Linear(1, 1)
    slot = Slot(((module, "weight"),), entry, torch.nn.Parameter(torch.empty(0, device="meta")))

    def mapped():
        return Path("/proc/self/maps").read_text().count(entry.file.name)

    slot.empty.data = slot.empty.data.to(entry.dtype)
    before = mapped()
    slot.fill(CPU)
    assert mapped() == before + 1 and module.weight.shape == entry.shape
    slot.drop()
    assert mapped() == before and module.weight.is_meta


def broken(folder, change):
    file = folder / "diffusion_pytorch_model.safetensors"
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda h: h.pop("proj_out.weight"), "no tensor named proj_out.weight"),
        (lambda h: h["proj_out.weight"].update(dtype="X9"), "dtype or size that cannot be"),
        (lambda h: h["proj_out.weight"].update(shape=[2**40]), "dtype or size that cannot be"),
        (lambda h: h["proj_out.weight"]["shape"].reverse(), "is stored as"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, change, told):
    folder = tmp_path / "m"
    shutil.copytree(tiny_folder(), folder)
    broken(folder / "transformer", change)
    with pytest.raises(NotStreamable, match=told):
        place(folder, row(Way.DISK), device=CPU, dtype=torch.float32)


def test_files_that_were_cut_off_are_refused(tmp_path):
    for content in (b"", b"\xff" * 20):
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(NotStreamable, match="no whole safetensors file"):
            stored(tmp_path)
    with pytest.raises(NotStreamable, match="no safetensors files"):
        stored(tmp_path / "nothing")


def test_a_small_model_is_loaded_whole_without_a_simulation(monkeypatch):
    monkeypatch.setattr(fitting, "demand_of", lambda *a: pytest.fail("simulated"))
    pipe = accel.load("tiny", job=JOB)
    found = arrangement_of(pipe)
    assert found is not None and found.placement.way is Way.RESIDENT and not found.simulated
    assert in_memory(pipe) == list(PARTS)


@pytest.mark.proof
def test_out_of_memory_while_loading_takes_the_next_way(monkeypatch):
    tried = []

    def short(*_):
        tried.append(Way.RESIDENT)
        raise MemoryError("no room")

    def other(folder, placement, **options):
        tried.append(placement.way)
        return place(folder, placement, **options)

    monkeypatch.setattr(fitting, "built", short)
    monkeypatch.setattr(fitting, "place", other)
    pipe = accel.load("tiny", job=JOB)
    assert tried == [Way.RESIDENT, Way.ENCODER_FIRST]
    found = arrangement_of(pipe)
    assert found is not None and "ran out of memory when it was tried" in str(found)
    with pytest.raises(MemoryError, match=r"before the first step: .* will need"):
        monkeypatch.setattr(fitting, "free_room", lambda device: Room(10, 10, True))
        check_room(found, pipe, CPU)


def test_weights_that_are_allowed_are_taken_and_told(monkeypatch, caplog):
    pytest.importorskip("torchao", reason="torchao is not installed")
    eight = replace(row(Way.RESIDENT), weights="int8", device={"load": 1}, cost="nothing")
    found = Arrangement(Decision(eight, (eight,), ROOM), True)
    monkeypatch.setattr(fitting, "_decided", lambda *a: found)
    pipe = accel.load("tiny", job=JOB, allow=["int8"])
    assert type(pipe.transformer.blocks[0].attn1.to_q.weight.data) is not torch.Tensor
    assert "all resident, int8 weights" in caplog.text
    with accel.patched(pipe, preset="lossless"):
        assert "all resident, int8 weights" in str(accel.report(pipe))
        assert accel.report(pipe).to_dict()["placement"] == str(found).splitlines()
    plain = replace(found, decision=Decision(row(Way.RESIDENT), (row(Way.RESIDENT),), ROOM))
    monkeypatch.setattr(fitting, "again", lambda *a: plain)
    assert still_fits(pipe, found, JOB) is None  # what a job gives does not hang on those before it


def test_a_memory_that_nothing_fits_in_is_refused_before_a_weight_is_read(monkeypatch):
    monkeypatch.setattr(fitting, "place", lambda *a, **k: pytest.fail("loaded"))
    with pytest.raises(NoWay, match=r"no way fits: .* needs at least"):
        accel.load("tiny", memory=1, job=JOB)
    with pytest.raises(ValueError, match=r"offlod.*did you mean 'offload'"):
        accel.load("tiny", offlod="disk")


@pytest.mark.proof
def test_above_the_last_rung_the_model_is_placed_in_the_next_way(tmp_path):
    told = []
    worker = Worker(tmp_path, "cpu", lambda: False, told.append, None)
    for rung, way in ((4, "text encoder first and gone"), (5, "one component at a time from disk")):
        outcome = worker.perform(Task(f"v{rung}", f"{rung:064}", JOB, rung=rung))
        assert outcome.kind is Kind.DONE, outcome.traceback
        assert outcome.sidecar["placement"]["way"] == way
        assert outcome.sidecar["memory"] == ["more slices", "VAE slicing", "VAE tiling"]
    asked = Job(**{**JOB.to_dict(), "load": {"offload": "disk"}})
    outcome = Worker(tmp_path, "cpu", lambda: False, told.append, None).perform(
        Task("disk", "d" * 64, asked)
    )
    assert outcome.sidecar["placement"]["way"] == "blocks from disk"
    assert outcome.sidecar["environment"]["device"] == "cpu"
