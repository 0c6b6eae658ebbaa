"""One bad item is one failed item, in the reader's own words; only a broken file ends the reading,
and nothing small becomes large.
"""

from __future__ import annotations

import json
import os
import threading

import pytest

from accel.cli import main
from accel.pipelines.batch import bounds, expanding, jobfile, yaml_values
from accel.pipelines.batch.bounds import Bounds
from accel.pipelines.batch.jobfile import Invalid, parse_override, read
from accel.pipelines.job import Job, JobError

GOOD = [Job("a"), Job("b")]
WORDS = ("Expecting", "while parsing", "<unicode", "set_int_max_str_digits", "codec", "Traceback",
         "month must be", "delimiter:")  # fmt: skip
LAUGHS = "x0: &x0 [a, a]\n" + "".join(f"x{n}: &x{n} [*x{n - 1}, *x{n - 1}]\n" for n in range(1, 40))


def entries(tmp_path, content, suffix=".yaml"):
    path = tmp_path / f"jobs{suffix}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read(path))


@pytest.fixture
def small(monkeypatch):
    def limit(**limits):
        for module in (bounds, expanding, jobfile, yaml_values):
            monkeypatch.setattr(module, "BOUNDS", Bounds(**limits))

    return limit


BAD = [
    (".jsonl", b'{"prompt": "x"', "not JSON from here on: the end"),
    (".jsonl", b'{"prompt": "x"} {"prompt": "y"}', "JSON with more on the same line"),
    (".jsonl", b"[" * 100_000, "nested deeper than 64"),
    (".jsonl", b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", r"seed is 9+... .5,000 digits"),
    (".jsonl", b'{"prompt": "x", "guidance": 1e999}', "guidance is 1e999, too large"),
    (".jsonl", b'{"prompt": "x", "fps": NaN}', "fps is NaN, which is no number in JSON"),
    (".jsonl", b'{"prompt": "\\ud800"}', "prompt is text with half a character"),
    (".jsonl", b'{"prompt": "caf\xe9"}', "prompt is text with half a character"),
    (".yaml", b"a circle", "must be a mapping, got 'a circle'; write {prompt: 'a circle'}"),
    (".jsonl", b"7", "must be a mapping, got 7"),
    (".csv", b"x,{pan", "motion.camera is '{pan', which cannot be read"),
    (".csv", b"caf\xe9,", "prompt is text with half a character"),
    (".csv", b"x\0y,", "NUL"),
    (".csv", b'"x" y,', "text behind a closing quotation mark"),
    (".csv", b'"x,', "never closed"),
    (".csv", b"x," + b"9" * 5000, "too large"),
    (".csv", b"x,[1]]", "cannot be read"),
    (".csv", b"x,1,2", "3 cells, but the header has 2"),
    (".yaml", b"{prompt: x, fps: .inf}", "fps is inf, no finite number"),
    (".yaml", b"{prompt: x, seed: " + b"9" * 5000 + b"}", "seed is 9+... .5,000 digits"),
    (".yaml", b"{prompt: x, motion: &m {camera: *m}}", "inside of &m itself"),
    (".yaml", b"{prompt: x, motion: *none}", "no anchor &none"),
    (".yaml", b"{prompt: x, motion: " + b"[" * 300 + b"]" * 300 + b"}", "nested deeper than 64"),
    (".yaml", b"{prompt: x, ? [a] : b}", "a key that is no text"),
    (".yaml", b"{prompt: !!binary aGVq}", "leave the tag out"),
    (".yaml", b"{prompt: !!python/object/apply:os.getcwd []}", "leave the tag out"),
    (".yaml", b"{prompt: x, <<: 3}", "needs mappings"),
    (".json", b'{"prompt": "\\udfff"}', "prompt is text with half a character"),
    (".json", b'{"prompt": "x", "strength": -Infinity}', "strength is -Infinity"),
    (".json", b'{"prompt": "x", "seed": 1' + b"0" * 400 + b"}", "seed is 1000"),
    (".json", b'{"prompt": "x", "motion": ' + b"[" * 90 + b"]" * 90 + b"}", "nested deeper"),
    (".json", b'{"prompt": "x", "matrix": {"width": []}}', "needs a list of values"),
]


@pytest.mark.parametrize(("suffix", "bad", "message"), BAD, ids=range(len(BAD)))
def test_one_bad_item_is_one_failed_item(tmp_path, suffix, bad, message):
    content = {
        ".jsonl": b'{"prompt": "a"}\n\n%b\n{"prompt": "b"}\n',
        ".csv": b"prompt,motion.camera\na,\n%b\nb,\n",
        ".yaml": b"jobs:\n- prompt: a\n- %b\n- prompt: b\n",
        ".json": b'{"jobs": [{"prompt": "a"},\n\n%b,\n{"prompt": "b"}]}',
    }[suffix] % bad
    first, found, last = entries(tmp_path, content, suffix)
    assert [first, last] == GOOD and isinstance(found, Invalid)
    assert "line 3" in f"{found.where} {found.message}"
    assert not any(word in found.message for word in WORDS) and len(found.message) < 600
    with pytest.raises(JobError, match=message):
        raise JobError(found.message)


def test_the_line_is_the_one_in_which_the_item_begins(tmp_path):
    table = 'prompt,seed\n\n"a\n\nb",1\n\n\n"c\nd",-1\n,\ne,-2\n"f,3\ng,-4\n'
    found = entries(tmp_path, table, ".csv")
    assert found[0] == Job("a\n\nb", seed=1)
    lines = [entry.where.rpartition(" ")[2] for entry in found[1:]]
    assert lines == ["8", "11", "12", "13"]  # a quotation mark left open takes nothing with it
    text = "# x\n\njobs:\n\n- prompt: |\n    a\n    b\n  seed: -1\n-\n  seed: -2\n  prompt: c\n"
    assert [entry.message[-8:] for entry in entries(tmp_path, text)] == ["(line 5)", "line 10)"]
    text = json.dumps({"jobs": [{"prompt": "a", "seed": 1}, {"prompt": "b", "seed": -1}]}, indent=1)
    assert entries(tmp_path, text, ".json")[1].message.endswith("(line 7)")


FILES = [
    (".yaml", b"jobs: [{prompt: a}\nx: [", "line 2: not a YAML file"),
    (".yaml", b"jobs:\n\t- prompt: a", "line 2: .*indent with spaces, not tabs"),
    (".yaml", b'jobs:\n- prompt: "a\n- prompt: b\n', "from line 2 on, where it begins"),
    (".yaml", b"jobs:\n- prompt: a: b\n", "line 2: .*put text with ': '"),
    (".yaml", b"jobs:\n- prompt: a\0b\n", "line 2: .*character that text cannot hold"),
    (".yaml", b"jobs:\n- prompt: caf\xe9\n", "line 2: byte 0xE9 is no text in UTF-8"),
    (".yaml", b"jobs: " + b"[" * 100_000, "line 1: not a YAML file"),
    (".yaml", b"\x89PNG\r\n\x1a\n\0\0", "byte 0x89 is no text"),
    (".yaml", "jobs: [{prompt: a}]".encode("utf-16-le"), "begins with a NUL|NUL byte"),
    (".yaml", LAUGHS.encode() + b"jobs: []", "unknown top-level key 'x0'"),
    (".yaml", b"a prompt", "needs a mapping with 'jobs:' at its top level, got 'a prompt'"),
    (".json", b'{"jobs": [{"prompt": "a"},\n{"prompt" "b"}]}', "line 2: not a JSON file"),
    (".json", b'{"jobs": [{"prompt": "a"}\n{"prompt": "b"}]}', "line 2: .*',' is missing"),
    (".txt", b"a circle\na: b: c", "read for want of another suffix"),
    (".jsonl", b'{"prompt": "a"}\n' * 3 + b'{"defaults": {"seed": 1}', "line 4: .*jobs below need"),
    (".json", b'{"jobs": [' + b"[" * 100_000, "line 1: not a JSON file: nested deeper than 64"),
    (".json", b"[]", "needs a mapping"),
    (".json", b'{"jobs": [{"prompt": "\xff"}]}', "byte 0xFF"),
    (".jsonl", b'{\n"prompt": "a"\n}\n', "must be named .json"),
    (".csv", b"a circle\na square", "unknown key 'a circle'"),
    (".csv", b'"prompt\na\n', "line 1: the header is .*never closed"),
    (".csv", b"x," * 5000, "5,001 columns, at most 256"),
]


LARGE = [
    (".csv", b"prompt\n" + b"\n" * 2_000_001, "2,000,002 lines, at most 2,000,000"),
    (".yaml", b"jobs:\n- a: [" + b"x," * 260_000 + b"]", "more than 250,000 values stand in one"),
    (".json", b'{"jobs": [' + b"0," * 100_001 + b"0]}", "more than 100,000 jobs; split"),
]
FILES += [pytest.param(*case, marks=pytest.mark.slow) for case in LARGE]


@pytest.mark.parametrize(("suffix", "content", "message"), FILES, ids=range(len(FILES)))
def test_a_broken_file_is_one_clear_line(tmp_path, suffix, content, message, capsys):
    path = tmp_path / f"jobs{suffix}"
    path.write_bytes(content)
    assert main(["render", str(path), "--out", str(tmp_path / "out"), "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"accel: error: {path}") and error.count("\n") == 1
    assert not any(word in error for word in WORDS) and len(error) < 700
    with pytest.raises(JobError, match=message):
        list(read(path))


def test_a_pipe_is_read(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=["jobs: [{prompt: a}, {prompt: b}]"])
    writer.start()
    assert list(read(path)) == GOOD
    writer.join()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_encodings_with_a_mark_are_read(tmp_path, encoding):
    for suffix, text in {
        ".yaml": "jobs: [{prompt: ein Kreis, größer}]".replace(", g", " g"),
        ".json": '{"jobs": [{"prompt": "ein Kreis größer"}]}',
        ".jsonl": '{"prompt": "ein Kreis größer"}\r\n',
        ".csv": "prompt\r\nein Kreis größer\r\n",
    }.items():
        assert entries(tmp_path, text.encode(encoding), suffix) == [Job("ein Kreis größer")]


def test_aliases_are_counted_as_often_as_they_stand(tmp_path):
    with pytest.raises(JobError, match=r"more than 250,000 values.*aliases"):
        entries(tmp_path, f"defaults:\n  motion:\n    {LAUGHS.replace(chr(10), chr(10) + '    ')}"
                          "\njobs: [{prompt: a}]")  # fmt: skip
    bomb = "  ".join(f"x{n}: &x{n} [*x{n - 1}, *x{n - 1}]," for n in range(1, 40))
    text = f"jobs:\n- prompt: a\n- {{prompt: x, motion: {{x0: &x0 [a, a], {bomb}}}}}\n- prompt: b"
    first, bad, last = entries(tmp_path, text)
    assert [first, last] == GOOD and "more than 250,000 values" in bad.message


def test_every_limit_is_named_with_the_way_out(tmp_path, small):
    many = "matrix: {seed: [1, 2, 3], steps: [1, 2, 3], prompt: [a, b]}"
    small(jobs=10)
    (found,) = entries(tmp_path, many)
    assert "make 18 jobs (3 x 3 x 2), at most 10" in found.message and "split it" in found.message
    first, second = entries(tmp_path, f"jobs:\n- {{prompt: a}}\n- {{{many}}}")
    assert first == Job("a") and isinstance(second, Invalid)
    for suffix, text in {
        ".yaml": "defaults: {prompt: a}\njobs:" + "\n- seed: 1" * 11,
        ".jsonl": '{"prompt": "a"}\n' * 11,
        ".csv": "prompt\n" + "a\n" * 11,
    }.items():
        with pytest.raises(JobError, match=r"more than 10 jobs.*split it"):
            entries(tmp_path, text, suffix)
    small(values=40)
    with pytest.raises(JobError, match="over 40 values together"):
        entries(tmp_path, "defaults: {prompt: a, strength: 0.2}\nmatrix: {seed: [1, 2, 3, 4, 5]}")
    small(size=20)
    with pytest.raises(JobError, match=r"larger than 0 MiB.*split it"):
        entries(tmp_path, "jobs: [{prompt: a circle}]")
    small(merged=3)
    text = "defaults: &d {seed: 1, steps: 2}\njobs: [{<<: *d, prompt: a}, {<<: *d, prompt: b}]"
    first, second = entries(tmp_path, text)
    assert first.steps == 2 and "beyond 3 keys" in second.message


@pytest.mark.parametrize("value", ["[", "{a: 1", '"x', "*a", "a: b: c", "[1]]", "a\n--- b", "@"])
def test_a_bad_override_is_named(value):
    with pytest.raises(JobError, match="--set motion is") as caught:
        parse_override(f"motion={value}")
    assert not any(word in str(caught.value) for word in WORDS)


def test_a_dry_run_shows_the_bad_item_and_the_good_ones(tmp_path, capsys):
    path = tmp_path / "jobs.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "x"\n{"prompt": "b"}\n')
    assert main(["render", str(path), "--out", str(tmp_path / "out"), "--dry-run"]) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2 and "2 to render, 0 already done, 1 invalid" in err
    assert f"invalid: {path}, line 2 is not JSON from here on" in err


def test_what_no_path_can_be_is_the_fault_of_its_job(tmp_path, capsys):
    """Found when a file is looked for, not by the reader."""
    long = "x" * 5000
    bad = [
        {"model": long}, {"model": "a\0b"}, {"model": "~nobody/x"}, {"plan": long},
        {"plan": "a\0b"}, {"motion": {"flow": long}}, {"motion": {"flow": f"{'y' * 300}"}},
        {"motion": {"video": "a\0b"}}, {"strength": {"map": long}, "motion": {"camera": {}}},
        {"matrix": {"seed": [1]}, "glob": {"motion.flow": "a\0b"}}, {"glob": {"plan": long}},
    ]  # fmt: skip
    jobs = [{"prompt": "x", **change} for change in bad]
    path = tmp_path / "jobs.json"
    path.write_text(json.dumps({"jobs": [{"prompt": "a"}, *jobs, {"prompt": "b"}]}))
    assert main(["render", str(path), "--out", str(tmp_path / "out"), "--dry-run"]) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2, out
    assert f"2 to render, 0 already done, {len(bad)} invalid" in err
