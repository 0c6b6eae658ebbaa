"""The README's tables of figures are made from rows, and benchmarks add rows in one way."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests" / "bench"))

import rows  # noqa: E402
import tables  # noqa: E402

FILES = sorted(tables.RESULTS.glob("*.json"))
LAYOUTS = sorted(tables.RESULTS.glob("*.md"))


def test_readme_is_what_the_command_makes():
    text = tables.README.read_text()
    assert tables.renewed(text, tables.load()) == text, "run: make tables"
    named = [match.group(2) for match in tables.BLOCK.finditer(text)]
    assert sorted(named) == sorted(path.stem for path in LAYOUTS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_rows_say_what_is_known(path):
    for row in json.loads(path.read_text()):
        assert list(row)[: len(rows.KEYS)] == list(rows.KEYS) and set(row) <= {*rows.KEYS, "note"}
        values = row["value"] if isinstance(row["value"], list) else [row["value"]]
        assert all(isinstance(v, (int, float)) for v in values) and sorted(values) == values
        assert list(row["machine"]) == ["processor", "isa", "cores"]
        assert row["date"] is None or re.fullmatch(r"\d{4}-\d\d-\d\d", row["date"])
        assert row["unit"]
        assert re.match(r"(ACCEL_ISA=\w+ )?(make|python|accel) ", row["command"])


def test_every_row_is_shown():
    """Rows of figures that no table has any more would only be read by mistake."""
    used = {m.group(1) for path in LAYOUTS for m in tables.FIELD.finditer(path.read_text())}
    for name, row in tables.load().items():
        assert used & {name, row["figure"], f"{row['figure']}@{row['machine']['isa']}"}, name


def test_a_figure_that_is_missing_is_named(tmp_path):
    (tmp_path / "t.md").write_text("| {attention/nothing:.1f} |\n")
    text = "<!-- table: t -->\nold\n<!-- end table -->\n"
    with pytest.raises(ValueError, match="no row has the figure 'attention/nothing'"):
        tables.renewed(text, {}, tmp_path)


def test_rows_that_are_added_last_count(tmp_path, monkeypatch):
    file = tmp_path / "results" / "t.json"
    monkeypatch.setattr(sys, "argv", ["tests/bench/b.py", "--json", str(file), "--jobs", "2"])
    monkeypatch.setattr(rows, "machine", lambda: {"processor": "P", "isa": "avx2", "cores": 2})
    monkeypatch.chdir(ROOT)
    nested = {"a": {"seconds": 1.23456789, "size": [1, 2]}, "b": 2, "c": "text", "d": True}
    units = {"seconds": "s", "": "dB"}
    added = rows.append(file, rows.flat(nested, "t", units))
    assert [(r["figure"], r["value"], r["unit"]) for r in added] == [
        ("t/a/seconds", 1.23457, "s"),
        ("t/b", 2.0, "dB"),
    ]
    assert added[0]["command"] == "python tests/bench/b.py --jobs 2"
    assert added[0]["machine"]["isa"] == "avx2" and list(added[0]) == list(rows.KEYS)
    rows.append(file, rows.flat({"b": 3.0}, "t", units))
    (tmp_path / "results" / "t.md").write_text("| {t/b:.2f} | {t/a/seconds@avx2:.1f} s |\n")
    found = tables.load(file.parent)
    assert tables.table("t", found, file.parent) == "| 3.00 | 1.2 s |\n"


def test_another_file_is_not_overwritten(tmp_path, capsys):
    file = tmp_path / "old.json"
    file.write_text('{"environment": {}}')
    rows.append(file, [rows.Figure("a", 1.0, "s")])
    assert file.read_text() == '{"environment": {}}'
    assert json.loads((tmp_path / "old.rows.json").read_text())[0]["figure"] == "a"
    assert "something else than rows" in capsys.readouterr().err
