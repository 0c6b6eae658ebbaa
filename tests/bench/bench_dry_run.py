"""Dry run of a job file with 10,000 jobs: seconds and peak memory.

python tests/bench/bench_dry_run.py [--jobs 10000]
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
    width: 64
    motion: {{camera: {{pan: [1.0, {n}]}}}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=10_000)
    jobs = parser.parse_args().jobs
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "jobs.yaml"
        text = "".join(JOB.format(n=n) for n in range(jobs))
        path.write_text(f"defaults: {{steps: 20}}\njobs:\n{text}")
        command = [sys.executable, "-m", "accel.cli", "render", str(path), "--dry-run"]
        start = time.perf_counter()
        done = subprocess.run([*command, "--out", folder], capture_output=True, text=True)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        assert done.returncode == 0 and len(done.stdout.splitlines()) == jobs, done.stderr
        print(f"{jobs} jobs: {seconds:.1f} s, {peak:.0f} MiB")


if __name__ == "__main__":
    main()
