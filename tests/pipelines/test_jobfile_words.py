"""A value is what was written, in every kind of file, and words of other programs are understood
or refused with the way out.
"""

from __future__ import annotations

import json

import pytest
import yaml

from accel.pipelines.batch.jobfile import Invalid, parse_override, read
from accel.pipelines.job import Job, JobError
from accel.pipelines.ui.settings import job_file
from accel.plans import PRESETS

# YAML 1.1 makes of these a date, a truth value, a number of base 8, 60 or with gaps, or nothing.
TEXTS = [
    "2024-13-45", "2024-01-01", "2001-12-14t21:59:43.10-05:00", "yes", "no", "on", "off", "y", "NO",
    "190:20:30", "0o17", "010", "1_000", "1e3", ".5", "7", "-1", "+1", ".inf", ".nan", "0x1F",
    "true", "False", "=", "9" * 5000, "1984", "3.14", "<<",
]  # fmt: skip


def entries(tmp_path, text, suffix=".yaml"):
    path = tmp_path / f"jobs{suffix}"
    path.write_text(text)
    return list(read(path))


@pytest.mark.parametrize("text", TEXTS)
def test_a_prompt_stays_text(tmp_path, text):
    assert entries(tmp_path, f"jobs: [{{prompt: {text}, name: {text}}}]") == [Job(text, name=text)]
    found = entries(
        tmp_path, f"defaults: {{negative_prompt: {text}}}\nmatrix: {{prompt: [{text}]}}"
    )
    assert found == [Job(text, negative_prompt=text)]
    assert entries(tmp_path, f"prompt,seed\n{text},1", ".csv") == [Job(text, seed=1)]
    assert parse_override(f"prompt={text}") == ("prompt", text)


def test_text_that_is_no_prompt_stays_text_too(tmp_path):
    text = "jobs:\n- {prompt: a, motion: {video: {file: 2024-01-01}}}\n- {prompt: b, model: 1e3}"
    first, second = entries(tmp_path, text)
    assert first.motion == {"video": {"file": "2024-01-01"}} and second.model == "1e3"


@pytest.mark.parametrize("text", ["null", "~", ""])
def test_nothing_is_no_prompt(tmp_path, text):
    first, second = entries(tmp_path, f"jobs:\n- prompt: {text}\n- {{prompt: a}}")
    assert "job 1 has no prompt" in first.message and second == Job("a")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10", 10), ("010", 10), ("0x10", 16), ("0o17", 15), ("+3", 3), ("1e2", 100.0), (".5", 0.5),
        ("-1.5e-3", -0.0015), ("1.", 1.0), ("true", True), ("FALSE", False), ("null", None),
        ("~", None), ("", None), ("yes", "yes"), ("1_000", "1_000"), ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"), ("[1, no]", [1, "no"]), ("{a: off}", {"a": "off"}),
        ('"1"', "1"), ("'no'", "no"),
    ],
)  # fmt: skip
def test_values_are_those_of_the_core_schema(text, value):
    found = parse_override(f"strength={text}")[1]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("name", ["a", *TEXTS])
def test_what_the_page_writes_is_read_back(tmp_path, name):
    job = Job(name, negative_prompt=name, name=name, motion={"flow": name[:100]}, guidance=1e-7)
    assert entries(tmp_path, job_file([job])) == [job]
    assert entries(tmp_path, yaml.safe_dump({"jobs": [job.to_dict()]})) == [job]


@pytest.mark.parametrize("word", ["none", "off", "null", "~", "false"])
def test_no_preset_is_no_acceleration(tmp_path, word):
    value = {"null": None, "~": None, "false": False}.get(word, word)
    found = entries(tmp_path, f"jobs: [{{prompt: a, preset: {word}}}]")
    found += entries(tmp_path, json.dumps({"jobs": [{"prompt": "a", "preset": value}]}), ".json")
    found += entries(tmp_path, f"prompt,preset\na,{word}", ".csv")
    assert found == [Job("a", preset=None)] * 3 and found[0].accel_plan() is None


@pytest.mark.parametrize("word", ["nome", "yes", "true", "1"])
def test_another_word_is_no_preset(tmp_path, word):
    (found,) = entries(tmp_path, f"jobs: [{{prompt: a, preset: {word}}}]")
    assert all(name in found.message for name in (*PRESETS, "none"))


@pytest.mark.parametrize("suffix", [".yaml", ".json", ".csv"])
def test_a_random_seed_is_refused_with_the_way_out(tmp_path, suffix):
    text = {".yaml": "jobs: [{prompt: a, seed: -1}]", ".csv": "prompt,seed\na,-1",
            ".json": '{"jobs": [{"prompt": "a", "seed": -1}]}'}[suffix]  # fmt: skip
    (found,) = entries(tmp_path, text, suffix)
    assert "from 0 to 2^63 - 1, got -1" in found.message
    assert "matrix: {seed: [1, 2, 3]}" in found.message


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("head", ["", "sep={}\n", "\n\n"])
def test_separators_are_found(tmp_path, separator, head):
    rows = ["prompt,seed,motion.camera.zoom", "a circle,1,1.5", '"a, b; c | d\te",2,', "b"]
    rows[:2] = [row.replace(",", separator) for row in rows[:2]]
    rows[2] = f'"a, b; c | d\te"{separator}2{separator}'
    text = head.format(separator) + "\r\n".join(rows)
    for suffix in (".csv", ".tsv"):
        assert entries(tmp_path, text, suffix) == [
            Job("a circle", seed=1, motion={"camera": {"zoom": 1.5}}),
            Job("a, b; c | d\te", seed=2),
            Job("b"),
        ]


def test_what_a_spreadsheet_leaves_is_no_fault(tmp_path):
    text = 'prompt , seed,,\n\n a circle, 1,,\n,,,\n"a, b", 2,,\n'
    assert entries(tmp_path, text, ".csv") == [Job("a circle", seed=1), Job("a, b", seed=2)]
    (bad,) = entries(tmp_path, "prompt,seed,\na,1,red", ".csv")
    assert "the cell 'red' in a column without a name" in bad.message


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_separator_in_a_prompt_is_named(tmp_path, separator):
    text = separator.join(["prompt", "seed"]) + f"\na{separator} red{separator}1\nb{separator}2\n"
    bad, good = entries(tmp_path, text, ".csv")
    name = {",": "comma", ";": "semicolon", "\t": "tab"}[separator]
    assert isinstance(bad, Invalid) and good == Job("b", seed=2)
    assert f"line 2 is a row of 3 cells, but the header has 2; put text that holds a {name} in" in (
        bad.message
    )


def test_a_folder_of_frames_is_a_rendered_video(tmp_path):
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "00000.png").write_bytes(b"no picture")
    with pytest.raises(JobError, match="cannot be read as a video"):
        list(read(tmp_path / "frames"))
    with pytest.raises(JobError, match="cannot read job file"):
        list(read(tmp_path))
