"""How much faster the sample jobs are with their presets, and how near to the plain renders.

    python tests/bench/bench_demo.py [--json FILE]

What ``make demo`` does: ``accel render samples/demo.yaml --compare``, which renders each job plain
too. A figure is the range over the jobs of a preset.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rows import ROOT, Figure, append, weights_of

from accel.pipelines.batch.sidecar import load_sidecar
from accel.pipelines.load import TINY

UNITS = {"speedup": "×", "psnr_db": "dB"}
NAMES = {"speedup": "speedup", "psnr_db": "psnr"}


def figures(sidecars: Iterable[Mapping[str, Any]]) -> Iterator[Figure]:
    """Lowest and highest of each figure by preset; one number where they are equal.

    Sidecars of references, which are compared with nothing, do not count.
    """
    found: dict[tuple[str, str], list[float]] = {}
    for sidecar in (s for s in sidecars if s["comparison"]):
        for key in NAMES:
            preset = str(sidecar["job"]["preset"])
            found.setdefault((preset, key), []).append(sidecar["comparison"][key])
    for (preset, key), values in found.items():
        low, high = min(values), max(values)
        value = low if low == high else [low, high]
        yield Figure(f"demo/{preset}/{NAMES[key]}", value, UNITS[key])


def main() -> None:
    """Render, print, optionally write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "accel", "render", str(ROOT / "samples" / "demo.yaml")]
        subprocess.run([*command, "--out", out, "--compare"], check=True)
        found = list(figures(load_sidecar(path) for path in sorted(Path(out).glob("*.json"))))
    for figure in found:
        print(figure.name, figure.value, figure.unit)
    if args.json:
        append(args.json, found, weights=weights_of(TINY))


if __name__ == "__main__":
    main()
