"""The fastest plan that keeps a quality, as it ran: precision and step rehash together."""

from __future__ import annotations

import math
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

import accel
from accel.calibration import whole_plans
from accel.calibration.whole_plans import PRECISIONS, search_plan
from accel.cli import main


class World:
    """A pipeline whose plans cost and keep what is stated; time passes by what runs."""

    def __init__(self, monkeypatch, together=0.0, busy=lambda run: 1.0):
        self.now, self.plan, self.runs, self.plans = 0.0, None, 0, []
        self.together, self.busy = together, busy
        monkeypatch.setattr(whole_plans, "patched", self.patched)
        monkeypatch.setattr(whole_plans.time, "perf_counter", lambda: self.now)

    @contextmanager
    def patched(self, pipe, plan):
        self.plan = plan
        self.plans.append(plan.name)
        yield
        self.plan = None

    def job(self, number):
        """Return a job whose frames are off by the plan's errors, a little more in some jobs."""

        def run(pipe):
            self.runs += 1
            seconds, error = 10.0, 0.0
            plan = self.plan
            frames = np.full((2, 16, 16, 3), 100.0)
            if plan is not None:
                attention, rehash = plan.attention is not None, plan.rehash
                linear = plan.linear is not None
                seconds /= 1.2 if attention else 1.0
                seconds /= (1.1 if plan.linear.rules else 1.3) if linear else 1.0
                seconds /= rehash.speedup if rehash else 1.0
                error += 2.0 * attention + 2.0 * linear
                error += 4.0 * (rehash.speedup - 1) if rehash else 0.0
                error += self.together if rehash and attention else 0.0
                error *= 1 + 0.02 * number
            frames += np.resize([error, -error], frames.shape)
            self.now += seconds * self.busy(self.runs)
            return frames.round().astype(np.uint8)

        return run

    def search(self, quality, jobs=4):
        return search_plan(SimpleNamespace(), [self.job(i) for i in range(jobs)], quality)


def test_a_pair_wins_where_it_keeps_the_quality(monkeypatch):
    world = World(monkeypatch)
    found = world.search(30.0)
    assert found.chosen.expected >= 30.0 and found.plan.rehash and found.plan.attention
    faster = [one for one in found.ran if found.speedup(one) > found.speedup(found.chosen)]
    assert all(one.expected < 30.0 for one in faster)
    assert found.speedup(found.chosen) == pytest.approx(10.0 / found.chosen.seconds[0])
    text = str(found)
    assert f"-> {found.plan.name}: " in text and "doubtful" not in text


def test_what_errs_together_is_found_by_running_it(monkeypatch):
    apart, together = (
        World(monkeypatch).search(30.0),
        World(monkeypatch, together=20.0).search(30.0),
    )
    assert apart.plan.rehash and apart.plan.attention
    assert not (together.plan.rehash and together.plan.attention)
    assert together.chosen.expected >= 30.0
    assert len(together.ran) == 8 + whole_plans.TRIES  # pairs were tried, and none kept it


def test_nothing_faster_keeps_what_is_too_much(monkeypatch):
    found = World(monkeypatch).search(60.0)
    assert found.plan.name == "plain" and math.isclose(found.speedup(found.chosen), 1.0)
    assert "nothing faster keeps it" in str(found)


def test_a_machine_that_slows_down_midway_changes_no_ratio(monkeypatch):
    quiet = World(monkeypatch).search(30.0)
    busy = World(monkeypatch, busy=lambda run: 1.0 if run < 20 else 3.0).search(30.0)
    assert busy.plan == quiet.plan
    assert busy.speedup(busy.chosen) == pytest.approx(quiet.speedup(quiet.chosen), rel=0.01)
    assert "times are doubtful, the machine was busy: plain runs took 1.00 to 3.00" in str(busy)


def test_each_precision_and_speedup_runs_alone_first(monkeypatch):
    world = World(monkeypatch)
    world.search(30.0)
    assert world.plans[:4] == [f"full precision, step rehash {s:g}x" for s in (1.5, 1.9, 2.3, 2.8)]
    assert world.plans[4:7] == list(PRECISIONS)[1:]


def test_wrong_wishes_are_refused_before_anything_runs(monkeypatch):
    world = World(monkeypatch)
    with pytest.raises(ValueError, match="needs two jobs or more, got 1"):
        world.search(30.0, jobs=1)
    with pytest.raises(ValueError, match="positive number of dB, got nan"):
        world.search(float("nan"))
    with pytest.raises(ValueError, match="not both"):
        accel.plan(None, None, quality=30.0, jobs=[{}], measured=object())
    assert not world.runs


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "give --quality DB, --memory SIZE, or both"),
        (["--quality", "34"], "a plan by quality needs two jobs or more, got 1"),
        (["--quality", "-3"], "--quality must be"),
        (["--memory", "40"], "did you mean '40GiB'?"),
    ],
)
def test_the_command_refuses_wrong_wishes(tmp_path, capsys, words, error):
    (tmp_path / "jobs.yaml").write_text("jobs: [{prompt: a, steps: 9, frames: 5}]")
    assert main(["plan", str(tmp_path / "jobs.yaml"), *words]) == 2
    assert error in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_finds_a_plan_for_the_embedded_model(tmp_path, capsys):
    jobs = "\n".join(
        f"  - {{prompt: a {c} circle, seed: {i}}}" for i, c in enumerate(["red", "blue"])
    )
    (tmp_path / "jobs.yaml").write_text(f"defaults: {{steps: 9, frames: 5}}\njobs:\n{jobs}\n")
    out = tmp_path / "plan.json"
    words = ["--quality", "20", "--memory", "8GiB", "--out", str(out)]
    assert main(["plan", str(tmp_path / "jobs.yaml"), *words]) == 0
    printed = capsys.readouterr()
    assert "for 20 dB in 9 of 10 jobs, 2 jobs measured:" in printed.out
    assert "INT8 attention, 8-bit layers: " in printed.err
    assert accel.Plan.load(out).name.startswith("within 8GiB, ")
