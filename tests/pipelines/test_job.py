"""Job files: what is accepted, and that each mistake is named before anything runs."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from accel.pipelines.batch.jobfile import read_jobs
from accel.pipelines.job import Job, JobError, make_job
from accel.pipelines.job_settings import job_from_settings, settings_text
from accel.pipelines.load import load
from accel.plans import Plan

GOOD = """
defaults: {steps: 3, preset: fast}
jobs:
  - prompt: a red circle
  - {prompt: a red circle, seed: 0, preset: null}
  - {prompt: "x/y: z", seed: 5, name: mine}
"""


def write(tmp_path, text):
    path = tmp_path / "jobs.yaml"
    path.write_text(text)
    return path


def test_defaults_and_resolution(tmp_path):
    jobs = read_jobs(write(tmp_path, GOOD))
    assert [j.file_name for j in jobs] == ["a-red-circle-0", "a-red-circle-0", "mine"]
    assert [j.preset for j in jobs] == ["fast", None, "fast"]
    assert jobs[1].accel_plan() is None and jobs[0].accel_plan().name == "fast"
    full = jobs[0].resolved()
    assert (full.width, full.height, full.frames, full.steps) == (64, 64, 17, 3)


def test_job_survives_its_own_settings_text():
    job = Job("p", motion={"camera": {"pan": [1, 0]}}, plan={"name": "x", "attention": None})
    again, key = job_from_settings(settings_text(job, "abc"), "here")
    assert key == "abc" and again.accel_plan().attention is None
    assert again.movement == job.movement and again.motion == {**job.motion, "version": 2}
    assert replace(again, motion=job.motion) == job
    assert settings_text(job) == settings_text(make_job({**job.to_dict(), "name": "other"}))


def test_settings_from_before_noise_had_versions_mean_the_first():
    old = json.loads(settings_text(Job("p", motion={"camera": {"pan": [1, 0]}})))
    del old["motion"]["version"]
    job, _ = job_from_settings(json.dumps(old), "here")
    assert job.movement.version == 1 and "version" not in json.loads(settings_text(job))["motion"]


def test_settings_hold_the_content_of_a_plan_file(tmp_path):
    Plan.preset("fast").save(tmp_path / "plan.json")
    job = Job("p", plan=str(tmp_path / "plan.json"))
    text = settings_text(job)
    (tmp_path / "plan.json").unlink()
    assert job_from_settings(text, "here")[0].accel_plan() == Plan.preset("fast")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "carries no settings"),
        ('{"prompt": "x"}', "carries no settings"),
        ('{"accel_job": 99, "prompt": "x"}', "version 99"),
        ('{"accel_job": 1, "prompts": "x"}', "did you mean 'prompt'"),
    ],
)
def test_settings_that_are_not_ours(text, message):
    with pytest.raises(JobError, match=message):
        job_from_settings(text, "here")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("jobs:\n  - {prompt: x, stesp: 3}", r"job 1.*'stesp'.*did you mean 'steps'"),
        ("jobs:\n  - {prompt: x}\n  - {seed: 3}", "job 2 has no prompt"),
        ("jobs:\n  - {prompt: x, steps: 0}", "steps.*got 0"),
        ("jobs:\n  - {prompt: x, steps: 2.5}", "2.5"),
        ("jobs:\n  - {prompt: x, seed: -1}", "seed.*-1"),
        ("jobs:\n  - {prompt: x, strength: 1.5}", "strength.*1.5"),
        ("jobs:\n  - {prompt: x, preset: fats}", "did you mean 'fast'"),
        ("jobs:\n  - {prompt: x, plan: missing.json}", "missing.json"),
        ("jobs:\n  - {prompt: x, motion: pan}", "motion.*'pan'"),
        ("jobs:\n  - {prompt: [7]}", "prompt must be text"),
        ("jobs:\n  - {prompt: x, format: avi}", "format must be one of"),
        ("jobs: []", "at least one job"),
        ("job: [{prompt: x}]", "did you mean 'jobs'"),
        ("jobs: [{prompt: x}]\nextra: 1", "extra"),
        ("jobs: [x", "not a YAML"),
    ],
)
def test_mistakes_are_named(tmp_path, text, message):
    with pytest.raises(JobError, match=message):
        read_jobs(write(tmp_path, text))


def test_missing_job_file_is_named(tmp_path):
    with pytest.raises(JobError, match=r"nothing\.yaml"):
        read_jobs(tmp_path / "nothing.yaml")


@pytest.mark.parametrize("model", ["./nowhere", "no such model", "/nowhere/at/all"])
def test_missing_model_is_named(model):
    with pytest.raises(FileNotFoundError, match="owner/name"):
        load(model)


def test_folder_without_a_pipeline_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model_index\.json"):
        load(str(tmp_path))
