"""Ray with two local nodes, one killed midway: every job done once, same files as the local engine.

    python tests/bench/bench_ray.py [--jobs 6] [--steps 6]

Needs the extra ``ray``. Prints the figures; fails if a file differs or a job is done twice.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
import ray
from ray.cluster_utils import Cluster

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from helpers.killing import finish, hashes, write_queue

from accel.cli import main as accel
from accel.pipelines.batch.manifest import Manifest, manifest_path
from accel.pipelines.batch.queue import Queue


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=6)
    parser.add_argument("--steps", type=int, default=6)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        queue = write_queue(Path(folder) / "jobs.json", args.jobs, args.steps)
        finish(queue, Path(folder) / "local", "--engine", "inline")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        second = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        start = time.perf_counter()
        try:
            events = render(queue, Path(folder) / "ray", cluster, second)
        finally:
            ray.shutdown()
            cluster.shutdown()
        seconds = time.perf_counter() - start
        expected = hashes(Path(folder) / "local")
        assert len(expected) == args.jobs and hashes(Path(folder) / "ray") == expected
        manifest = Manifest(manifest_path(Path(folder) / "ray"))
        done = Counter(name for name, _, _ in manifest.events("done"))
        assert len(done) == args.jobs and set(done.values()) == {1}, done
        manifest.close()
        lost = [e["error"] for e in events if e["event"] == "retry"]
        assert lost, "the node died without a job on it"
        print(
            f"two nodes, one killed while it rendered ({lost[0]}): {args.jobs} of {args.jobs} jobs "
            f"done once, files equal the local engine's ({seconds:.0f} s)"
        )


def render(queue: Path, out: Path, cluster: Cluster, second: object) -> list[dict]:
    """Render on the cluster; the second node goes when the first job is done and it has another."""
    state = {"killed": False}
    start_some = Queue._start_some

    def start_and_kill(self: Queue) -> None:
        start_some(self)
        if self.policy.summary.done and len(self.running) == 2 and not state["killed"]:
            state["killed"] = True
            cluster.remove_node(second, allow_graceful=False)

    Queue._start_some = start_and_kill
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text):
            address = f"ray://{cluster.address}"
            code = accel(
                ["render", str(queue), "--out", str(out), "--engine", address,
                 "--progress", "json", "--checkpoint-steps", "1"]
            )  # fmt: skip
    finally:
        Queue._start_some = start_some
    assert code == 0, text.getvalue()
    lines = text.getvalue().splitlines()  # the cluster prints here too
    return [json.loads(line) for line in lines if line.startswith("{")]


if __name__ == "__main__":
    main()
