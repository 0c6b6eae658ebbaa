"""kill -9 at 30 random moments over a queue of 12 jobs: what is lost, what is done twice?

    python tests/bench/bench_survival.py [--kills 30] [--jobs 12] [--steps 6] [--seed 0]
        [--engine inline]

Prints the figures; fails if a file differs from an undisturbed run's, if a finished file is ever
written again, or if anything but whole videos is seen under a final name.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from helpers.killing import finish, hashes, survive, write_queue


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("kills", 30), ("jobs", 12), ("steps", 6), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--engine", default="inline")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        queue = write_queue(Path(folder) / "jobs.json", args.jobs, args.steps)
        options = ("--checkpoint-steps", "1", "--engine", args.engine)
        finish(queue, Path(folder) / "undisturbed", *options)
        start = time.perf_counter()
        counts = survive(queue, Path(folder) / "killed", args.kills, args.seed, *options)
        expected = hashes(Path(folder) / "undisturbed")
        assert len(expected) == args.jobs and hashes(Path(folder) / "killed") == expected
        left = [p.name for p in (Path(folder) / "killed").iterdir() if p.name.endswith("part")]
        assert not left, left
        whole = args.jobs * args.steps
        print(
            f"{args.kills} kills, {counts['killed in a run']} of them before the queue's end, "
            f"{counts['cut off']} jobs cut off; {args.jobs} of {args.jobs} files equal an "
            f"undisturbed run's, none written twice; {counts['steps']} steps seen for {whole} "
            f"({time.perf_counter() - start:.0f} s)"
        )


if __name__ == "__main__":
    main()
