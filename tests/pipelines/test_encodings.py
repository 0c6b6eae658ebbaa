"""Prompts encoded once: counted, bit-equal, told, and computed again where bits may differ."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import checkpoints
from helpers.loras import write_lora

from accel.cli import main
from accel.memory.placement import Placement
from accel.memory.ways import Way
from accel.pipelines.generate import generate
from accel.pipelines.job import Job
from accel.pipelines.load import load, tiny_folder
from accel.pipelines.loading import encodings
from accel.pipelines.loading.encoding_store import NotPlain, Store
from accel.pipelines.loading.encodings import cached
from accel.pipelines.placing import place
from accel.pipelines.streamed import Slot

QUICK = {"steps": 1, "frames": 1, "width": 64, "height": 64, "preset": None}


@pytest.fixture(scope="module")
def pipe():
    return load("tiny")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "encodings")


@pytest.fixture
def forwards(pipe, monkeypatch):
    """Prompts that the text encoder saw."""
    seen, own = [], type(pipe.text_encoder).forward

    def forward(self, *args, **kwargs):
        seen.append(1)
        return own(self, *args, **kwargs)

    monkeypatch.setattr(type(pipe.text_encoder), "forward", forward)
    return seen


def run(pipe, store, job, **how):
    with cached(pipe, store, job) as seen:
        result = generate(pipe, job, **how)
    return result, seen


def test_a_hundred_jobs_of_ten_prompts_encode_ten_times(pipe, store, forwards):
    calls = []
    for seed in range(10):
        for n in range(10):
            job = Job(f"a red circle {n}", seed=seed, **QUICK)
            with cached(pipe, store, job) as seen, torch.no_grad():
                calls.append(pipe.encode_prompt(job.prompt, "", max_sequence_length=32))
            assert (seen.found, seen.computed) == ((1, 0) if seed else (0, 1))
    assert len(forwards) == 20  # each prompt and its negative one, once
    assert len(list(store.folder.glob("*.safetensors"))) == 10
    for n in range(10):
        for first, later in zip(calls[n], calls[90 + n], strict=True):
            assert torch.equal(first, later) and first.stride() == later.stride()
    assert "encode_prompt" not in vars(pipe)


def test_frames_are_equal_and_both_are_told(pipe, store, forwards):
    job = Job("a red circle " * 60, **QUICK)  # too long
    plain = generate(pipe, job, on_cut=lambda text: None)
    told: list[list[str]] = [[], []]
    first, made = run(pipe, store, job, on_cut=told[0].append)
    forwards.clear()
    again, found = run(pipe, store, job, on_cut=told[1].append)
    assert not forwards
    assert (plain.frames == first.frames).all() and (plain.frames == again.frames).all()
    assert str(made) == "prompt encoding: 1 computed and kept"
    assert str(found) == "prompt encoding: from cache"
    assert told[0] == told[1] and "too long" in told[0][0]
    assert plain.cuts == first.cuts == again.cuts


def test_an_encoder_leaves_memory_and_is_not_read_for_known_prompts(store, monkeypatch):
    way = Placement(Way.ENCODER_FIRST, 1, "whole", {}, {}, "")
    pipe = place(tiny_folder(), way, device=torch.device("cpu"), dtype=torch.float32)
    read, fill = [], Slot.fill
    monkeypatch.setattr(Slot, "fill", lambda slot, on: read.append(id(slot)) or fill(slot, on))
    total = []
    for prompt in ("a red circle", "a blue square", "a red circle", "a blue square"):
        run(pipe, store, Job(prompt, **QUICK))
        total.append(len(read))
        assert all(p.is_meta for p in pipe.text_encoder.parameters())
    encoder = len([*pipe.text_encoder.parameters()])
    assert total[0] > encoder  # the encoder, then all else
    assert total[1] > total[0]  # a new prompt
    assert total[3] == total[2] < total[1] + encoder  # what is known reads no encoder


def test_everything_that_decides_bits_is_in_the_key(pipe, store, forwards, tmp_path, monkeypatch):
    job = Job("a red circle", **QUICK)

    def encodes(job, using=pipe) -> bool:
        forwards.clear()
        run(using, store, job)
        return bool(forwards)

    assert encodes(job) and not encodes(job)
    assert encodes(Job("a red circle", "blue", **QUICK))
    folder = checkpoints.copied(tmp_path)
    copy = Job("a red circle", **QUICK, model=str(folder))
    assert not encodes(copy), "the same content"
    file = folder / "text_encoder" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    encodings.model_fingerprint.cache_clear()
    assert encodes(copy)
    options = {"dtype": "bf16"}
    assert encodes(Job("a red circle", **QUICK, load=options))
    assert not encodes(Job("a red circle", **QUICK, load={"scheduler": {"flow_shift": 2.0}}))
    lora = write_lora(tmp_path / "a.safetensors", pipe.transformer)
    assert not encodes(Job("a red circle", **QUICK, loras=[{"file": str(lora)}]))
    text = write_lora(
        tmp_path / "b.safetensors", pipe.text_encoder, prefix="text_encoder.", ends=("q", "v")
    )
    given = Job("a red circle", **QUICK, loras=[{"file": str(text)}])
    assert encodings.lora_key(given) and not encodings.lora_key(job)
    monkeypatch.setattr(encodings, "_versions", lambda: ["another"])
    assert encodes(job)


def test_a_broken_file_is_computed_again(pipe, store, forwards):
    job = Job("a red circle", **QUICK)
    run(pipe, store, job)
    (file,) = store.folder.glob("*.safetensors")
    whole = file.read_bytes()
    for broken in (b"", b"nothing", whole[:-8], whole.replace(b'"tree"', b'"eert"')):
        file.write_bytes(broken)
        forwards.clear()
        _, seen = run(pipe, store, job)
        assert seen.computed == 1 and forwards
        assert run(pipe, store, job)[1].found == 1


class Encoder:
    """A pipeline that has an encoder of prompts and nothing else."""

    device = torch.device("cpu")
    components: dict = {}  # noqa: RUF012

    def __init__(self, returned=None):
        self.returned, self._calls = returned, 0

    def encode_prompt(self, prompt=None, image=None):
        self._calls += 1
        if self.returned == "random":
            return torch.randn(3)
        return torch.ones(2) if self.returned is None else self.returned


@pytest.mark.parametrize(
    ("returned", "image", "said"),
    [
        (None, object(), "image is a object, not text"),
        (None, torch.ones(1), "image is a Tensor, not text"),
        (object(), None, "it holds a object"),
        ("random", None, "the encoder draws random numbers"),
        (torch.ones(2, requires_grad=True), None, "of autograd"),
    ],
)
def test_what_cannot_be_kept_is_computed_and_told(returned, image, said, store):
    pipe, job = Encoder(returned), Job("x")
    for calls in (1, 2):
        with cached(pipe, store, job) as seen:
            pipe.encode_prompt("x", image=image)
        assert pipe._calls == calls and said in str(seen)
        assert "1 computed and not kept, since" in str(seen)
    assert "encode_prompt" not in vars(pipe)


def test_the_device_that_computes_counts_not_where_weights_lie(store):
    pipe, job = Encoder(), Job("x")
    for device, found in (("cpu", 0), ("meta", 0), ("cpu", 1)):
        pipe._execution_device = torch.device(device)
        with cached(pipe, store, job) as seen:
            pipe.encode_prompt("x")
        assert seen.found == found


def test_a_full_disk_is_told_and_ends_nothing(store, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("accel.pipelines.loading.encoding_store.write_atomic", full)
    pipe = Encoder()
    with cached(pipe, store, Job("x")) as seen:
        assert torch.equal(pipe.encode_prompt("x"), torch.ones(2))
    assert "No space left on device" in str(seen)


@pytest.mark.parametrize(
    "value",
    [
        torch.arange(6).reshape(2, 3).t(),
        torch.arange(3.0).expand(4, 3),
        torch.ones(2, 0, 3),
        torch.tensor(1.5, dtype=torch.bfloat16),
        [torch.ones(2), None, {"a": (1, 2.5, "x", True), "b": torch.zeros(1, dtype=torch.bool)}],
    ],
)
def test_values_come_back_as_they_were(value, store):
    store.put("k", value, ["note"])
    found, notes = store.get("k")
    assert notes == ["note"]

    def same(a, b):
        if isinstance(a, torch.Tensor):
            equal = a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride()
            return equal and torch.equal(a, b)
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
        if isinstance(a, (list, tuple)):
            return type(a) is type(b) and all(map(same, a, b))
        return type(a) is type(b) and a == b

    assert same(value, found)


def test_one_tensor_twice_is_one(store):
    one = torch.ones(2)
    store.put("k", (one, one), [])
    (a, b), _ = store.get("k")
    assert a is b


def test_the_store_has_a_limit(store):
    small = Store(store.folder, limit=3000)
    for n in range(4):
        small.put(str(n), torch.zeros(200), [])
    assert small.get("0") is None and small.get("3") is not None
    with pytest.raises(NotPlain, match="more than all may have together"):
        small.put("big", torch.zeros(2000), [])


@pytest.mark.proof
def test_a_queue_encodes_each_prompt_once_and_says_so(tmp_path):
    entries = [{"prompt": f"a circle {n % 2}", "seed": n, "name": f"job{n}"} for n in range(4)]
    queue = tmp_path / "jobs.json"
    queue.write_text(json.dumps({"defaults": QUICK, "jobs": entries}))
    out = tmp_path / "out"
    assert main(["render", str(queue), "--out", str(out), "--engine", "inline"]) == 0
    told = [
        json.loads((out / f"job{n}.json").read_text())["prompt_encoding"].split(": ")[1]
        for n in range(4)
    ]
    assert sorted(told) == ["1 computed and kept"] * 2 + ["from cache"] * 2
    assert len(list(Path(out / ".accel" / "encodings").glob("*.safetensors"))) == 2
