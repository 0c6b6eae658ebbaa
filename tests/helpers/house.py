"""Where the code lies, for tests that read it."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LINKS = (ROOT / "accel" / "kernels", ROOT / "accel" / "pipelines")


def sources() -> list[Path]:
    """Return every module of the product, by its place beside ``accel/``."""
    found = [p for top in ("accel", "kernels", "pipelines") for p in (ROOT / top).rglob("*.py")]
    return sorted(p for p in found if not any(p.is_relative_to(link) for link in LINKS))


@cache
def tree(path: Path) -> ast.Module:
    """Return the syntax tree of a module, parsed once for all tests of a process."""
    return ast.parse(path.read_text())


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """Return all nodes of that tree."""
    return tuple(ast.walk(tree(path)))
