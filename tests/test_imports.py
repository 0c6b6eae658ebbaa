"""Imports go one way (app → pipelines → accel → kernels), ``import accel`` stays light, and our
folder ``kernels/`` never hides Hugging Face's package of that name.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import accel

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("accel", "kernels", "pipelines")
SOURCES = sorted(
    p.relative_to(ROOT).as_posix() for name in PACKAGES for p in ROOT.glob(f"{name}/**/*.py")
)
OTHERS = sorted(
    p.relative_to(ROOT).as_posix() for g in ("*.py", "tests/**/*.py") for p in ROOT.glob(g)
)
ENTRY_POINT = "accel/cli.py"
HEAVY = ("triton", "gradio", "ray", "diffusers")


def module_name(path: str) -> str:
    """Dotted import name of a source path: ``kernels/cpu/native.py`` → accel.kernels.cpu.native."""
    name = path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    return name if name.split(".")[0] == "accel" else f"accel.{name}"


REFERENCES = tuple(module_name(p) for p in SOURCES if p.startswith("kernels/reference"))


def imported(path: str, source: str) -> Iterator[str]:
    """Absolute dotted names imported anywhere in ``source``, function bodies included.

    ``from a import b`` gives ``a.b``: b may be a module, and a prefix test is right either way.
    """
    package = module_name(path).split(".")
    if not path.endswith("__init__.py"):
        package.pop()
    for node in ast.walk(ast.parse(source, path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            called = ast.unparse(node.func).rpartition(".")[2]
            name = node.args[0]
            if called in {"import_module", "__import__"} and isinstance(name, ast.Constant):
                yield str(name.value)


def below(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def forbidden(path: str, name: str) -> bool:
    """Whether the file at ``path`` (relative to the root) may not import ``name``."""
    if below(name, "kernels", "pipelines"):
        return True
    if not path.startswith(tuple(f"{package}/" for package in PACKAGES)):
        return False
    if below(name, "app", "samples", "tests", "accel.cli"):
        return True
    if below(name, "accel.app"):
        return path != ENTRY_POINT
    if path.startswith(("kernels/cpu/", "kernels/gpu/")) and below(name, *REFERENCES):
        return True
    if module_name(path) in REFERENCES and below(name, "accel.kernels.cpu", "accel.kernels.gpu"):
        return True
    if path.startswith("kernels/"):
        return below(name, "accel") and not below(name, "accel.kernels")
    if path.startswith("accel/") and path != ENTRY_POINT:
        return below(name, "accel.pipelines")
    return False


def violations(path: str, source: str) -> list[str]:
    return [f"{path} imports {name}" for name in imported(path, source) if forbidden(path, name)]


@pytest.mark.parametrize(
    ("path", "source", "bad"),
    [
        ("kernels/warp.py", "import accel", 1),
        ("kernels/warp.py", "from accel.config import Rule", 1),
        ("kernels/warp.py", "import torch\nfrom accel.kernels.dispatch import resolve", 0),
        ("kernels/reference.py", "def f():\n    from accel.kernels import cpu", 1),
        ("kernels/cpu/quantize.py", "from .. import reference", 1),
        ("kernels/gpu/quantize.py", "import accel.kernels.reference as r", 1),
        ("kernels/cpu/warp.py", "from accel.kernels import reference_warp", 1),
        ("accel/patch.py", "from accel import pipelines, plan", 1),
        ("accel/patch.py", "from .pipelines.job import Job", 1),
        ("accel/patch.py", "importlib.import_module('accel.pipelines.job')", 1),
        ("accel/patch.py", "from accel import cli", 1),
        ("accel/cli.py", "from accel.pipelines.job import Job", 0),
        ("pipelines/job.py", "import app", 1),
        ("pipelines/ui/view.py", "from accel import app", 1),
        ("accel/cli.py", "from accel.app import run", 0),
        ("pipelines/job.py", "from accel.kernels import warp\nfrom accel.pipelines import load", 0),
        ("pipelines/job.py", "import pipelines.load, kernels", 2),
        ("app.py", "from accel.pipelines.job import Job\nfrom kernels import warp", 1),
    ],
)
def test_checker_finds(path: str, source: str, bad: int) -> None:
    assert len(violations(path, source)) == bad


def test_imports_go_one_way() -> None:
    assert len(SOURCES) > 10 and ENTRY_POINT in SOURCES and "kernels/reference.py" in SOURCES
    found = [
        v for path in SOURCES + OTHERS for v in violations(path, (ROOT / path).read_text("utf-8"))
    ]
    assert not found, "\n".join(found)


def test_entry_point_is_the_exception() -> None:
    """The exemption goes when it is no longer needed."""
    names = imported(ENTRY_POINT, (ROOT / ENTRY_POINT).read_text("utf-8"))
    assert any(below(name, "accel.pipelines") for name in names)


def python(code: str, *args: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *args], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


LIGHT = """
import json, sys
import torch
before = set(sys.modules)
sys.path.insert(0, sys.argv[1])
import accel
print(accel.__file__)
print(json.dumps(sorted({name.split('.')[0] for name in set(sys.modules) - before})))
"""


def test_import_is_light(tmp_path: Path) -> None:
    """Empty stand-ins make a guarded ``try: import triton`` show even where it is not installed."""
    for name in HEAVY:
        (tmp_path / f"{name}.py").touch()
    file, loaded = python(LIGHT, str(tmp_path)).splitlines()
    assert Path(file) == ROOT / "accel/__init__.py"
    assert not set(json.loads(loaded)) & set(HEAVY)


@pytest.mark.parametrize("folder", ["kernels", "pipelines", "tests/kernels", "tests/pipelines"])
def test_folder_is_no_package(folder: str) -> None:
    """pytest puts ``tests/`` on the path too, so the same holds for the folders below it."""
    assert not (ROOT / folder / "__init__.py").exists()


def test_kernels_is_hugging_faces() -> None:
    code = "import kernels; print(kernels.get_kernel.__module__, kernels.__file__, sep='\\n')"
    module, file = python(code).splitlines()
    assert module.split(".")[0] == "kernels"
    assert not Path(file).is_relative_to(ROOT / "kernels")


def test_public_names() -> None:
    assert len(accel.__all__) == len(set(accel.__all__)) <= 12
    missing = [name for name in accel.__all__ if not hasattr(accel, name)]
    assert not missing
