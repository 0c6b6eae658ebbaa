"""``accel render`` with ``load``: one loaded pipeline for jobs that load alike; what is wrong."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import accel.pipelines.batch.worker
from accel.cli import main
from accel.pipelines.batch.tasks import Check, Kind
from accel.pipelines.batch.worker import Worker
from accel.pipelines.job import Job
from accel.pipelines.load import tiny_folder
from accel.pipelines.load_options import LoadOptions


def test_jobs_that_load_alike_share_one_pipeline(tmp_path, monkeypatch):
    loads = []

    def counted(model, options, device, *, job, skip):
        loads.append((model, options))
        return SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32)

    monkeypatch.setattr(accel.pipelines.batch.worker, "placed", counted)
    monkeypatch.setattr(accel.pipelines.batch.worker, "check", lambda pipe, job: None)
    worker = Worker(tmp_path, None, lambda: False, print, None)
    for load in (None, {}, {"dtype": "bf16"}, {"dtype": "bf16", "compile": "off"}, None):
        jobs = {"a": Job("a", load=load)}
        assert worker.perform(Check("tiny", jobs)).kind == Kind.CHECKED
    assert loads == [
        ("tiny", LoadOptions()), ("tiny", LoadOptions(dtype="bf16")), ("tiny", LoadOptions()),
    ]  # fmt: skip


def test_a_dry_run_takes_a_model_that_is_a_file(tmp_path, jobs, capsys):
    model = str(tiny_folder() / "transformer" / "diffusion_pytorch_model.safetensors")
    file = jobs({"prompt": "a", "model": model, "load": {"config": "tiny"}})
    assert main(["render", file, "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    file = jobs({"prompt": "a", "model": model, "load": None})
    assert main(["render", file, "--out", str(tmp_path / "out"), "--dry-run"]) == 1
    assert "with its configurations and other components" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"pipeline": "WanPipelin"}, "did you mean 'WanPipeline'?"),
        ({"scheduler": {"shfit": 1}}, "has no setting 'shfit'"),
    ],
)
def test_a_dry_run_finds_what_cannot_be_loaded(tmp_path, jobs, capsys, wrong, said):
    file = jobs({"prompt": "a", "load": wrong}, {"prompt": "b"})
    assert main(["render", file, "--out", str(tmp_path / "out"), "--dry-run"]) == 1
    told = capsys.readouterr()
    assert said in told.out + told.err
