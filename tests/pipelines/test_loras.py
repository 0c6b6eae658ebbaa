"""LoRAs: switched without a reload, exact, refused in one line where they do not fit."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.killing import hashes, survive
from helpers.loras import write_lora
from safetensors.torch import load_file, save_file

from accel.cli import main
from accel.pipelines.generate import check, generate
from accel.pipelines.job import Job, JobError
from accel.pipelines.load import load
from accel.pipelines.load_options import LoadOptions
from accel.pipelines.loading import loras
from accel.pipelines.loading.lora_files import Lora, parse, problem

QUICK = {"steps": 2, "frames": 5, "width": 64, "height": 64, "preset": None}


@pytest.fixture(scope="module")
def fresh():
    return load("tiny")


@pytest.fixture(scope="module")
def files(tmp_path_factory, fresh):
    folder = tmp_path_factory.mktemp("loras")
    return [write_lora(folder / f"{n}.safetensors", fresh.transformer, seed=n) for n in range(3)]


def job(*chosen: Path, weight: float = 1.0, **more) -> Job:
    given = [{"file": str(file), "weight": weight} for file in chosen]
    return Job("a red circle", **{**QUICK, **more}, loras=given)


def frames(pipe, one: Job) -> np.ndarray:
    return generate(pipe, one).frames


def count_loads(pipe, monkeypatch) -> Counter:
    loads, own = Counter(), type(pipe).load_lora_weights

    def counted(self, *args, **kwargs):
        loads[kwargs["weight_name"]] += 1
        return own(self, *args, **kwargs)

    monkeypatch.setattr(type(pipe), "load_lora_weights", counted)
    return loads


def test_switching_between_three_reloads_nothing_and_leaves_no_trace(files, monkeypatch):
    """Every job is what it is on a pipeline of its own, whatever ran before."""
    pipe = load("tiny")
    loads = count_loads(pipe, monkeypatch)
    first, jobs = frames(pipe, job()), [job(file) for file in files]
    seen = [frames(pipe, one) for one in jobs]
    assert loads == {file.name: 1 for file in files}
    assert all((a != b).any() for a in seen for b in (first, *seen) if a is not b)
    again = [frames(pipe, one) for one in reversed(jobs)]
    assert [(a == b).all() for a, b in zip(again, reversed(seen), strict=True)] == [True] * 3
    assert (frames(pipe, job()) == first).all()
    assert loads == {file.name: 1 for file in files}
    monkeypatch.undo()
    assert (frames(load("tiny"), jobs[2]) == seen[2]).all()


@pytest.mark.proof
@pytest.mark.parametrize(
    ("preset", "steps"),
    [("lossless", 2), ("fast", 10)],
)
def test_switching_leaves_no_trace_in_a_patched_pipeline(files, preset, steps):
    more = {"preset": preset, "steps": steps, "frames": 13, "width": 128, "height": 128}
    pipe, jobs = load("tiny"), [job(**more), job(files[0], **more), job(files[1], **more)]
    seen = [frames(pipe, one) for one in jobs]  # 256 tokens: fewer are left as they are
    assert all((a != b).any() for a in seen for b in seen if a is not b)
    assert (frames(pipe, jobs[0]) == seen[0]).all()
    assert (frames(load("tiny"), jobs[2]) == seen[2]).all()


def test_weights_count_and_two_add_up(files):
    pipe = load("tiny")
    both = frames(pipe, job(files[0], files[1]))
    assert (both != frames(pipe, job(files[0]))).any()
    assert (both != frames(pipe, job(files[0], files[1], weight=0.5))).any()
    assert (frames(pipe, job(files[0], weight=0)) == frames(pipe, job())).all()


def test_those_not_used_for_longest_leave(files, monkeypatch):
    monkeypatch.setattr(loras, "MOST", 2)
    pipe = load("tiny")
    for file in (files[0], files[1], files[0], files[2]):
        with loras.switched(pipe, [{"file": str(file)}]):
            pass
    names = {Lora(str(file)).adapter for file in (files[0], files[2])}
    assert set(pipe.get_list_adapters()["transformer"]) == names


def test_equal_content_is_one_adapter(files, tmp_path):
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(files[0].read_bytes())
    assert Lora(str(copy)).adapter == Lora(str(files[0])).adapter != Lora(str(files[1])).adapter


def wrong(tmp_path: Path, change) -> Path:
    pipe = load("tiny")
    file = write_lora(tmp_path / "wrong.safetensors", pipe.transformer)
    save_file(change(load_file(file)), file)
    return file


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: {k.replace("blocks.", "layers."): v for k, v in t.items()}, "none of its"),
        (lambda t: {k.replace("transformer.", "unet."): v for k, v in t.items()}, "none of its"),
        (lambda t: {k: torch.cat([v, v], 1) if "lora_A" in k else v for k, v in t.items()},
         "it is of another size: transformer.blocks.0.attn1.to_q.lora_A.weight: it is for"),
        (lambda t: {k.replace("lora_A", "weight"): v for k, v in t.items() if "lora_A" in k},
         "is no LoRA"),
    ],
)  # fmt: skip
def test_one_that_does_not_fit_is_refused_before_rendering(tmp_path, change, said):
    file = wrong(tmp_path, change)
    pipe = load("tiny")
    before = frames(pipe, job())
    with pytest.raises(JobError, match=said) as error:
        check(pipe, job(file))
    assert "wrong.safetensors" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(JobError):
        generate(pipe, job(file))
    assert not pipe.get_list_adapters() and (frames(pipe, job()) == before).all()


def test_one_that_fails_while_it_is_loaded_leaves_the_pipeline_clean(files, tmp_path):
    """A rank that differs within one layer gets past every look from outside."""
    file = wrong(tmp_path, lambda t: {
        k: v[:1] if k == "transformer.blocks.0.attn1.to_q.lora_A.weight" else v
        for k, v in t.items()
    })  # fmt: skip
    for before in ([], [files[0]]):
        pipe = load("tiny")
        for one in before:
            frames(pipe, job(one))
        with pytest.raises(ValueError, match=r"wrong\.safetensors does not fit WanPipeline"):
            generate(pipe, job(file))
        left = {n for names in pipe.get_list_adapters().values() for n in names}
        assert left == {Lora(str(one)).adapter for one in before}
        assert (frames(pipe, job()) == frames(load("tiny"), job())).all()


def test_parts_without_a_place_are_told(tmp_path):
    file = wrong(tmp_path, lambda t: t | {
        k.replace("blocks.0", "blocks.77"): v.clone() for k, v in t.items() if "blocks.0." in k
    })  # fmt: skip
    told: list[str] = []
    generate(load("tiny"), job(file), on_cut=told.append)
    assert len(told) == 1 and "have no place in WanPipeline and no effect" in told[0]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "needs file"),
        ({"file": "x.bin"}, "must end in .safetensors"),
        ({"file": "x.safetensors"}, "there is no LoRA x.safetensors"),
        ({"id": "x"}, "must be a hub id"),
        ({"file": "x.safetensors", "weight": "much"}, "must be a number"),
        ({"file": "x.safetensors", "component": "unet"}, "loras component of x.safetensors"),
        ({"flie": "x"}, "did you mean 'file'?"),
    ],
)
def test_what_is_no_lora_is_one_line(given, said):
    assert said in problem([given])


def test_the_same_twice_is_refused(files):
    with pytest.raises(ValueError, match="twice; add the weights"):
        parse([{"file": str(files[0])}, {"file": str(files[0]), "weight": 2}])


def test_peft_missing_names_the_package(files, fresh, monkeypatch):
    monkeypatch.setattr(loras, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="the package peft, which is missing: pip install"):
        loras.fit(fresh, parse([{"file": str(files[0])}]))


def test_a_component_that_is_not_there_is_refused(files, fresh):
    one = [{"file": str(files[0]), "component": "transformer_2"}]
    with pytest.raises(ValueError, match=r"is for transformer_2, which WanPipeline does not have"):
        loras.fit(fresh, parse(one))


def test_loras_of_the_callers_own_are_not_touched(files):
    pipe = load("tiny")
    pipe.load_lora_weights(str(files[0].parent), weight_name=files[0].name, adapter_name="mine")
    with loras.switched(pipe, []):
        assert pipe.get_active_adapters() == ["mine"]
    with pytest.raises(JobError, match="has LoRAs of its own"):
        check(pipe, job(files[1]))


@pytest.mark.proof
def test_beside_quantized_weights(files):
    pytest.importorskip("torchao")
    pipe = load("tiny", options=LoadOptions(weights="int8"))
    plain = frames(pipe, job(steps=10))
    for preset in (None, "lossless", "fast"):
        assert (frames(pipe, job(files[0], preset=preset, steps=10)) != plain).any()
    assert (frames(pipe, job(steps=10)) == plain).all()


@pytest.mark.proof
def test_kill_9_and_resume_give_the_same_bytes(files, tmp_path):
    given = {"file": str(files[0]), "weight": 0.7}
    entries = [
        {"prompt": f"a red circle {n}", "name": f"job{n}", "preset": preset, "loras": chosen}
        for n, (preset, chosen) in enumerate(
            [("lossless", [given]), (None, [given, {"file": str(files[1])}]), (None, [])]
        )
    ]
    queue = tmp_path / "jobs.json"
    queue.write_text(json.dumps({"defaults": {"steps": 4, "frames": 5}, "jobs": entries}))
    whole = tmp_path / "whole"
    assert main(["render", str(queue), "--out", str(whole), "--engine", "inline"]) == 0
    expected = hashes(whole)
    assert len(expected) == 3
    out = tmp_path / "killed"
    survive(queue, out, 2, 5, "--checkpoint-steps", "1", "--engine", "local")
    assert hashes(out) == expected
