"""Dry run of a job file with 10,000 jobs: seconds, and peak memory of its largest process.

    python tests/bench/bench_dry_run.py [--jobs 10000]

First the embedded model at its own size, whose memory is on file; then at a width that has to be
simulated, in a helper process that loads diffusers.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

JOB = """\
  - prompt: a red circle number {n} on a striped blue background that is quite long
    seed: {n}
    width: {width}
    motion: {{camera: {{pan: [1.0, {n}]}}}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--width", type=int, help="only this one")
    args = parser.parse_args()
    for width in [args.width] if args.width else [64, 72]:
        command = [sys.executable, __file__, "--jobs", str(args.jobs), "--width", str(width)]
        if args.width:
            run(args.jobs, width)
        else:
            subprocess.run(command, check=True)  # each in its own, as the peak is of all children


def run(jobs: int, width: int) -> None:
    """One dry run; prints its figures and what it predicted."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "jobs.yaml"
        text = "".join(JOB.format(n=n, width=width) for n in range(jobs))
        path.write_text(f"defaults: {{steps: 20}}\njobs:\n{text}")
        command = [sys.executable, "-m", "accel", "render", str(path), "--dry-run"]
        start = time.perf_counter()
        done = subprocess.run([*command, "--out", folder], capture_output=True, text=True)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        assert done.returncode == 0 and len(done.stdout.splitlines()) == jobs, done.stderr
        assert "peak memory ~" in done.stderr, done.stderr
        print(f"{jobs} jobs {width} pixels wide: {seconds:.1f} s, {peak:.0f} MiB")
        print(f"  {done.stderr.strip()}")


if __name__ == "__main__":
    main()
