"""Every name of ours that a text mentions can be imported: README, docs, messages, docstrings."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import import_module

import pytest
from helpers.house import ROOT, nodes

PAGES = ("README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")))
NAME = re.compile(r"(?<![\w./-])accel(?:\.[A-Za-z_]\w*)+")
FILE = re.compile(r"(?<![\w./-])((?:accel|kernels|pipelines|samples|tests|docs)/[\w./-]*\w)")


def texts() -> Iterator[tuple[str, str]]:
    """Pages, and the text constants (messages and docstrings) of all sources."""
    for page in PAGES:
        yield page, (ROOT / page).read_text()
    for folder in ("accel", "kernels", "pipelines", "samples", "tests/bench"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in nodes(path):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield f"{path}:{node.lineno}", node.value


def resolve(name: str) -> object:
    """The object of a dotted name. Raises AttributeError or ImportError."""
    first, *rest = name.split(".")
    found: object = import_module(first)
    for i, part in enumerate(rest, 1):
        try:
            found = getattr(found, part)
        except AttributeError:
            found = import_module(".".join([first, *rest[:i]]))
    return found


def test_names_in_text_can_be_imported() -> None:
    wrong, seen = [], set()
    for where, text in texts():
        for name in NAME.findall(text):
            seen.add(name)
            try:
                resolve(name)
            except (AttributeError, ImportError):
                wrong.append(f"{where}: {name}")
    assert {"accel.patch", "accel.measure_steps"} <= seen and not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", ["accel.rehash.measure.measure", "accel.ptach", "accel.core.no"])
def test_a_name_that_is_not_there_is_found(name: str) -> None:
    with pytest.raises((AttributeError, ImportError)):
        resolve(name)


def test_files_in_text_exist() -> None:
    wrong = []
    for where, text in texts():
        for name in FILE.findall(text):
            path = ROOT / name.rstrip(".")
            if "*" not in name and not path.exists() and not path.with_suffix(".py").exists():
                wrong.append(f"{where}: {name}")
    assert not wrong, "\n".join(wrong)
