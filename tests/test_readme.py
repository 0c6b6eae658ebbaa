"""The README's examples run, and its commands and files exist."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

import pytest
from diffusers import WanPipeline

from accel import Plan, calibrate
from accel.cli import main
from accel.pipelines.batch.jobfile import read_jobs

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def short_runs(monkeypatch):
    """What an example leaves to the defaults takes 4 steps and 4 probing runs."""
    real = WanPipeline.__call__

    @functools.wraps(real)
    def call(pipe, *arguments, **options):
        return real(pipe, *arguments, **{"num_inference_steps": 4, **options})

    monkeypatch.setattr(WanPipeline, "__call__", call)
    monkeypatch.setitem(calibrate.__kwdefaults__, "probe_runs", 4)


@pytest.mark.slow
def test_python_examples_run(capsys, short_runs):
    assert blocks("python")
    for code in blocks("python"):
        exec(compile(code, "README.md", "exec"), {})
    assert "accel report: WanPipeline" in capsys.readouterr().out


def test_plans_and_job_files_are_valid(tmp_path):
    assert all(Plan.from_dict(json.loads(text)) for text in blocks("json"))
    for text in blocks("yaml"):
        (tmp_path / "jobs.yaml").write_text(text)
        assert read_jobs(tmp_path / "jobs.yaml")


def test_commands_are_known():
    for line in re.findall(r"^accel (\w+)", TEXT, re.MULTILINE):
        with pytest.raises(SystemExit) as stop:
            main([line, "--help"])
        assert stop.value.code == 0
    targets = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make ([\w-]+)", TEXT):
        assert re.search(rf"^{target}:", targets, re.MULTILINE), target


def test_files_that_are_named_exist():
    named = re.findall(r"\]\(([\w./-]+)\)|`((?:samples|tests|kernels)/[\w./-]+)`", TEXT)
    paths = {a or b for a, b in named if not (a or b).startswith("http")}
    assert paths and all((ROOT / path).exists() for path in paths), paths


def test_sample_jobs_are_valid():
    assert len(read_jobs(ROOT / "samples" / "demo.yaml")) == 4
    assert len(read_jobs(ROOT / "samples" / "motion.yaml")) == 4
