"""Kills ``accel render`` at random moments and looks at what is left behind."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from accel.pipelines.batch.identity import content_hash
from accel.pipelines.batch.manifest import Manifest, manifest_path

SUFFIXES = {".mp4", ".webm", ".gif", ".mkv"}
COMMAND = [sys.executable, "-m", "accel", "render", "--progress", "json"]


def write_queue(path: Path, jobs: int, steps: int) -> Path:
    """A queue of unlike jobs of the embedded model: motion, formats, with and without accel."""
    entries: list[dict[str, Any]] = []
    for n in range(jobs):
        job = {"prompt": f"a red circle {n}", "seed": n, "name": f"job{n:02}"}
        job |= {"format": ["mp4", "webm", "gif", "lossless"][n % 4]}
        job |= {"preset": ["balanced", "fast", None][n % 3]}
        entries.append(job | ({"motion": {"camera": {"pan": [1, 0]}}} if n % 2 else {}))
    path.write_text(json.dumps({"defaults": {"steps": steps, "frames": 5}, "jobs": entries}))
    return path


def start(queue: Path, out: Path, *options: str) -> subprocess.Popen:
    """``accel render`` in a process group of its own; events come line by line on its stdout."""
    command = [*COMMAND, str(queue), "--out", str(out), *options]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        start_new_session=True,
    )  # fmt: skip


def finish(queue: Path, out: Path, *options: str) -> list[dict[str, Any]]:
    """Run to the end; its events. Fails unless every job is done."""
    process = start(queue, out, *options)
    text, _ = process.communicate(timeout=600)
    assert process.returncode == 0, text
    return [json.loads(line) for line in text.splitlines()]


def videos(out: Path) -> dict[str, Path]:
    """Everything that is visible under a final name."""
    return {path.name: path for path in out.glob("*") if path.suffix in SUFFIXES}


def hashes(out: Path) -> dict[str, str]:
    return {name: content_hash(path) for name, path in videos(out).items()}


def survive(queue: Path, out: Path, kills: int, seed: int, *options: str) -> Counter:
    """Kill ``kills`` runs, then let one finish. Returns counts; raises AssertionError if a video
    was ever replaced, or one job was rendered to the end twice.
    """
    draw, seen, counts = random.Random(seed), {}, Counter()
    for _ in range(kills):
        process = start(queue, out, *options)
        counts["steps"] += _kill_at(process, draw)
        counts["killed in a run"] += process.returncode == -signal.SIGKILL
        for name, path in videos(out).items():
            state = (path.stat().st_ino, path.stat().st_mtime_ns)
            assert seen.setdefault(name, state) == state, f"{name} was written twice"
    events = finish(queue, out, *options)
    counts["steps"] += sum(event["event"] == "step" for event in events)
    for name, state in seen.items():
        path = out / name
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == state, f"{name} was written twice"
    manifest = Manifest(manifest_path(out))
    counts["cut off"] = len(manifest.events("cut off"))
    done = Counter(name for name, _, _ in manifest.events("done"))
    assert max(done.values()) == 1, done
    assert {row["state"] for row in manifest.rows()} == {"done"}
    manifest.close()
    return counts


def _kill_at(process: subprocess.Popen, draw: random.Random) -> int:
    """kill -9 after a random number of events and a random moment; returns the steps seen.

    Mostly the whole group dies; sometimes only the coordinating process, as when a terminal's
    session ends.
    """
    assert process.stdout is not None
    steps = 0
    for _ in range(draw.randint(1, 14)):
        line = process.stdout.readline()
        steps += '"step"' in line
    time.sleep(draw.random() * 0.2)
    if draw.random() < 0.8:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    steps += process.communicate(timeout=60)[0].count('"event": "step"')
    return steps
