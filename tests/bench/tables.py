"""The README's tables of figures, made from the rows in ``tests/bench/results/``.

    python tests/bench/tables.py [--check] [--take FILE ...]        (make tables)

``results/NAME.md`` is a table with figures' names in braces, which goes between the README's lines
``<!-- table: NAME -->`` and ``<!-- end table -->``; ``results/*.json`` are the rows (``rows.py``).
In braces stands a figure's name, after "@" the instruction set of the machine where there are rows
of several, and after ":" the number of decimals, as in ``{attention/int8@avx2:.1f}``. The last row
of a figure counts. Under each table stand machine, date, the hash of the weights and the commands.

``--check`` changes nothing and fails if the README's tables are others. ``--take`` first adds the
rows of files that benchmarks wrote (``make bench``: build/bench/*.json) to those of the tables: of
each figure that a table shows the last row, unless the table's own row is of a later day.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import rows as figures

ROOT = Path(__file__).resolve().parents[2]
README, RESULTS = ROOT / "README.md", Path(__file__).parent / "results"
FIELD = re.compile(r"\{([^{}]+?)(?::(\.\d+f))?\}")
BLOCK = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end table -->)", re.DOTALL)
SAID = re.compile(r"weights of ([\w-]+) `([0-9a-f]+)`")  # in a page

Row = dict[str, Any]
Rows = dict[str, Row]


def load(folder: Path = RESULTS) -> Rows:
    """The last row of every figure, by its name and by name@instruction set."""
    found: Rows = {}
    for file in sorted(folder.glob("*.json")):
        for row in json.loads(file.read_text()):
            found[row["figure"]] = found[f"{row['figure']}@{row['machine']['isa']}"] = row
    return found


@cache
def shipped() -> dict[str, str]:
    """The hash of each model in samples/, by its folder."""
    folders = sorted(index.parent for index in (ROOT / "samples").glob("*/model_index.json"))
    return {f.name: figures.weights_of(str(f))["hash"] for f in folders}


def shown(match: re.Match[str], rows: Rows) -> str:
    """The value that a field in braces stands for."""
    name, form = match.group(1), match.group(2) or "g"
    if name not in rows:
        raise ValueError(f"no row has the figure {name!r}; see {RESULTS.relative_to(ROOT)}")
    value = rows[name]["value"]
    return " to ".join(format(v, form) for v in (value if isinstance(value, list) else [value]))


def used(name: str, rows: Rows, folder: Path = RESULTS) -> list[Row]:
    """The rows that a table shows, each once."""
    fields = [match.group(1) for match in FIELD.finditer((folder / f"{name}.md").read_text())]
    return list({id(rows[field]): rows[field] for field in fields if field in rows}.values())


def table(name: str, rows: Rows, folder: Path = RESULTS) -> str:
    """A table with its figures filled in, and what they were measured with."""
    text = FIELD.sub(partial(shown, rows=rows), (folder / f"{name}.md").read_text())
    return f"{text}\n{provenance(used(name, rows, folder))}\n"


def provenance(rows: Iterable[Row]) -> str:
    """What rows were measured with: a sentence for each machine and model."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((_machine(row["machine"]), _weights(row["weights"])), []).append(row)
    return "\n".join(_sentence(*group, found) for group, found in groups.items())


def _sentence(machine: str, weights: str, rows: list[Row]) -> str:
    days = sorted({row["date"] or "day not recorded" for row in rows})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    commands = ", ".join(f"`{command}`" for command in dict.fromkeys(r["command"] for r in rows))
    return f"{machine}, {when}{weights}: {commands}."


def _machine(machine: dict[str, Any]) -> str:
    name, isa, cores = (machine[key] for key in ("processor", "isa", "cores"))
    if machine["device"] == "meta":
        return "Simulated"
    more = [part for part in (isa, cores and f"{cores} core{'s' * (cores > 1)}") if part]
    return (name or "Machine not recorded") + (f" ({', '.join(more)})" if more else "")


def _weights(weights: dict[str, str] | None) -> str:
    if weights is None:
        return ""
    same = shipped().get(weights["model"]) == weights["hash"]
    old = "" if same else ", which are no longer shipped"
    return f", weights of {weights['model']} `{weights['hash']}`{old}"


def outdated(name: str, rows: Rows, folder: Path = RESULTS) -> list[str]:
    """What of a table's rows is not known, or not of the weights that are shipped; a line each."""
    found: dict[str, str] = {}
    for row in used(name, rows, folder):
        lacks = [key for key in ("date", "command") if not row[key]]
        lacks += [] if row["machine"]["processor"] else ["machine"]
        why = f"no {' and no '.join(lacks)}" if lacks else ""
        if (weights := row["weights"]) is not None:
            now = shipped().get(weights["model"], "none")
            if weights["hash"] != now:
                why = f"of the weights {weights['hash']} of {weights['model']}, shipped are {now}"
        if why:
            found[f"table {name!r} is {why}; remake it: {row['command']}"] = row["figure"]
    return [f"{line} (first figure: {figure})" for line, figure in found.items()]


def renewed(text: str, rows: Rows, folder: Path = RESULTS) -> str:
    """The README's text with all its tables made anew."""
    return BLOCK.sub(lambda m: m.group(1) + table(m.group(2), rows, folder) + m.group(3), text)


def take(files: Iterable[Path], folder: Path = RESULTS) -> int:
    """Add the rows that tables show from files that benchmarks wrote; how many were added."""
    known, fresh = load(folder), {}
    for row in (row for file in sorted(files) for row in _rows_of(file)):
        fresh[row["figure"], row["machine"]["isa"]] = row
    added = 0
    for layout in sorted(folder.glob("*.md")):
        fields = {match.group(1) for match in FIELD.finditer(layout.read_text())}
        new = []
        for (figure, isa), row in fresh.items():
            if fields & {figure, f"{figure}@{isa}"}:
                last = known.get(f"{figure}@{isa}", {"date": None})
                if row != last and (row["date"] or "") >= (last["date"] or ""):
                    new.append(row)
        if new:
            file = layout.with_suffix(".json")
            old = json.loads(file.read_text()) if file.is_file() else []
            figures.write(file, [*old, *new])
            added += len(new)
    return added


def _rows_of(file: Path) -> Iterator[Row]:
    """The rows of a file. Raises ValueError for one that holds something else."""
    rows = json.loads(file.read_text())
    if not isinstance(rows, list) or not all(set(figures.KEYS) <= set(row) for row in rows):
        raise ValueError(f"{file} holds something else than rows of today's form; remove it")
    yield from rows


def main() -> int:
    """Rewrite the README, or check it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--take", type=Path, nargs="*", default=[], metavar="FILE")
    args = parser.parse_args()
    if args.take:
        print(f"{take(args.take)} rows were added to {RESULTS.relative_to(ROOT)}")
    text = README.read_text()
    rows = load()
    new = renewed(text, rows)
    if args.check and new != text:
        print("the README's tables are not those of tests/bench/results: make tables")
        return 1
    if not args.check:
        README.write_text(new)
    for layout in sorted(RESULTS.glob("*.md")):
        for line in outdated(layout.stem, rows):
            print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
