"""Job files of every kind are expanded to the same jobs, and mistakes stay where they are."""

from __future__ import annotations

import json

import pytest

from accel.pipelines.batch.identity import job_id
from accel.pipelines.batch.items import Item, items, parse_shard
from accel.pipelines.batch.jobfile import Invalid, parse_override, read
from accel.pipelines.batch.naming import Naming
from accel.pipelines.job import Job, JobError
from accel.plans import Plan


def jobs(tmp_path, text, *overrides, suffix=".yaml"):
    path = tmp_path / f"jobs{suffix}"
    path.write_text(text)
    return list(read(path, [parse_override(text) for text in overrides]))


SAME = {
    ".yaml": "version: 1\ndefaults: {steps: 3}\njobs:\n"
    "- {prompt: '7', seed: 1, motion: {camera: {zoom: 1.5}}}\n- {prompt: b, steps: 4}",
    ".json": json.dumps(
        {
            "jobs": [
                {"prompt": "7", "seed": 1, "motion": {"camera": {"zoom": 1.5}}},
                {"prompt": "b", "steps": 4},
            ],
            "defaults": {"steps": 3},
        }
    ),
    ".jsonl": '{"version": 1, "defaults": {"steps": 3}}\n'
    '{"prompt": "7", "seed": 1, "motion": {"camera": {"zoom": 1.5}}}\n\n'
    '{"prompt": "b", "steps": 4}\n',
    ".csv": "prompt,seed,steps,motion.camera.zoom\n7,1,3,1.5\nb,,4,\n",
}


@pytest.mark.parametrize("suffix", SAME)
def test_every_kind_of_file_gives_the_same_jobs(suffix, tmp_path):
    first = Job("7", seed=1, steps=3, motion={"camera": {"zoom": 1.5}})
    assert jobs(tmp_path, SAME[suffix], suffix=suffix) == [first, Job("b", steps=4)]


def test_matrix_zip_and_glob_are_combined(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.npy", "a.npy", "c.txt"):
        (tmp_path / name).write_text("")
    text = """
defaults: {prompt: p, motion: {camera: {zoom: 1.1}}}
matrix: {seed: [1, 2]}
jobs:
  - zip: {steps: [5, 6, 7], guidance: [1, 2, 3]}
  - {width: 96, matrix: {motion.camera.pan: [[1, 0], [0, 1]]}}
  - glob: {motion.camera.depth: "*.npy"}
"""
    found = jobs(tmp_path, text, "strength=0.5", "motion.camera.roll=2")
    assert len(found) == 2 * 3 + 2 * 2 + 2 * 2
    assert [(j.seed, j.steps, j.guidance) for j in found[:3]] == [(1, 5, 1), (1, 6, 2), (1, 7, 3)]
    assert [j.motion["camera"]["pan"] for j in found[6:8]] == [[1, 0], [0, 1]]
    assert [j.motion["camera"]["depth"] for j in found[10:]] == ["a.npy", "b.npy"] * 2
    assert all(j.strength == 0.5 and j.motion["camera"]["roll"] == 2 for j in found)


def test_file_without_jobs_is_one_job(tmp_path):
    found = jobs(tmp_path, "defaults: {prompt: p}\nmatrix: {seed: [1, 2, 3]}")
    assert [j.seed for j in found] == [1, 2, 3]


def test_anchors_and_merge_keys_reach_over_jobs(tmp_path):
    text = "defaults: &all {steps: 2}\njobs:\n- &a {prompt: x, seed: 4}\n- {<<: *a, steps: 9}"
    assert jobs(tmp_path, text) == [Job("x", seed=4, steps=2), Job("x", seed=4, steps=9)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version: 2\njobs: [{prompt: x}]", "version 2"),
        ("defaults: {stesp: 3}\njobs: [{prompt: x}]", "defaults.*did you mean 'steps'"),
        ("defaults: [1]\njobs: [{prompt: x}]", "defaults must be a mapping"),
        ("jobs: 3", "must be a list"),
        ("- prompt: x", "top level"),
        ("", "jobs:"),
        ("jobs:\n- {prompt: x}\n- [", "not a YAML"),
    ],
)
def test_mistakes_of_the_file_end_it(tmp_path, text, message):
    with pytest.raises(JobError, match=message):
        jobs(tmp_path, text)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{prompt: x, matrix: {stesp: [1]}}", "did you mean 'steps'"),
        ("{prompt: x, matrix: {steps: 1}}", "needs a list"),
        ("{prompt: x, zip: {steps: [1, 2], seed: [1]}}", "equally long.*'steps': 2, 'seed': 1"),
        ("{prompt: x, glob: {motion.flow: 'no*.npy'}}", "matches no file"),
        ("{prompt: x, seed: -1}", "seed"),
        ("7", "must be a mapping"),
    ],
)
def test_mistakes_of_a_job_are_its_own(tmp_path, entry, message):
    first, bad, last = jobs(tmp_path, f"jobs:\n- prompt: a\n- {entry}\n- prompt: b")
    assert (first, last) == (Job("a"), Job("b"))
    assert isinstance(bad, Invalid) and "job 2" in bad.where
    with pytest.raises(JobError, match=message):
        raise JobError(bad.message)


@pytest.mark.parametrize("text", ["steps", "=3", "a..b=3", "stesp=3", "steps=[", "motion.=1"])
def test_bad_overrides_are_named(text):
    with pytest.raises(JobError, match="--set"):
        parse_override(text)


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "a/b", "-1/2"])
def test_bad_shards_are_named(text):
    with pytest.raises(JobError, match="i from 1 to n"):
        parse_shard(text)


def test_id_is_of_what_decides_the_bytes(tmp_path):
    job = Job("p", motion={"flow": str(tmp_path / "f.npy")})
    (tmp_path / "f.npy").write_text("one")
    (tmp_path / "copy.npy").write_text("one")
    Plan.preset("balanced").save(tmp_path / "plan.json")
    key = job_id(job)
    same = [
        {"name": "other"},
        {"steps": 20, "width": 64},  # what tiny has anyway
        {"preset": None, "plan": str(tmp_path / "plan.json")},
        {"motion": {"flow": str(tmp_path / "copy.npy")}},
    ]
    assert {job_id(Job(**{**job.to_dict(), **change})) for change in same} == {key}
    changes = [{"prompt": "q"}, {"seed": 1}, {"fps": 9.0}, {"format": "gif"}, {"preset": "fast"}]
    changes += [{"strength": 0.3}, {"motion": None}]
    ids = {job_id(Job(**{**job.to_dict(), **change})) for change in changes}
    (tmp_path / "f.npy").write_text("another")
    assert len({*ids, key, job_id(job)}) == len(changes) + 2
    assert job_id(Job("p", strength=0.1)) == job_id(Job("p"))  # without motion it does nothing


def entries(tmp_path, text, **options):
    path = tmp_path / "jobs.yaml"
    path.write_text(text)
    return [item for item in items([path], **options) if isinstance(item, Item)]


def rows(*items):
    """Rows of a manifest in which nothing is finished."""
    job = json.dumps({"format": "mp4"})
    return [{"name": i.name, "id": i.id, "state": "pending", "job": job} for i in items]


def test_names_are_unique_and_stay(tmp_path):
    text = "jobs: [{prompt: a}, {prompt: a, steps: 2}, {prompt: a}, {prompt: b, name: a-0}]"
    naming = Naming()
    first, second, third = entries(tmp_path, text, naming=naming)
    assert [first.name, second.name] == ["a-0", f"a-0-{second.id[:8]}"]
    assert third.name == f"a-0-{third.id[:8]}" and not third.twin
    assert naming.repeats == {"a-0": 1}
    turned = "jobs: [{prompt: a, steps: 2}, {prompt: a}, {prompt: a, steps: 3}]"
    again = entries(tmp_path, turned, naming=Naming(rows=rows(first, second, third)))
    assert [item.name for item in again[:2]] == [second.name, first.name]
    assert again[2].name == f"a-0-{again[2].id[:8]}"  # a-0 belongs to another video
    (alone,) = entries(tmp_path, "jobs: [{prompt: c, name: a-0}]", naming=Naming(rows=rows(first)))
    assert alone.name == "a-0"  # its first owner is not finished, and asked for by nobody


def test_the_same_video_under_two_names_is_a_twin(tmp_path):
    first, second = entries(tmp_path, "jobs: [{prompt: a, name: x}, {prompt: a, name: y}]")
    assert first.id == second.id and (first.twin, second.twin) == ("", "x")


def test_shards_share_all_jobs_out(tmp_path):
    text = "defaults: {prompt: a}\nmatrix: {seed: [1, 2, 3, 4, 5]}"
    parts = [[i.job.seed for i in entries(tmp_path, text, shard=(n, 3))] for n in (1, 2, 3)]
    assert parts == [[1, 4], [2, 5], [3]]


def test_count_gives_seeds_that_follow_each_other(tmp_path):
    text = "defaults: {count: 2}\njobs:\n- {prompt: a, seed: 5}\n- {prompt: b, count: 3}"
    assert [(j.prompt, j.seed) for j in jobs(tmp_path, text)] == [
        ("a", 5), ("a", 6), ("b", 0), ("b", 1), ("b", 2),
    ]  # fmt: skip
    text = "count: 2\ndefaults: {prompt: p, seed: 3}\nmatrix: {preset: [fast, none]}"
    assert [j.seed for j in jobs(tmp_path, text)] == [3, 4, 3, 4]
    assert [j.seed for j in jobs(tmp_path, text, "seed=8", "count=1")] == [8, 8]
    rows = jobs(tmp_path, "prompt,count\na,2\nb,\n", suffix=".csv")
    assert [(j.prompt, j.seed) for j in rows] == [("a", 0), ("a", 1), ("b", 0)]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("count: 0", "count must be a whole number from 1, got 0"),
        ("count: two", "count must be a whole number from 1, got 'two'"),
        ("count: 2, matrix: {seed: [1, 2]}", "keep one of them"),
        ("count: 2, seed: -1", "a whole number to count from as seed"),
        ("count: 2, seed: 9223372036854775807", "at most 2\\^63 - 2"),
        ("matrix: {count: [1, 2]}", "count cannot stand in matrix"),
        ("count: 200000", "make 200,000 jobs"),
        ("coutn: 2", "did you mean 'count'"),
    ],
)
def test_a_count_that_cannot_be(entry, message, tmp_path):
    bad, good = jobs(tmp_path, f"jobs:\n- {{prompt: p, {entry}}}\n- {{prompt: a}}")
    assert isinstance(bad, Invalid) and good == Job("a")
    with pytest.raises(ValueError, match=message):
        raise ValueError(bad.message)


def test_a_picture_may_stand_for_the_prompt(tmp_path):
    found = jobs(tmp_path, "jobs:\n- {image: a.png}\n- {prompt: null, video: b.mp4}\n- {fit: pad}")
    assert [job.prompt for job in found[:2]] == ["", ""] and "no prompt" in found[2].message
