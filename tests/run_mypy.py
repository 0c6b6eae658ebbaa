"""Runs mypy (strict) on the installed package: ``make lint``.

mypy does not follow the mapping of kernels/, pipelines/ and app.py into accel, so they are laid out
as they are installed, in a temporary folder of links.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Exit code of mypy."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "accel"
        package.mkdir()
        for entry in (ROOT / "accel").iterdir():
            (package / entry.name).symlink_to(entry)
        for name in ("kernels", "pipelines", "app.py"):
            (package / name).symlink_to(ROOT / name)
        command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
        cache = ["--cache-dir", str(ROOT / "build" / "mypy"), "--namespace-packages"]
        return subprocess.call([*command, *cache, "-p", "accel"], cwd=folder)


if __name__ == "__main__":
    sys.exit(main())
