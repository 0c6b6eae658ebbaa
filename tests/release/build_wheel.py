"""Build one wheel from a source archive, repair it, and try it in an environment of its own.

    python tests/release/build_wheel.py [DIST] [--no-try]        (make wheel)

Both land in DIST. The repaired wheel is for every Linux with a C library as old as the oldest the
native library can do with; where auditwheel cannot repair, the wheel stays one for this machine and
the reason is printed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROBE = Path(__file__).with_name("probe.py")


def run(command: Sequence[str | Path], cwd: Path) -> None:
    """Run a command without this environment's Python settings; fail if it fails."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", "")])
    subprocess.run(command, cwd=cwd, env=env, check=True)


def build(folder: Path) -> tuple[Path, Path]:
    """Build the source archive of the checkout, and the wheel from that archive."""
    run([sys.executable, "-m", "build", "--outdir", folder, ROOT], ROOT)
    (wheel,), (archive,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, archive


def repair(wheel: Path, dist: Path) -> Path:
    """Put the wheel with a manylinux tag into ``dist``, or the wheel as it is, with the reason."""
    command = [sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", dist, wheel]
    before = set(dist.glob("*.whl"))
    try:
        run(command, wheel.parent)
    except subprocess.CalledProcessError:
        print("auditwheel could not repair the wheel (above): it is for this machine alone")
        return Path(shutil.copy(wheel, dist))
    (repaired,) = set(dist.glob("*.whl")) - before
    return repaired


def check(wheel: Path, folder: Path) -> None:
    """Install the wheel with its dependencies into a new environment, and probe it from there."""
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    run([*pip, "-c", ROOT / "constraints.txt", wheel, "kernels"], folder)
    run([python, PROBE], folder)


def main() -> None:
    """Build, repair, try."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dist", type=Path, nargs="?", default=ROOT / "dist")
    parser.add_argument("--no-try", action="store_true", help="only build and repair")
    args = parser.parse_args()
    args.dist.mkdir(parents=True, exist_ok=True)
    dist = args.dist.resolve()
    for old in (*dist.glob("accel_diffusion-*.whl"), *dist.glob("accel_diffusion-*.tar.gz")):
        old.unlink()
    with tempfile.TemporaryDirectory() as name:
        wheel, archive = build(Path(name))
        shutil.copy(archive, dist)
        wheel = repair(wheel, dist)
        if not args.no_try:
            check(wheel, Path(name))
    print(f"{wheel.relative_to(ROOT) if wheel.is_relative_to(ROOT) else wheel}")


if __name__ == "__main__":
    main()
