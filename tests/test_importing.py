"""What an import brings in: ``import accel`` stays light, its names are documented, and our folder
``kernels/`` never hides Hugging Face's package of that name.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.house import LINKS, ROOT

import accel

HEAVY = ("triton", "gradio", "ray", "diffusers", "torch", "numpy")


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
