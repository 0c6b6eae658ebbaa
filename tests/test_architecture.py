"""The house stands as CONTRIBUTING.md says: imports go one way and in no circle, files are short,
names are used once, and every allocation names its dtype and device.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from helpers.house import ROOT, nodes, sources, tree

# Who may import whom: only rooms of lower floors, and of the same one what is listed beside it.
FLOORS = (
    ("kernels",),
    ("families",),
    ("core",),
    ("config",),
    ("plans",),
    ("attention", "linear", "slicing", "rehash"),
    ("reporting",),
    ("patching",),
    ("memory", "calibration"),
    ("planning",),
    ("pipelines",),
    ("cli",),
    ("__main__",),
)
BESIDE = {
    ("slicing", "attention"),  # the seam names the module that a sliced call comes from
    ("linear", "attention"),  # sites of one kind: rules by step, guard, record
}
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}

# Modules of one name, which are the same idea for another thing.
SAME_IDEA = {
    "__init__": "packages",
    "apply": "puts a technique on a model",
    "attention": "attention: the op, and its launchers",
    "linear": "8-bit linear layers: the op, and its launchers",
    "warp": "the noise warp: the op, and its launchers",
    "quantize": "row quantization: the op, and its launcher",
    "mochi": "the family",
    "render": "the command",
    "compare": "comparing videos: the command, and the tab",
    "calibrate": "calibration: the command",
    "memory": "memory: the command",
    "encoders": "encoders of prompts and images: what is known of them, and what they take",
}
MOST_LINES, MOST_KERNEL_LINES, MOST_ENTRIES = 300, 400, 16


def module_name(path: Path) -> str:
    """Dotted import name: ``kernels/cpu/native.py`` is accel.kernels.cpu.native."""
    name = path.relative_to(ROOT).as_posix().removesuffix(".py").replace("/", ".")
    name = name.removesuffix(".__init__")
    return name if name.split(".")[0] == "accel" else f"accel.{name}"


@cache
def modules() -> dict[str, Path]:
    return {module_name(path): path for path in sources()}


def imported(source: ast.Module, name: str) -> Iterator[str]:
    """Dotted names imported anywhere in ``source``, function bodies included. ``from a import b``
    gives ``a.b`` where that is a module, else ``a``.
    """
    package = name.split(".")[:-1]
    for node in ast.walk(source):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield full if full in modules() or base in ("", "accel") else base
        elif isinstance(node, ast.Call) and node.args:
            called, first = ast.unparse(node.func).rpartition(".")[2], node.args[0]
            if called in {"import_module", "__import__"} and isinstance(first, ast.Constant):
                yield str(first.value)


def room(name: str) -> str:
    """The wing or module of ``accel`` that a dotted name lies in."""
    return name.split(".")[1] if name.startswith("accel.") else ""


def forbidden(importer: str, name: str) -> bool:
    """Whether the module ``importer`` may not import ``name``."""
    top = name.split(".")[0]
    if top in ("kernels", "pipelines", "app", "samples", "tests"):
        return True
    here, there = room(importer), room(name)
    if not there or not here or here == there or there not in FLOOR:
        return False
    if (here, there) in BESIDE:
        return False
    return FLOOR[there] >= FLOOR[here]


def violations(importer: str, source: ast.Module) -> list[str]:
    names = [n for n in imported(source, importer) if forbidden(importer, n)]
    return [f"{importer} imports {name}" for name in names]


@pytest.mark.parametrize(
    ("importer", "source", "bad"),
    [
        ("accel.kernels.warp", "import accel.config", 1),
        ("accel.kernels.warp", "from accel.config import Rule", 1),
        ("accel.kernels.warp", "import torch\nfrom accel.kernels.dispatch import resolve", 0),
        ("accel.families.wan", "from accel.core.tree import leaves", 1),
        ("accel.slicing.blocks", "def f():\n    from accel.memory import fit", 1),
        ("accel.slicing.blocks", "from accel.attention import sdpa", 0),
        ("accel.attention.site", "from accel.slicing import blocks", 1),
        ("accel.rehash.apply", "from accel.calibration.steps import measure_steps", 1),
        ("accel.patching", "from accel import pipelines, plans", 1),
        ("accel.patching", "from .pipelines.job import Job", 1),
        ("accel.patching", "importlib.import_module('accel.pipelines.job')", 1),
        ("accel.pipelines.job", "from accel.cli import main", 1),
        ("accel.pipelines.job", "import pipelines.load, kernels", 2),
        ("accel.cli.ui", "from accel.pipelines.ui.page import run", 0),
        ("app", "from kernels import warp", 1),
    ],
)
def test_checker_finds(importer: str, source: str, bad: int) -> None:
    assert len(violations(importer, ast.parse(source))) == bad


def test_imports_go_one_way() -> None:
    assert {room(name) for name in modules() if room(name)} == set(FLOOR)
    others = [ROOT / "app.py", *(ROOT / "tests").rglob("*.py"), *(ROOT / "samples").glob("*.py")]
    found = [v for name, path in modules().items() for v in violations(name, tree(path))]
    for path in others:
        ours = imported(tree(path), "app")
        found += [
            f"{path} imports {n}" for n in ours if n.split(".")[0] in ("kernels", "pipelines")
        ]
    assert not found, "\n".join(found)


def test_the_reference_stands_alone() -> None:
    """Fast code never imports the specification, and it imports no fast code."""
    for name, path in modules().items():
        names = set(imported(tree(path), name))
        fast = {n for n in names if n.startswith(("accel.kernels.cpu", "accel.kernels.gpu"))}
        if name.startswith("accel.kernels.reference"):
            assert not fast, name
        if name.startswith(("accel.kernels.cpu", "accel.kernels.gpu")):
            assert not {n for n in names if n.startswith("accel.kernels.reference")}, name


@pytest.mark.slow
def test_no_circle_of_imports() -> None:
    """Imports in functions and for type checks count too."""
    edges = {
        name: {n for n in imported(tree(path), name) if n in modules() and n != "accel"}
        for name, path in modules().items()
    }
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name not in done:
            for other in sorted(edges[name]):
                visit(other, (*way, name))
            done.add(name)

    for name in edges:
        visit(name, ())


def test_files_are_short() -> None:
    code = [*sources(), *(ROOT / "kernels" / "csrc").iterdir(), ROOT / "app.py"]
    for path in code:
        kernel = path.is_relative_to(ROOT / "kernels")
        lines = len(path.read_text().splitlines())
        assert lines <= (MOST_KERNEL_LINES if kernel else MOST_LINES), f"{path}: {lines} lines"


def test_names_are_used_once() -> None:
    counts = Counter(path.stem for path in sources())
    assert not {name for name, n in counts.items() if n > 1} - set(SAME_IDEA)
    assert all(counts[name] for name in SAME_IDEA)


def test_few_rooms() -> None:
    rooms = {p.stem for p in (ROOT / "accel").iterdir() if not p.name.startswith(("_", "py.typed"))}
    assert len(rooms) <= MOST_ENTRIES, sorted(rooms)


NEW = (
    "empty", "zeros", "ones", "full", "arange", "tensor", "eye", "rand", "randn", "randint",
    "linspace", "logspace", "randperm", "scalar_tensor", "empty_permuted", "empty_strided",
)  # fmt: skip


def test_allocations_name_dtype_and_device() -> None:
    """A program may set a default dtype or device of its own, and nothing of ours may follow it."""
    loose = []
    for path in sources():
        for node in nodes(path):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in NEW
                and ast.unparse(node.func) == f"torch.{node.func.attr}"
                and not {"dtype", "device"} <= {keyword.arg for keyword in node.keywords}
            ):
                loose.append(f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)}")
    assert not loose
