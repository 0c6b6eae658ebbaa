"""The README's tables of figures, made from the rows in ``tests/bench/results/``.

    python tests/bench/tables.py [--check]        (make tables)

``results/NAME.md`` is a table with figures' names in braces, which goes between the README's lines
``<!-- table: NAME -->`` and ``<!-- end table -->``; ``results/*.json`` are the rows (``rows.py``).
In braces stands a figure's name, after "@" the instruction set of the machine where there are rows
of several, and after ":" the number of decimals, as in ``{attention/int8@avx2:.1f}``. The last row
of a figure counts. ``--check`` changes nothing and fails if the README's tables are others.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
README, RESULTS = ROOT / "README.md", Path(__file__).parent / "results"
FIELD = re.compile(r"\{([^{}]+?)(?::(\.\d+f))?\}")
BLOCK = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end table -->)", re.DOTALL)

Rows = dict[str, dict[str, Any]]


def load(folder: Path = RESULTS) -> Rows:
    """The last row of every figure, by its name and by name@instruction set."""
    found: Rows = {}
    for file in sorted(folder.glob("*.json")):
        for row in json.loads(file.read_text()):
            found[row["figure"]] = found[f"{row['figure']}@{row['machine']['isa']}"] = row
    return found


def shown(match: re.Match[str], rows: Rows) -> str:
    """The value that a field in braces stands for."""
    name, form = match.group(1), match.group(2) or "g"
    if name not in rows:
        raise ValueError(f"no row has the figure {name!r}; see {RESULTS.relative_to(ROOT)}")
    value = rows[name]["value"]
    return " to ".join(format(v, form) for v in (value if isinstance(value, list) else [value]))


def table(name: str, rows: Rows, folder: Path = RESULTS) -> str:
    """A table with its figures filled in."""
    text = (folder / f"{name}.md").read_text()
    return FIELD.sub(partial(shown, rows=rows), text)


def renewed(text: str, rows: Rows, folder: Path = RESULTS) -> str:
    """The README's text with all its tables made anew."""
    return BLOCK.sub(lambda m: m.group(1) + table(m.group(2), rows, folder) + m.group(3), text)


def main() -> int:
    """Rewrite the README, or check it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    text = README.read_text()
    new = renewed(text, load())
    if args.check and new != text:
        print("the README's tables are not those of tests/bench/results: make tables")
        return 1
    if not args.check:
        README.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
