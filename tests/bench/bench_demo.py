"""How much faster the sample jobs are with their presets, and how near to the plain renders.

    python tests/bench/bench_demo.py [--out out/bench-demo] [--json FILE]

What ``make demo`` does: ``accel render samples/demo.yaml --compare``, which renders each job plain
too. A figure is the range over the jobs of a preset.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rows import ROOT, Figure, append, weights_of

from accel.pipelines.batch.sidecar import load_sidecar
from accel.pipelines.load import TINY

UNITS = {"speedup": "×", "psnr_db": "dB"}
NAMES = {"speedup": "speedup", "psnr_db": "psnr"}


def figures(sidecars: Iterable[Mapping[str, Any]]) -> Iterator[Figure]:
    """Lowest and highest of each figure by preset; one number where they are equal."""
    found: dict[tuple[str, str], list[float]] = {}
    for sidecar in sidecars:
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
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "bench-demo")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    jobs, out = str(ROOT / "samples" / "demo.yaml"), str(args.out)
    command = [sys.executable, "-m", "accel", "render", jobs, "--out", out]
    subprocess.run([*command, "--compare", "--overwrite"], check=True)
    found = list(figures(load_sidecar(path) for path in sorted(args.out.glob("*.json"))))
    for figure in found:
        print(figure.name, figure.value, figure.unit)
    if args.json:
        append(args.json, found, weights=weights_of(TINY))


if __name__ == "__main__":
    main()
