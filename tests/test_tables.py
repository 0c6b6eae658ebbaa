"""The README's tables of figures are made from rows of the shipped weights, in one way."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests" / "bench"))

import rows  # noqa: E402
import tables  # noqa: E402
from bench_demo import figures as demo_figures  # noqa: E402
from open_tables import OUTDATED, TYPED  # noqa: E402

BENCHES = sorted((ROOT / "tests" / "bench").glob("*.py"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NUMBER = re.compile(r"[-<]?\d[\d.,]*( ?[×%]|\b)")  # at the beginning of a cell
FILES = sorted(tables.RESULTS.glob("*.json"))
LAYOUTS = sorted(tables.RESULTS.glob("*.md"))
SAME_RUN = {  # what rows name that were added by hand, and the bench that adds them now
    "make demo": "python tests/bench/bench_demo.py",
    "accel memory": "python tests/bench/bench_memory.py",
}
MACHINE = {"processor": "P", "isa": "avx2", "cores": 2, "device": "cpu"}


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
        assert list(row["machine"]) == ["processor", "isa", "cores", "device"]
        assert row["weights"] is None or set(row["weights"]) == {"model", "hash"}
        assert row["date"] is None or re.fullmatch(r"\d{4}-\d\d-\d\d", row["date"])
        assert row["machine"]["device"] in ("cpu", "cuda", "meta")
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
    monkeypatch.setattr(rows, "machine", lambda: MACHINE)
    monkeypatch.delenv("ACCEL_ISA", raising=False)
    monkeypatch.chdir(ROOT)
    nested = {"a": {"seconds": 1.23456789, "size": [1, 2]}, "b": 2, "c": "text", "d": True}
    units = {"seconds": "s", "": "dB"}
    weights = {"model": "tiny-wan", "hash": "0123456789ab"}
    added = rows.append(file, rows.flat(nested, "t", units), weights=weights)
    assert [(r["figure"], r["value"], r["unit"]) for r in added] == [
        ("t/a/seconds", 1.23457, "s"),
        ("t/b", 2.0, "dB"),
    ]
    assert added[0]["command"] == "python tests/bench/b.py --jobs 2"
    assert added[0]["machine"]["isa"] == "avx2" and list(added[0]) == list(rows.KEYS)
    assert added[0]["weights"] == weights
    monkeypatch.setenv("ACCEL_ISA", "avx2")
    (last,) = rows.append(file, rows.flat({"b": 3.0}, "t", units), weights=None)
    assert last["command"] == "ACCEL_ISA=avx2 python tests/bench/b.py --jobs 2"
    (tmp_path / "results" / "t.md").write_text("| {t/b:.2f} | {t/a/seconds@avx2:.1f} s |\n")
    found = tables.load(file.parent)
    filled = "| 3.00 | 1.2 s |\n\nP (avx2, 2 cores), "
    assert tables.table("t", found, file.parent).startswith(filled)


def test_another_file_is_not_overwritten(tmp_path, capsys):
    file = tmp_path / "old.json"
    file.write_text('{"environment": {}}')
    rows.append(file, [rows.Figure("a", 1.0, "s")], weights=None)
    assert file.read_text() == '{"environment": {}}'
    assert json.loads((tmp_path / "old.rows.json").read_text())[0]["figure"] == "a"
    assert "something else than rows" in capsys.readouterr().err


def test_tables_are_of_the_shipped_weights():
    """Each figure has a day, a machine, a command and the hash of the weights in samples/."""
    known = tables.load()
    found = {path.stem: tables.outdated(path.stem, known) for path in LAYOUTS}
    wrong = [line for name, lines in found.items() if name not in OUTDATED for line in lines]
    assert not wrong, "\n".join(wrong)
    done = [name for name in OUTDATED if not found.get(name)]
    assert not done, f"take these off the list in tests/bench/open_tables.py: {done}"


def test_other_weights_are_found_and_named(tmp_path, monkeypatch):
    """The test above would fail: hash, table and command are in its message."""
    monkeypatch.setattr(sys, "argv", ["tests/bench/b.py"])
    monkeypatch.setattr(rows, "machine", lambda: MACHINE)
    monkeypatch.delenv("ACCEL_ISA", raising=False)
    monkeypatch.chdir(ROOT)
    ours = rows.weights_of("tiny")
    assert ours == {"model": "tiny-wan", "hash": tables.shipped()["tiny-wan"]}
    (tmp_path / "t.md").write_text("| {t/a:.1f} |\n")
    for weights, wrong in ((ours, False), ({**ours, "hash": "0123456789ab"}, True)):
        rows.append(tmp_path / "t.json", [rows.Figure("t/a", 1.0, "dB")], weights=weights)
        found = tables.load(tmp_path)
        lines = tables.outdated("t", found, tmp_path)
        assert len(lines) == wrong, lines
        assert ("no longer shipped" in tables.table("t", found, tmp_path)) is wrong
    assert "table 't'" in lines[0] and "python tests/bench/b.py" in lines[0]
    assert "0123456789ab" in lines[0] and ours["hash"] in lines[0]


def test_a_changed_weight_changes_the_hash(tmp_path):
    found = []
    for folder, text in (("a", "x"), ("b", "x"), ("c", "y")):
        for name, content in (("model_index.json", "{}"), ("vae/w.safetensors", text)):
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_text(content)
        found.append(rows.weights_of(str(tmp_path / folder)))
    assert [weights["model"] for weights in found] == ["a", "b", "c"]
    same, again, other = (weights["hash"] for weights in found)
    assert same == again != other and len(same) == rows.HASH


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_weights_that_a_page_names_are_shipped(page):
    """Typed tables name their weights, too."""
    text = tables.BLOCK.sub("", page.read_text())
    for model, found in tables.SAID.findall(re.sub(r"\s+", " ", text)):
        assert found == tables.shipped().get(model), (
            f"{page.name}: figures are of the weights {found} of {model}, shipped are "
            f"{tables.shipped().get(model)}; remake them by the commands on that page"
        )


def test_no_further_table_is_typed():
    found = {}
    for page in PAGES:
        blocks = re.findall(r"(?:^\|.*\n)+", tables.BLOCK.sub("", page.read_text()), re.MULTILINE)
        rows_of = (block.splitlines()[2:] for block in blocks)
        cells = [[c.strip() for r in some for c in r.strip("|").split("|")[1:]] for some in rows_of]
        typed = sum(2 * sum(map(bool, map(NUMBER.match, some))) > len(some) for some in cells)
        if typed:
            found[str(page.relative_to(ROOT))] = typed
    assert found == TYPED, "make tables of rows (CONTRIBUTING.md, Benchmarks); see open_tables.py"


def appended(bench):
    """Nodes of a bench's calls of ``append`` that add rows."""
    calls = (n for n in ast.walk(ast.parse(bench.read_text())) if isinstance(n, ast.Call))
    return [call for call in calls if ast.unparse(call.func) == "append"]


@pytest.mark.parametrize("bench", [b for b in BENCHES if appended(b)], ids=lambda path: path.stem)
def test_benches_say_which_weights_they_measured(bench):
    """A run of hours must not fail at its end, and a bench that loads a model must name it."""
    loads = re.search(r"\bload\((\"tiny\"|args)|from rehash_models|load_sidecar", bench.read_text())
    for call in (c for c in appended(bench) if bench.stem != "rows"):
        (said,) = [ast.unparse(k.value) for k in call.keywords if k.arg == "weights"]
        assert not loads or said != "None", bench.name


def test_make_bench_runs_what_makes_every_table():
    done = subprocess.run(
        ["make", "-n", "bench", "RELEASED=FILE"], cwd=ROOT, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    makefile = (ROOT / "Makefile").read_text()
    targets = re.search(r"^bench:((?:.*\\\n)*.*)", makefile, re.MULTILINE)[1].split()
    known = tables.load()
    shown = [row for layout in LAYOUTS for row in tables.used(layout.stem, known)]
    for command in {row["command"].removeprefix("ACCEL_ISA=avx2 ") for row in shown}:
        words = SAME_RUN.get(" ".join(command.split()[:2]), command).split()
        script = words[1].endswith(".py") and words[1] in done.stdout
        made = words[1] in targets if words[0] == "make" else script
        assert made, f"`make bench` does not run: {command}"


def test_rows_of_a_bench_are_taken_once(tmp_path):
    folder, bench = tmp_path / "results", tmp_path / "b.json"
    folder.mkdir()
    (folder / "t.md").write_text("| {t/a:.1f} | {t/b@avx2:.1f} |\n")
    row = dict.fromkeys(rows.KEYS) | {"machine": MACHINE, "date": "2026-11-30", "value": 1.0}
    mine = [{**row, "figure": name} for name in ("t/a", "t/b", "t/nobody shows it")]
    rows.write(bench, mine)
    assert tables.take([bench], folder) == 2 and tables.take([bench], folder) == 0
    assert [r["figure"] for r in json.loads((folder / "t.json").read_text())] == ["t/a", "t/b"]
    rows.write(bench, [{**mine[0], "date": "2026-11-29", "value": 2.0}])
    assert tables.take([bench], folder) == 0  # older than the table's own
    bench.write_text('[{"figure": "t/a"}]')
    with pytest.raises(ValueError, match="something else than rows"):
        tables.take([bench], folder)


def test_the_demo_bench_gives_ranges_by_preset():
    def sidecar(preset, speedup, decibels):
        compared = {"speedup": speedup, "psnr_db": decibels}
        return {"job": {"preset": preset}, "comparison": compared}

    plain = {"job": {"preset": None}, "comparison": None}
    found = demo_figures([sidecar("fast", 2.0, 40.0), plain, sidecar("fast", 1.5, 40.0)])
    assert [tuple(f) for f in found] == [
        ("demo/fast/speedup", [1.5, 2.0], "×"),
        ("demo/fast/psnr", 40.0, "dB"),
    ]
