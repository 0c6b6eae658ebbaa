"""Nothing in a job file is dropped without a word: it is read, or it is an error that names it."""

from __future__ import annotations

import json

import pytest

from accel.pipelines.batch.jobfile import Invalid, parse_override, read
from accel.pipelines.job import Job, JobError
from accel.pipelines.job_settings import job_from_settings
from accel.plans import Plan


def entries(tmp_path, text, suffix=".yaml", overrides=()):
    path = tmp_path / f"jobs{suffix}"
    path.write_text(text)
    return list(read(path, [parse_override(text) for text in overrides]))


def test_every_document_is_a_job_file_of_its_own(tmp_path):
    text = (
        "---\ndefaults: {steps: 3, seed: &s 4}\njobs: [{prompt: a}, {prompt: b, seed: 1}]\n"
        "---\n# nothing here\n---\ndefaults: {prompt: c}\nmatrix: {seed: [1, 2]}\n"
        "---\njobs:\n- prompt: d\n- {seed: -1, prompt: e}\n...\n"
    )
    *jobs, bad = entries(tmp_path, text)
    assert jobs == [
        Job("a", steps=3, seed=4), Job("b", steps=3, seed=1), Job("c", seed=1), Job("c", seed=2),
        Job("d"),
    ]  # fmt: skip
    assert "document 4, job 2" in bad.message and bad.message.endswith("(line 12)")


@pytest.mark.parametrize(
    ("suffix", "text", "message"),
    [
        (".yaml", "{jobs: [{prompt: a}]}\njunk", "line 2: not a YAML file"),
        (".yaml", "jobs: [{prompt: a}]\n---\njunk", "document 2 needs a mapping"),
        (".yaml", "jobs: [{prompt: a}]\n---\nseeds: 3", "document 2 has an unknown top-level key"),
        (".yaml", "jobs: [{prompt: a}]\n--- \njobs: [", "line 3: not a YAML file"),
        (".yaml", "jobs:\n- prompt: a\njobs:\n- prompt: b", "line 3: the key 'jobs' stands twice"),
        (".yaml", "defaults: {}\njobs: []\ndefaults: {}", "'defaults' stands twice.*in line 1"),
        (".yaml", "version: 1\nversion: 1\njobs: []", "'version' stands twice"),
        (".yaml", "defaults: {seed: 1, seed: 2}\njobs: [{prompt: a}]", "defaults is .*'seed'"),
        (".yaml", "defaults: []\njobs: [{prompt: a}]", r"defaults must be a mapping, got \[\]"),
        (".yaml", "defaults: no\njobs: [{prompt: a}]", "defaults must be a mapping, got 'no'"),
        (".json", '{"jobs": [{"prompt": "a"}]}\n{"jobs": []}', "line 2: .*more follows"),
        (".json", '{"jobs": [],\n"jobs": [{"prompt": "a"}]}', "line 2: the key 'jobs' .* line 1"),
        (".json", '{"matrix": {"seed": [1], "seed": [2]}}', "matrix is .*'seed' stands twice"),
        (".jsonl", '{"defaults": {"seed": 1, "seed": 2}}\n{"prompt": "a"}', "line 1: defaults is"),
        (".jsonl", '{"prompt": "a"}\n{"defaults": {"seed": 1}\n{"prompt": "b"}', "jobs below need"),
        (".csv", "prompt,seed,prompt\na,1,b", r"column 'prompt' stands twice \(\[1, 3\]\)"),
        (".csv", "prompt,seed, seed\na,1,2", "column 'seed' stands twice"),
        (".csv", "prompt;sede\na;1", "'sede' .did you mean 'seed'.*separated by a semicolon"),
    ],
)
def test_what_the_file_says_twice_or_beside_ends_it(tmp_path, suffix, text, message):
    with pytest.raises(JobError, match=message):
        entries(tmp_path, text, suffix)


@pytest.mark.parametrize(
    ("suffix", "bad", "message"),
    [
        (".yaml", "{prompt: a, seed: 1, seed: 2}", "'seed' stands twice .line 2"),
        (".yaml", "prompt: a\n  motion:\n    camera: {zoom: 1}\n    camera: {}", "lines 4 and 5"),
        (".yaml", "{prompt: a, plan: {slicing: {slices: 2, slices: 4}}}", ".slicing is .*twice"),
        (".yaml", "{prompt: a, matrix: {seed: [1]}, zip: {seed: [2]}}", "in matrix and in zip"),
        (".yaml", "{prompt: a, seed: 3, matrix: {seed: [1, 2]}}", "'seed' stands in matrix, and"),
        (".yaml", "{prompt: a, matrix: {motion: [{}], motion.flow: [x]}}", "which is a part of it"),
        (".yaml", "{prompt: a, motion: {flow: x}, matrix: {motion.flow: [y]}}", "'motion.flow'"),
        (".yaml", "{prompt: a, strength: 0.3, zip: {strength.default: [1]}}", "'strength' in the"),
        (".yaml", "{prompt: a, preset: fast, plan: plan.json}", "keep one of them"),
        (".yaml", "{prompt: a, plan: p.json, matrix: {preset: [fast]}}", "keep one of them"),
        (".json", '{"prompt": "a", "seed": 1, "seed": 2}', "'seed' stands twice"),
        (".json", '{"prompt": "a", "motion": {"camera": {"zoom": 1, "zoom": 2}}}', "camera is"),
        (".csv", 'a,"{pan: [1, 0]}",1.5', "'motion.camera' and 'motion.camera.zoom'"),
        (".csv", "a, red, 1, 2", "4 cells, but the header has 3; put text that holds a comma"),
    ],
)  # fmt: skip
def test_what_a_job_says_twice_is_its_fault(tmp_path, suffix, bad, message):
    text = {
        ".yaml": f"jobs:\n- {bad}\n- prompt: b",
        ".json": f'{{"jobs": [\n{bad}, {{"prompt": "b"}}]}}',
        ".csv": f"prompt,motion.camera,motion.camera.zoom\n{bad}\nb,,",
    }[suffix]
    found, good = entries(tmp_path, text, suffix)
    assert isinstance(found, Invalid) and good == Job("b")
    assert "line 2" in f"{found.where} {found.message}"
    with pytest.raises(JobError, match=message):
        raise JobError(found.message)


def test_what_stands_nearer_to_the_job_goes_over_what_is_more_general(tmp_path):
    Plan.preset("lossless").save(tmp_path / "plan.json")
    text = f"""
defaults: {{prompt: p, seed: 1, preset: fast, motion: {{camera: {{zoom: 1.1}}}}}}
matrix: {{seed: [2]}}
jobs:
- {{plan: {tmp_path}/plan.json}}
- {{matrix: {{seed: [3]}}, zip: {{motion.camera.zoom: [1.2], motion.camera.roll: [1]}}}}
"""
    first, second = entries(tmp_path, text)
    assert (first.seed, first.accel_plan().name) == (2, "lossless")
    assert (second.seed, second.preset) == (3, "fast")
    assert second.motion == {"camera": {"zoom": 1.2, "roll": 1}}
    text = f"defaults: {{prompt: p, plan: {tmp_path}/plan.json}}\njobs: [{{preset: fast}}, {{}}]"
    names = [job.accel_plan().name for job in entries(tmp_path, text)]
    assert names == ["fast", "lossless"]
    plain = entries(tmp_path, text, overrides=["preset=none"])
    assert [job.accel_plan() for job in plain] == [None, None]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=1", "steps=3", "seed=2"], "--set is given 'seed' twice"),
        (["motion.camera.zoom=1.1", "motion={camera: {}}"], "which is a part of it"),
    ],
)
def test_an_override_is_given_once(tmp_path, overrides, message):
    with pytest.raises(JobError, match=message):
        entries(tmp_path, "jobs: [{prompt: a}]", overrides=overrides)


def test_a_job_written_out_whole_can_be_read(tmp_path):
    job = Job("p", plan={"name": "x", "attention": None})
    assert entries(tmp_path, json.dumps({"jobs": [job.to_dict()]}), ".json") == [job]


def test_plans_and_settings_say_everything_once(tmp_path):
    path = tmp_path / "file.json"
    path.write_text('{"name": "a", "slicing": {"slices": 2, "slices": 4}}')
    with pytest.raises(ValueError, match=r"slicing is .*'slices' stands twice"):
        Plan.load(path)
    for text in ('{"accel_job": 1, "prompt": "a", "prompt": "b"}', "[" * 9999, "9" * 5000):
        with pytest.raises(JobError, match="carries no settings"):
            job_from_settings(text, "here")
