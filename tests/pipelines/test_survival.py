"""Killed, interrupted, damaged, shared: the queue goes on from where it was, with the same bytes.

The long form is ``tests/bench/bench_survival.py``.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
from pathlib import Path

import pytest
from helpers.killing import COMMAND, hashes, survive, videos, write_queue

from accel.cli import main
from accel.core.atomic_write import part_of
from accel.pipelines.batch.events import Wait
from accel.pipelines.batch.lease import is_held, lease
from accel.pipelines.batch.manifest import Manifest, manifest_path
from accel.pipelines.batch.progress import Progress
from accel.pipelines.checkpoint import StepCheckpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A queue and the hashes of its files."""
    folder = tmp_path_factory.mktemp("undisturbed")
    queue = write_queue(folder / "jobs.json", jobs=4, steps=3)
    assert main(["render", str(queue), "--out", str(folder / "out"), "--engine", "inline"]) == 0
    return queue, hashes(folder / "out")


@pytest.fixture
def run(capsys):
    """Render in this process: exit code and events."""

    def render(queue, out, *options):
        capsys.readouterr()
        arguments = ["render", str(queue), "--out", str(out), "--progress", "json", *options]
        code = main([*arguments, "--engine", "inline"])
        return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return render


def test_kill_9_loses_nothing_and_repeats_nothing(undisturbed, tmp_path):
    queue, expected = undisturbed
    survive(queue, tmp_path, 1, 7, "--checkpoint-steps", "1", "--engine", "local")
    assert hashes(tmp_path) == expected
    assert not list(tmp_path.glob(part_of(Path("*")).name))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupt_saves_the_step_and_the_next_run_goes_on(
    number, code, undisturbed, tmp_path, run, monkeypatch
):
    queue, expected = undisturbed
    real, calls = StepCheckpoint.step_done, []

    def interrupted(checkpoint, *arguments):
        calls.append(checkpoint)
        if len(calls) == 4:  # in the first step of the second job
            os.kill(os.getpid(), number)
            # A further one would end the process at once.
            assert signal.getsignal(number) is signal.SIG_DFL
        real(checkpoint, *arguments)

    monkeypatch.setattr(StepCheckpoint, "step_done", interrupted)
    stopped, events = run(queue, tmp_path, "--checkpoint-steps", "100")
    assert stopped == code and events[-1]["left"] == 3
    monkeypatch.undo()
    done, events = run(queue, tmp_path)
    resumed = [e["resumed_from_step"] for e in events if e["event"] == "done"]
    assert done == 0 and sorted(resumed) == [0, 0, 1] and hashes(tmp_path) == expected


def test_a_process_that_died_while_publishing_is_finished_for_it(undisturbed, tmp_path, run):
    queue, expected = undisturbed
    run(queue, tmp_path)
    for name in ("job00.json", "job01.webm", "job01.json"):  # the video of job00 has its name
        path = tmp_path / name
        path.rename(part_of(path))
    code, events = run(queue, tmp_path)
    assert code == 0 and sum(e["event"] == "skip" for e in events) == 4
    assert hashes(tmp_path) == expected and not list(tmp_path.glob(part_of(Path("*")).name))


def test_folder_without_room_is_exit_code_2_before_anything_starts(undisturbed, tmp_path):
    """A limit on the size of files stands in for the disk: the kernel refuses the write."""
    queue, _ = undisturbed
    done = subprocess.run(
        [*COMMAND, str(queue), "--out", str(tmp_path), "--engine", "inline"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)),
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 2 and "cannot be written" in done.stderr, done.stderr
    assert not videos(tmp_path) and "Traceback" not in done.stderr


def test_damaged_manifest_is_set_aside_and_finished_files_stay(undisturbed, tmp_path, run):
    queue, expected = undisturbed
    run(queue, tmp_path)
    before = {name: path.stat().st_mtime_ns for name, path in videos(tmp_path).items()}
    path = manifest_path(tmp_path)
    path.write_bytes(path.read_bytes()[:512] + os.urandom(20_000))
    code, events = run(queue, tmp_path)
    assert code == 0 and sum(e["event"] == "skip" for e in events) == len(expected)
    assert any("damaged" in e.get("text", "") for e in events)
    assert before == {name: path.stat().st_mtime_ns for name, path in videos(tmp_path).items()}
    assert list(path.parent.glob("*.damaged-*"))
    manifest = Manifest(path)
    assert {row["state"] for row in manifest.rows()} == {"done"}
    manifest.close()


def test_a_job_another_process_holds_is_waited_for(undisturbed, tmp_path, run, monkeypatch):
    queue, expected = undisturbed
    path = tmp_path / ".accel" / "leases" / "job01.lock"
    held, real = lease(path), Progress.__call__

    def let_go(progress, event):
        real(progress, event)
        if isinstance(event, Wait):
            held.__exit__(None, None, None)

    monkeypatch.setattr(Progress, "__call__", let_go)
    assert held.__enter__() and is_held(path)
    code, events = run(queue, tmp_path)
    assert code == 0 and [e["job"] for e in events if e["event"] == "wait"] == ["job01"]
    assert hashes(tmp_path) == expected and not is_held(path)


def test_two_shards_fill_one_folder(undisturbed, tmp_path, run):
    queue, expected = undisturbed
    for shard in ("1/2", "2/2"):
        code, events = run(queue, tmp_path, "--shard", shard)
        assert code == 0 and sum(e["event"] == "done" for e in events) == 2
    assert hashes(tmp_path) == expected
    assert len(list((tmp_path / ".accel").glob("manifest-*-of-2.sqlite"))) == 2
