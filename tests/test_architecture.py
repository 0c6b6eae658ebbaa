"""The house stands as CONTRIBUTING.md says: imports go one way and in no circle, files are short,
names are used once, private names and model classes have one place, ``import accel`` stays light,
and our folder ``kernels/`` never hides Hugging Face's package of that name.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import diffusers
import pytest
import transformers

import accel

ROOT = Path(__file__).resolve().parents[1]
LINKS = (ROOT / "accel" / "kernels", ROOT / "accel" / "pipelines")
HEAVY = ("triton", "gradio", "ray", "diffusers", "torch", "numpy")

# Who may import whom: only rooms of lower floors, and of the same one what is listed beside it.
FLOORS = (
    ("kernels",),
    ("families",),
    ("core",),
    ("config",),
    ("plans",),
    ("attention", "slicing", "rehash"),
    ("reporting",),
    ("patching",),
    ("memory", "calibration"),
    ("planning",),
    ("pipelines",),
    ("cli",),
    ("__main__",),
)
BESIDE = {("slicing", "attention")}  # the seam names the module that a sliced call comes from
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}

# Modules of one name, which are the same idea for another thing.
SAME_IDEA = {
    "__init__": "packages",
    "apply": "puts a technique on a model",
    "attention": "attention: the op, and its launchers",
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


def sources() -> list[Path]:
    found = [p for top in ("accel", "kernels", "pipelines") for p in (ROOT / top).rglob("*.py")]
    return sorted(p for p in found if not any(p.is_relative_to(link) for link in LINKS))


def module_name(path: Path) -> str:
    """Dotted import name: ``kernels/cpu/native.py`` is accel.kernels.cpu.native."""
    name = path.relative_to(ROOT).as_posix().removesuffix(".py").replace("/", ".")
    name = name.removesuffix(".__init__")
    return name if name.split(".")[0] == "accel" else f"accel.{name}"


@cache
def modules() -> dict[str, Path]:
    return {module_name(path): path for path in sources()}


def imported(source: str, name: str) -> Iterator[str]:
    """Dotted names imported anywhere in ``source``, function bodies included. ``from a import b``
    gives ``a.b`` where that is a module, else ``a``.
    """
    package = name.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
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


def violations(importer: str, source: str) -> list[str]:
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
    assert len(violations(importer, source)) == bad


def test_imports_go_one_way() -> None:
    assert {room(name) for name in modules() if room(name)} == set(FLOOR)
    others = [ROOT / "app.py", *(ROOT / "tests").rglob("*.py"), *(ROOT / "samples").glob("*.py")]
    found = [v for name, path in modules().items() for v in violations(name, path.read_text())]
    for path in others:
        ours = imported(path.read_text(), "app")
        found += [
            f"{path} imports {n}" for n in ours if n.split(".")[0] in ("kernels", "pipelines")
        ]
    assert not found, "\n".join(found)


def test_the_reference_stands_alone() -> None:
    """Fast code never imports the specification, and it imports no fast code."""
    for name, path in modules().items():
        names = set(imported(path.read_text(), name))
        fast = {n for n in names if n.startswith(("accel.kernels.cpu", "accel.kernels.gpu"))}
        if name.startswith("accel.kernels.reference"):
            assert not fast, name
        if name.startswith(("accel.kernels.cpu", "accel.kernels.gpu")):
            assert not {n for n in names if n.startswith("accel.kernels.reference")}, name


@pytest.mark.slow
def test_no_circle_of_imports() -> None:
    """Imports in functions and for type checks count too."""
    edges = {
        name: {n for n in imported(path.read_text(), name) if n in modules() and n != "accel"}
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


# ------------------------------------------------------------------------ names of other packages


@cache
def model_classes() -> frozenset[str]:
    """Classes of diffusers' and transformers' models and pipelines."""
    found = set()
    for package, folders in ((diffusers, ("models", "pipelines")), (transformers, ("models",))):
        for folder in folders:
            for path in (Path(package.__file__).parent / folder).rglob("*.py"):
                lines = path.read_text().splitlines()
                found |= {
                    line[6:].split("(")[0].split(":")[0].strip()
                    for line in lines
                    if line.startswith("class ")
                }
    return frozenset(found)


def constants(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


BRIDGE = ROOT / "accel" / "core" / "diffusers_bridge.py"


@pytest.mark.slow
def test_model_classes_are_named_in_families_only() -> None:
    assert "WanTransformer3DModel" in model_classes() and "T5EncoderModel" in model_classes()
    for path in sources():
        if path.parent.name != "families" and path != BRIDGE:
            named = set(constants(path)) & model_classes()
            assert not named, f"{path} names {named}"


def private_names(path: Path) -> set[str]:
    """Private attributes that are read of something else than ``self`` or ``cls``, private names
    imported from other packages, and private names in text that may be an attribute's.
    """
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {part for part in node.module.split(".") if part.startswith("_")}
            if not node.module.startswith("accel"):
                found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return {name for name in found if name.startswith("_") and not name.startswith("__")}


@cache
def names_of_others() -> frozenset[str]:
    """Private names that diffusers and accelerate define or set."""
    import accelerate

    found = set()
    for package in (diffusers, accelerate):
        for path in Path(package.__file__).parent.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                    found.add(node.attr)
                elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                    found.add(node.name)
    return frozenset(n for n in found if n.startswith("_") and not n.startswith("__"))


@pytest.mark.slow
def test_private_names_of_others_stand_in_the_bridge_only() -> None:
    assert {"_diffusers_hook", "_hf_hook", "_execution_device"} <= names_of_others()
    ours = {
        name
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text()))
        for name in _defined(node)
    }
    torchs = {
        "_parameters", "_modules", "_forward_hooks", "_orig_mod", "_compiled_call_impl", "_schema",
    }  # fmt: skip
    for path in sources():
        if path != BRIDGE:
            theirs = (private_names(path) & names_of_others()) - ours - torchs
            assert not theirs, f"{path} uses {theirs}"


def _defined(node: ast.AST) -> Iterator[str]:
    """Names that a node of our own code defines or sets on ``self``."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        yield node.name
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        if isinstance(node.value, ast.Name) and node.value.id == "self":
            yield node.attr
    elif isinstance(node, (ast.Name, ast.arg)):
        yield node.id if isinstance(node, ast.Name) else node.arg


# --------------------------------------------------------------------------------------- importing


def python(code: str, *args: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *args], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


LIGHT = """
import json, sys
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


@pytest.mark.slow
def test_patching_brings_in_no_optional_package() -> None:
    code = (
        "import sys, accel.patching, accel.plans, accel.planning\n"
        "print(sorted({'triton', 'gradio', 'ray', 'cv2', 'yaml', 'av'} & set(sys.modules)))"
    )
    assert python(code).strip() == "[]"


@pytest.mark.parametrize("folder", ["kernels", "pipelines", "tests/kernels", "tests/pipelines"])
def test_folder_is_no_package(folder: str) -> None:
    """pytest puts ``tests/`` on the path too, so the same holds for the folders below it."""
    assert not (ROOT / folder / "__init__.py").exists()


def test_kernels_is_hugging_faces() -> None:
    code = "import kernels; print(kernels.get_kernel.__module__, kernels.__file__, sep='\\n')"
    module, file = python(code).splitlines()
    assert module.split(".")[0] == "kernels"
    assert not Path(file).is_relative_to(ROOT / "kernels")


def test_links_lead_to_the_folders_beside() -> None:
    """So that type checkers and editors find ``accel.kernels`` on plain paths."""
    for link in LINKS:
        assert link.is_symlink() and link.resolve() == ROOT / link.name


def test_public_names() -> None:
    """Each is documented, and what a type checker sees is what is loaded."""
    assert len(accel.__all__) == len(set(accel.__all__))
    for name in accel.__all__:
        assert getattr(accel, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'ptach'"):
        _ = accel.ptach
    tree = ast.parse((ROOT / "accel/__init__.py").read_text())
    typed = {
        alias.asname: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("accel")
        for alias in node.names
    }
    assert set(typed) == set(accel.__all__)
    for name, module in typed.items():
        assert accel._PUBLIC[name] in (module, f"{module}.{name}")


NEW = (
    "empty", "zeros", "ones", "full", "arange", "tensor", "eye", "rand", "randn", "randint",
    "linspace", "logspace", "randperm", "scalar_tensor", "empty_permuted", "empty_strided",
)  # fmt: skip


def test_allocations_name_dtype_and_device() -> None:
    """A program may set a default dtype or device of its own, and nothing of ours may follow it."""
    loose = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and ast.unparse(node.func) in [f"torch.{name}" for name in NEW]
                and not {"dtype", "device"} <= {keyword.arg for keyword in node.keywords}
            ):
                loose.append(f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)}")
    assert not loose
