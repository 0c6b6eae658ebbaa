"""Killed, interrupted, full disks: the queue goes on from where it was, with the same bytes.

The long form is ``tests/bench/bench_survival.py``.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess

import pytest
from killing import COMMAND, finish, hashes, start, survive, videos, write_queue

from accel.pipelines.batch.lease import lease
from accel.pipelines.batch.manifest import Manifest, manifest_path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A queue and the hashes of its files."""
    folder = tmp_path_factory.mktemp("undisturbed")
    queue = write_queue(folder / "jobs.json", jobs=4, steps=3)
    finish(queue, folder / "out", "--engine", "inline")
    return queue, hashes(folder / "out")


def test_kill_9_loses_nothing_and_repeats_nothing(undisturbed, tmp_path):
    queue, expected = undisturbed
    survive(queue, tmp_path, 3, 7, "--checkpoint-steps", "1", "--engine", "local")
    assert hashes(tmp_path) == expected
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupt_saves_the_step_and_the_next_run_goes_on(number, code, undisturbed, tmp_path):
    queue, expected = undisturbed
    process = start(queue, tmp_path, "--checkpoint-steps", "100", "--engine", "inline")
    for line in process.stdout:
        if '"step"' in line:
            break
    process.send_signal(number)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == code and '"left": ' in text
    events = finish(queue, tmp_path, "--engine", "inline")
    resumed = [e["resumed_from_step"] for e in events if e["event"] == "done"]
    assert hashes(tmp_path) == expected
    assert any(resumed) or len(resumed) < len(expected)


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


def test_damaged_manifest_is_set_aside_and_finished_files_stay(undisturbed, tmp_path):
    queue, expected = undisturbed
    finish(queue, tmp_path, "--engine", "inline")
    before = {name: path.stat().st_mtime_ns for name, path in videos(tmp_path).items()}
    path = manifest_path(tmp_path)
    path.write_bytes(path.read_bytes()[:512] + os.urandom(20_000))
    events = finish(queue, tmp_path, "--engine", "inline")
    assert sum(e["event"] == "skip" for e in events) == len(expected)
    assert any("damaged" in e.get("text", "") for e in events)
    assert before == {name: path.stat().st_mtime_ns for name, path in videos(tmp_path).items()}
    assert len(list(path.parent.glob("*.damaged-*"))) >= 1
    manifest = Manifest(path)
    assert {row["state"] for row in manifest.rows()} == {"done"}
    manifest.close()


def test_a_job_another_process_holds_is_waited_for(undisturbed, tmp_path):
    queue, expected = undisturbed
    with lease(tmp_path / ".accel" / "leases" / "job01.lock") as mine:
        assert mine
        process = start(queue, tmp_path, "--engine", "inline")
        for line in process.stdout:
            if '"event": "wait"' in line:
                break
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and hashes(tmp_path) == expected, text
