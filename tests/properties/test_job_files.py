"""Whatever a job file holds, it gives jobs, or says what is wrong: never another exception."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from accel.core.plain_values import check, shown
from accel.core.strict_json import loads
from accel.pipelines.batch.jobfile import Invalid, parse_override, read
from accel.pipelines.job import Job, JobError

KINDS = (".yaml", ".json", ".jsonl", ".csv", ".tsv", "")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


def outcome(folder: Path, kind: str, content: bytes) -> list[Job | Invalid] | str:
    path = folder / f"jobs{kind}"
    path.write_bytes(content)
    try:
        found = list(read(path))
    except JobError as error:
        assert str(path) in str(error) and len(str(error)) < 2000
        return str(error)
    assert found
    for entry in found:
        if isinstance(entry, Invalid):
            assert str(path) in entry.where and 0 < len(entry.message) < 2000
            assert "<unicode string>" not in entry.message
        else:
            json.dumps(entry.to_dict()).encode()
    return found


words = st.sampled_from(
    [
        "prompt", "seed", "steps", "motion", "camera", "zoom", "plan", "preset", "none", "jobs",
        "defaults", "matrix", "zip", "glob", "version", "strength", "<<", "yes", "2024-13-45",
        "1e999", "9" * 5000, ".inf", "-1", "0o17", "~", "fast", "motion.camera.zoom", "\ud800",
        "\0", "*.npy", "name", "\u2028",
    ]
)  # fmt: skip
scalars = st.none() | st.booleans() | st.integers() | st.floats() | words | st.text(max_size=8)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(words | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)
keys = st.sampled_from(
    ["prompt", "seed", "steps", "motion", "plan", "preset", "strength", "matrix", "zip", "name",
     "fps", "model", "promt"]
)  # fmt: skip
jobs = st.dictionaries(keys, values, max_size=5) | values
files = st.fixed_dictionaries(
    {"jobs": st.lists(jobs, min_size=1, max_size=3)},
    optional={"defaults": jobs, "matrix": values, "zip": values, "version": values},
)


@given(st.sampled_from(KINDS), st.binary(max_size=200))
def test_any_bytes(folder: Path, kind: str, content: bytes) -> None:
    outcome(folder, kind, content)


@given(st.sampled_from(KINDS), st.lists(words | st.sampled_from(list("{}[]:,-\"'\n\t &*!|>#%@;"))))
def test_any_words(folder: Path, kind: str, pieces: list[str]) -> None:
    outcome(folder, kind, " ".join(pieces).encode("utf-8", "surrogatepass"))


@given(files)
def test_any_values_in_json(folder: Path, data: Any) -> None:
    """Every job of the list is a job, or invalid on its own."""
    found = outcome(folder, ".json", json.dumps(data).encode())
    wheres = {entry.where for entry in found if isinstance(entry, Invalid)}
    if isinstance(found, list) and not {"matrix", "zip"} & set(data):
        for number, job in enumerate(data["jobs"], 1):
            if not isinstance(job, dict):
                assert any(where.endswith(f"job {number}") for where in wheres)


@given(files, st.data())
def test_a_changed_file(folder: Path, data: Any, draw: st.DataObject) -> None:
    """A valid file with a piece taken out, put in or doubled."""
    kind = draw.draw(st.sampled_from([".json", ".jsonl", ".yaml", ".csv"]))
    if kind == ".yaml":
        text = yaml.safe_dump(json.loads(json.dumps(data)), allow_unicode=True)
    elif kind == ".csv":
        table = io.StringIO()
        names = ["prompt", "seed", "motion.camera.zoom", "plan"]
        csv.writer(table).writerows([names, *([shown(job)] * 4 for job in data["jobs"])])
        text = table.getvalue()
    else:
        text = json.dumps(data, indent=None if kind == ".jsonl" else 1)
        text = "\n".join(map(json.dumps, data["jobs"])) if kind == ".jsonl" else text
    start, end = sorted(draw.draw(st.tuples(*[st.integers(0, len(text))] * 2)))
    piece = draw.draw(words | st.sampled_from([text[start:end], "", '"', "\n", "[" * 2000, "---"]))
    changed = text[:start] + piece + text[end if draw.draw(st.booleans()) else start :]
    outcome(folder, kind, changed.encode("utf-8", "surrogatepass"))


@given(st.lists(st.tuples(st.text("abcdefgh", min_size=1), st.text()), max_size=6))
def test_a_key_is_never_lost(pairs: list[tuple[str, str]]) -> None:
    """Of two equal keys none is dropped without a word."""
    text = "{" + ",".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in pairs) + "}"
    if len(dict(pairs)) == len(pairs):
        assert loads(text, "text") == dict(pairs)
    else:
        with pytest.raises(ValueError, match="stands twice"):
            loads(text, "text")


@given(
    st.sampled_from(["prompt", "seed", "motion", "plan", "motion.camera.pan"]), st.text() | words
)
def test_any_override(key: str, value: str) -> None:
    try:
        check(parse_override(f"{key}={value}")[1], "value")
    except JobError as error:
        assert "--set" in str(error) and len(str(error)) < 2000


prompts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=30)


@given(st.lists(prompts.map(str.strip).filter(bool), min_size=1, max_size=4))
def test_a_prompt_is_what_was_written(folder: Path, texts: list[str]) -> None:
    """In every kind of file, quoted as its own writer does."""
    entries = [{"prompt": text} for text in texts]
    table = io.StringIO()
    csv.writer(table, delimiter=";").writerows([["prompt", "seed"], *([text, 1] for text in texts)])
    contents = {
        ".yaml": yaml.safe_dump({"jobs": entries}, allow_unicode=True, width=1000),
        ".json": json.dumps({"jobs": entries}),
        ".jsonl": "\n".join(map(json.dumps, entries)),
        ".csv": table.getvalue(),
    }
    for kind, content in contents.items():
        found = outcome(folder, kind, content.encode())
        assert [job.prompt for job in found if isinstance(job, Job)] == texts, kind
