"""Every way of installing works, from any folder: a wheel, an editable install, a bare checkout,
and a wheel built without a compiler.

Apart from the editable case the probes run outside this environment: the base interpreter without
``site``, and a folder of links to the installed dependencies but not to our own install.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Sequence
from importlib.metadata import metadata
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import accel

ROOT = Path(__file__).resolve().parents[1]
TINY = "samples/tiny-wan"
BORROWED_NOT = ("accel_diffusion", "_editable_", "__editable__", "__pycache__")

PROBE = """
import importlib, json, pathlib
import kernels
import torch
import accel, accel.kernels.attention, accel.pipelines.job
from accel.kernels.cpu.native import library
from accel.kernels.dispatch import QUANTIZE, resolve
from accel.kernels.quantize import quantize_rows
x = torch.linspace(-3, 2, 24).view(4, 6)
codes, scale = quantize_rows(x)
native = library()
foreign = []
for name in ("accel", "tests", "samples", "app", "pyproject", "docs"):
    try:
        foreign.append(importlib.import_module(f"accel.{name}").__name__)
    except ImportError:
        pass
modules = (accel, accel.kernels.attention, accel.pipelines.job)
print(json.dumps({
    "files": [str(pathlib.Path(m.__file__).resolve()) for m in modules], "foreign": foreign,
    "isa": native.isa, "reason": native.reason, "library": native.lib and native.lib._name,
    "impl": resolve(QUANTIZE, "auto", x.device),
    "exact": bool(((codes * scale - x).abs() <= 0.501 * scale).all()),
    "get_kernel": [kernels.get_kernel.__module__, kernels.__file__],
}))
"""


class Install(NamedTuple):
    """A wheel, the folder it was installed to, and the copied checkout it was built from."""

    wheel: Path
    target: Path
    checkout: Path


def execute(command: Sequence[str], cwd: Path, **variables: str) -> str:
    """Run ``command`` with no Python settings inherited; its output, or the test fails with it."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        command, cwd=cwd, env=env | variables, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def isolated(code: str, cwd: Path, *path: Path) -> str:
    """Run ``code`` outside this environment, with nothing but ``path`` and the standard library."""
    base = sys._base_executable  # type: ignore[attr-defined]
    return execute([base, "-S", "-c", code], cwd, PYTHONPATH=os.pathsep.join(map(str, path)))


def copy_checkout(target: Path) -> Path:
    """Copy what git tracks or would add."""
    names = execute(["git", "ls-files", "-coz", "--exclude-standard"], ROOT).split("\0")
    for name in filter(None, names):
        file = ROOT / name
        if file.is_file() or file.is_symlink():  # tracked but deleted is listed as well
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, target / name, follow_symlinks=False)
    return target


def install(folder: Path, **variables: str) -> Install:
    """Build a wheel from a fresh copy (no CMake cache) below ``folder`` and install it there."""
    checkout, target = copy_checkout(folder / "checkout"), folder / "site"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    execute([*pip, "wheel", ".", "--no-deps", "-w", str(folder)], checkout, **variables)
    (wheel,) = folder.glob("*.whl")
    options = ["--no-deps", "--no-index", "--target", str(target)]
    execute([*pip, "install", *options, str(wheel)], folder)
    return Install(wheel, target, checkout)


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Install:
    return install(tmp_path_factory.mktemp("wheel").resolve())


@pytest.fixture(scope="session")
def borrowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Links to everything installed beside us, without anything of our own install."""
    folder = tmp_path_factory.mktemp("borrowed").resolve()
    for site in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(site).iterdir():
            ours = entry.name == "accel" or entry.name.startswith(BORROWED_NOT)
            if not ours and entry.suffix != ".pth":
                (folder / entry.name).symlink_to(entry)
    return folder


def verify(output: str, accel: Path, kernels: Path, pipelines: Path) -> dict[str, Any]:
    """Check where the modules came from, the numbers, and whose ``kernels`` was found."""
    seen: dict[str, Any] = json.loads(output.splitlines()[-1])
    expected = [accel / "__init__.py", kernels / "attention.py", pipelines / "job.py"]
    assert [Path(file) for file in seen["files"]] == expected
    assert seen["exact"] and not seen["foreign"]
    module, file = seen["get_kernel"]
    assert module.split(".")[0] == "kernels"
    assert not Path(file).is_relative_to(kernels)
    assert seen["impl"] == ("reference" if seen["isa"] == "none" else "cpu")
    return seen


def verify_root(output: str, root: Path) -> dict[str, Any]:
    return verify(output, root / "accel", root / "kernels", root / "pipelines")


def verify_target(output: str, target: Path) -> dict[str, Any]:
    package = target / "accel"
    return verify(output, package, package / "kernels", package / "pipelines")


def test_borrowed_has_no_accel(borrowed: Path, tmp_path: Path) -> None:
    """Otherwise the other tests would see this environment's own install."""
    code = (
        "from importlib.util import find_spec; print(find_spec('accel'), bool(find_spec('torch')))"
    )
    assert isolated(code, tmp_path, borrowed).split() == ["None", "True"]


@pytest.mark.slow
@pytest.mark.proof
def test_wheel_from_elsewhere(installed: Install, borrowed: Path, tmp_path: Path) -> None:
    output = isolated(PROBE, tmp_path, installed.target, borrowed)
    seen = verify_target(output, installed.target)
    assert seen["isa"] != "none", seen["reason"]
    assert Path(seen["library"]).is_relative_to(installed.target)


@pytest.mark.slow
@pytest.mark.proof
def test_wheel_from_checkout(installed: Install, borrowed: Path) -> None:
    """The checkout's ``accel`` shadows the installed one, and takes its native library."""
    output = isolated(PROBE, installed.checkout, installed.target, borrowed)
    seen = verify_root(output, installed.checkout)
    assert seen["isa"] != "none", seen["reason"]
    assert Path(seen["library"]).is_relative_to(installed.target)


@pytest.mark.slow
@pytest.mark.proof
def test_wheel_content(installed: Install) -> None:
    names = zipfile.ZipFile(installed.wheel).namelist()
    assert all(name.startswith(("accel/", "accel_diffusion-")) for name in names)
    assert not [name for name in names if "csrc" in name or "__pycache__" in name]
    tracked = [p.relative_to(installed.checkout) for p in installed.checkout.glob("*/**/*.py")]
    for path in tracked:
        if path.parts[0] in {"kernels", "pipelines"}:
            assert f"accel/{path.as_posix()}" in names
        elif path.parts[0] == "accel":
            assert path.as_posix() in names
    assert not {name.split("/")[1] for name in names if name.startswith("accel/")} & {
        "accel", "app.py", "samples", "tests",
    }  # fmt: skip
    for path in (installed.checkout / "pipelines" / "ui" / "static").iterdir():
        assert f"accel/pipelines/ui/static/{path.name}" in names


@pytest.mark.slow
@pytest.mark.proof
def test_wheel_has_tiny_model(installed: Install) -> None:
    names, inside = zipfile.ZipFile(installed.wheel).namelist(), "accel/pipelines/tiny-wan"
    assert f"{inside}/model_index.json" in names
    for path in (installed.checkout / TINY).rglob("*"):
        if path.is_file():
            assert f"{inside}/{path.relative_to(installed.checkout / TINY).as_posix()}" in names


@pytest.mark.slow
@pytest.mark.proof
def test_a_wheel_of_the_source_archive_is_whole(installed: Install, tmp_path: Path) -> None:
    """The archive keeps the links, and what is built of it is what is built of the checkout."""
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path)]
    execute([*build, "--sdist", "."], installed.checkout)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        links = {m.name.partition("/")[2]: m.linkname for m in packed.getmembers() if m.issym()}
        packed.extractall(tmp_path, filter="data")
    assert links == {"accel/kernels": "../kernels", "accel/pipelines": "../pipelines"}
    unpacked = tmp_path / archive.name.removesuffix(".tar.gz")
    execute([*build, "--wheel", "."], unpacked)
    (wheel,) = tmp_path.glob("*.whl")
    names = (set(zipfile.ZipFile(file).namelist()) for file in (wheel, installed.wheel))
    assert next(names) == next(names)


@pytest.mark.slow
@pytest.mark.proof
def test_one_wheel_serves_every_python(installed: Install) -> None:
    """The native library knows nothing of Python, so no interpreter is named in the tag."""
    name, version, python, abi, platform = installed.wheel.stem.split("-")
    assert (name, version, python, abi) == ("accel_diffusion", accel.__version__, "py3", "none")
    assert platform.startswith("linux_")


def test_version_stands_in_one_place() -> None:
    known = metadata("accel-diffusion")
    assert known["Version"] == accel.__version__
    assert known["License-Expression"] == "Apache-2.0" and known["Author"] == "accel developers"
    assert accel.__version__ not in (ROOT / "pyproject.toml").read_text()
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert f"\n## {accel.__version__}" in changes


@pytest.mark.slow
@pytest.mark.parametrize("where", ["elsewhere", "root"])
def test_editable(where: str, tmp_path: Path) -> None:
    """This environment, which ``make test`` installs editable."""
    output = execute([sys.executable, "-c", PROBE], ROOT if where == "root" else tmp_path)
    verify_root(output, ROOT)


def test_native_library_is_present() -> None:
    """Without this a broken compiler passes unseen: the install succeeds without the library."""
    if not (shutil.which("c++") or shutil.which("g++")):
        pytest.skip("no C++ compiler (c++ or g++) on the PATH")
    from accel.kernels.cpu.native import library

    assert library().isa != "none", library().reason


@pytest.mark.slow
def test_bare_checkout(borrowed: Path, tmp_path: Path) -> None:
    root = copy_checkout(tmp_path.resolve())
    seen = verify_root(isolated(PROBE, root, borrowed), root)
    assert seen["isa"] == "none"
    assert "bare checkout" in seen["reason"]


@pytest.mark.slow
@pytest.mark.proof
def test_no_compiler(borrowed: Path, tmp_path: Path) -> None:
    """The build falls back to a wheel without the library, and the package says why."""
    false = shutil.which("false")
    assert false, "needs the command false"
    wheel, target, _ = install(tmp_path.resolve(), CC=false, CXX=false)
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if "accel_cpu" in name]
    seen = verify_target(isolated(PROBE, tmp_path, target, borrowed), target)
    assert seen["isa"] == "none"
    assert "without a C++ compiler" in seen["reason"]
