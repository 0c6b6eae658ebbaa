"""What the queue makes of every outcome, without a model; and processes that die."""

from __future__ import annotations

import os
import signal
import sqlite3
from types import SimpleNamespace

import pytest
import torch

from accel import Plan, SlicingConfig
from accel.pipelines.batch import engines, events
from accel.pipelines.batch.batch_run import BatchRun, exit_code
from accel.pipelines.batch.engines import LocalEngine, Stop, make_engine
from accel.pipelines.batch.items import Item
from accel.pipelines.batch.ladder import (
    LADDER,
    available,
    changed,
    classify,
    more_slices,
    next_rung,
)
from accel.pipelines.batch.manifest import Manifest
from accel.pipelines.batch.output import prepare_folder
from accel.pipelines.batch.queue import Options
from accel.pipelines.batch.tasks import Check, Kind, Outcome
from accel.pipelines.job import Job, JobError

DONE = {"peak_bytes": 1, "seconds": 1.0, "resumed_from_step": 0, "memory": []}


class Scripted:
    """An engine whose outcomes are written down: job name to the kinds of its tries, then done."""

    def __init__(self, script, slots=1):
        self.script, self.slots, self.tasks, self.now = dict(script), slots, [], []

    def usable(self, slot):
        return True

    def submit(self, slot, task):
        self.now.append((slot, task))

    def wait(self, seconds):
        now, self.now = self.now, []
        return [(slot, self.outcome(task)) for slot, task in now]

    def outcome(self, task):
        if isinstance(task, Check):
            return Outcome(Kind.CHECKED)
        self.tasks.append((task.name, task.rung))
        kinds = self.script.get(task.name, [])
        kind = kinds.pop(0) if kinds else "done"
        return Outcome(Kind(kind), f"it {kind}", sidecar=DONE, rungs_left=2 - task.rung)

    def stop(self):
        pass

    def cancel(self, slot):
        pass

    def close(self):
        pass


@pytest.fixture
def queue(tmp_path):
    def run(script, names="abc", slots=1, loads=None, **options):
        prepare_folder(tmp_path)
        manifest = Manifest(tmp_path / ".accel" / "manifest.sqlite")
        told = []
        engine = Scripted(script, slots)
        stop = Stop()
        todo = BatchRun(Options(tmp_path, **options), engine, manifest, told.append, stop)
        models = {"x": "other"}
        items = [
            Item(
                Job(n, name=n, model=models.get(n, "tiny"), load=(loads or {}).get(n)),
                f"id-{n}",
                n,
                "f",
            )
            for n in names
        ]
        summary = todo.run(items)
        states = {row["name"]: row["state"] for row in manifest.rows()}
        manifest.close()
        return summary, states, engine.tasks, told, exit_code(summary, stop)

    return run


@pytest.fixture(autouse=True)
def no_model(monkeypatch):
    monkeypatch.setattr("accel.pipelines.batch.manifest.model_fingerprint", lambda model: model)


def test_a_failure_is_retried_and_then_kept_while_others_go_on(queue):
    summary, states, tasks, told, code = queue({"b": ["failed"] * 9}, retries=2)
    assert states == {"a": "done", "b": "failed", "c": "done"} and code == 1
    assert [name for name, _ in tasks].count("b") == 3
    assert (summary.done, summary.failed, summary.left) == (2, 1, 0)
    (failed,) = [event for event in told if isinstance(event, events.Failed)]
    assert failed.reproduce.startswith("accel render")


def test_out_of_memory_takes_a_rung_a_try_and_gives_up_at_the_top(queue):
    _, states, tasks, _, code = queue({"a": ["oom"] * 9}, names="a")
    assert tasks == [("a", 0), ("a", 1), ("a", 2)] and states == {"a": "failed"} and code == 1
    _, _, tasks, _, _ = queue({"a": ["oom"] * 9}, names="a", retries=0)
    assert tasks == [("a", 0)]


def test_a_job_that_takes_its_process_down_is_given_up(queue):
    _, states, tasks, _, _ = queue({"b": ["died"] * 99}, retries=1)
    assert [name for name, _ in tasks].count("b") == 4
    assert states == {"a": "done", "b": "failed", "c": "done"}


def test_a_lost_machine_is_not_the_jobs_fault(queue):
    summary, states, _, _, code = queue({"b": ["lost"] * 9})
    assert set(states.values()) == {"done"} and summary.failed == 0 and code == 0


def test_a_full_disk_ends_everything(queue):
    summary, states, tasks, _, code = queue({"b": ["disk"]})
    assert code == 2 and summary.disk and summary.left == 2 and len(tasks) == 2
    assert states == {"a": "done", "b": "pending", "c": "pending"}


def test_jobs_of_one_model_stay_together(queue):
    _, _, tasks, _, _ = queue({}, names="axbc")
    # x first: its model was checked last, so it is the one that is loaded
    assert [name for name, _ in tasks] == ["x", "a", "b", "c"]


def test_what_was_cut_off_twice_goes_last(queue, tmp_path):
    queue({}, names="")
    manifest = Manifest(tmp_path / ".accel" / "manifest.sqlite")
    for _ in range(2):
        manifest.add([("a", "id-a", Job("a"))])
        manifest.log("a", "started", "running")
        manifest.cut_off("a")
    manifest.close()
    _, _, tasks, _, _ = queue({})
    assert [name for name, _ in tasks] == ["b", "c", "a"]


def test_fail_fast_leaves_the_rest(queue):
    summary, _, tasks, _, code = queue({"a": ["failed"]}, retries=0, fail_fast=True)
    assert len(tasks) == 1 and summary.left == 2 and code == 1


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), "oom"),
        (RuntimeError("CUDA out of memory"), "oom"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "oom"),
        (ValueError("out of memory of what happened"), "failed"),
        (OSError(28, "No space left on device"), "disk"),
        (OSError(30, "Read-only file system"), "disk"),
        (FileNotFoundError(2, "gone"), "failed"),
    ],
)
def test_failures_are_told_apart(error, kind):
    assert classify(error) == kind


def test_next_rung_is_bounded():
    assert next_rung(Kind.OOM, 0, 1, 0, 1) == 1
    assert next_rung(Kind.OOM, 1, 0, 0, 1) is None
    assert next_rung(Kind.FAILED, 1, 3, 1, 1) == 1
    assert next_rung(Kind.FAILED, 1, 3, 2, 1) is None


def test_the_manifest_uses_a_write_ahead_log(queue, tmp_path):
    queue({})
    base = sqlite3.connect(tmp_path / ".accel" / "manifest.sqlite")
    assert base.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    base.close()


@pytest.mark.slow
def test_a_process_that_is_killed_is_replaced(tmp_path):
    engine = LocalEngine(tmp_path, lambda event: None)
    try:
        for _ in range(2):
            engine.submit(0, Check("tiny", {}))
            os.kill(engine._all[0].process.pid, signal.SIGKILL)
            (first,) = until(engine)
            assert first[1].kind == "died" and "SIGKILL" in first[1].error
        engine.submit(0, Check("tiny", {}))
        assert until(engine) == [(0, Outcome(Kind.CHECKED))]
    finally:
        engine.close()


def test_a_process_that_hangs_is_ended_and_replaced(tmp_path):
    engine = LocalEngine(tmp_path, lambda event: None, stall=1)
    try:
        engine.submit(0, Check("tiny", {}))
        os.kill(engine._all[0].process.pid, signal.SIGSTOP)
        ((_, outcome),) = until(engine)
        assert outcome.kind == "died" and "said nothing for 1 s" in outcome.error
    finally:
        engine.close()
    with pytest.raises(JobError, match="--stall-timeout needs --engine local"):
        make_engine("inline", tmp_path, Stop(), print, stall=5)


@pytest.mark.slow
def test_one_process_per_device(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "devices", lambda: ["cpu", "cpu"])
    engine, seen = LocalEngine(tmp_path, lambda event: None), set()
    try:
        assert engine.slots == 2
        for slot in range(2):
            engine.submit(slot, Check("tiny", {}))
        assert len({place.process.pid for place in engine._all}) == 2
        while len(seen) < 2:
            seen |= {(slot, outcome.kind) for slot, outcome in engine.wait(1.0)}
        assert seen == {(0, "checked"), (1, "checked")}
    finally:
        engine.close()


def until(engine):
    while not (outcomes := engine.wait(1.0)):
        pass
    return outcomes


def test_more_slices_than_the_plan_has_and_nothing_else():
    assert more_slices(None) == Plan("unaccelerated", None, SlicingConfig(16))
    assert more_slices(Plan.preset("lossless")).slicing == SlicingConfig(16)
    assert more_slices(Plan("p", slicing=SlicingConfig(16, 64))).slicing == SlicingConfig(32, 64)
    assert more_slices(Plan.preset("fast")).attention == Plan.preset("fast").attention
    job = Job(prompt="a")
    assert changed(job, []) is job and changed(job, LADDER[1:]) is job
    assert changed(job, LADDER).accel_plan() == more_slices(job.accel_plan())


def test_rungs_on_a_gpu_come_in_the_order_of_what_they_cost(monkeypatch):
    vae = SimpleNamespace(enable_slicing=None, enable_tiling=None)
    pipe = SimpleNamespace(device=torch.device("cuda"), vae=vae, enable_model_cpu_offload=None)
    monkeypatch.setattr("accel.pipelines.batch.ladder.denoisers", lambda pipe: {})
    expected = "more slices, VAE slicing, model offload, VAE tiling, sequential offload"
    assert ", ".join(rung.name for rung in available(pipe)) == expected
    pipe.device = torch.device("cpu")
    assert [rung.name for rung in available(pipe)] == ["more slices", "VAE slicing", "VAE tiling"]


def test_jobs_of_one_model_loaded_alike_stay_together(queue):
    loads = {"a": {"weights": "int8"}, "b": None, "c": {"weights": "int8", "offload": "auto"}}
    _, _, tasks, _, _ = queue({}, loads=loads)
    assert [name for name, _ in tasks] == ["b", "a", "c"]  # b was checked last, so it is loaded


def test_equal_ways_of_loading_are_one():
    def key(load):
        return Job("x", load=load).loaded_as

    assert key(None) == key({}) == key({"compile": "off"}) == "tiny"
    assert key({"weights": {"": "int8"}}) == key({"weights": "int8"}) != key({"weights": "fp8"})
