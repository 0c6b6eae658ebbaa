"""The fastest plan that keeps a quality, as it ran: precision and step rehash together."""

from __future__ import annotations

import math
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import accel
from accel.attention.policy import precision_at
from accel.calibration import whole_plans
from accel.calibration.whole_plans import PRECISIONS, search_plan
from accel.cli import main
from accel.config import Rule


class Pipe:
    """A denoiser and a sampler that has run."""

    def __init__(self, steps):
        self.transformer = torch.nn.Linear(2, 2)
        times = torch.arange(steps, 0, -1)
        self.scheduler = SimpleScheduler(times)


class SimpleScheduler:
    """What is read of a scheduler."""

    def __init__(self, timesteps):
        self.timesteps, self.num_inference_steps = timesteps, len(timesteps)


class World:
    """A pipeline whose plans cost and keep what is stated; time passes by what runs."""

    def __init__(self, monkeypatch, together=0.0, busy=lambda run: 1.0, steps=25):
        self.steps = steps
        self.now, self.plan, self.runs, self.plans = 0.0, None, 0, []
        self.together, self.busy = together, busy
        monkeypatch.setattr(whole_plans, "patched", self.patched)
        monkeypatch.setattr(whole_plans.time, "perf_counter", lambda: self.now)

    @contextmanager
    def patched(self, pipe, plan):
        self.plan = plan
        self.plans.append(plan.name)
        yield SimpleNamespace(steps=self.steps, origin=SimpleNamespace(inputs=(4, 2)))
        self.plan = None

    def job(self, number):
        """Return a job whose frames are off by the plan's errors, a little more in some jobs."""

        def run(pipe):
            self.runs += 1
            seconds, error = (10.0, 0.0) if self.plan is None else self.costs(self.plan)
            error *= 1 + 0.02 * number
            frames = np.full((2, 16, 16, 3), 100.0)
            frames += np.resize([error, -error], frames.shape)
            self.now += seconds * self.busy(self.runs)
            return frames.round().astype(np.uint8)

        return run

    def costs(self, plan):
        """Return a plan's seconds, and the error of each value of its frames."""
        attention, rehash = plan.attention is not None, plan.rehash
        linear = plan.linear is not None
        seconds, error = 10.0, 2.0 * attention + 2.0 * linear
        seconds /= 1.2 if attention else 1.0
        seconds /= (1.1 if plan.linear.rules else 1.3) if linear else 1.0
        seconds /= rehash.speedup if rehash else 1.0
        error += 4.0 * (rehash.speedup - 1) if rehash else 0.0
        error += self.together if rehash and attention else 0.0
        return seconds, error

    def search(self, quality, jobs=4):
        return search_plan(Pipe(self.steps), [self.job(i) for i in range(jobs)], quality)


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


class FewSteps(World):
    """Four steps, the first of which forgives little; layers gain more and cost more."""

    errors = (12.0, 3.0, 2.0, 4.0)

    def costs(self, plan):
        assert plan.rehash is None
        squared, seconds = 0.0, 10.0
        for config, harm, gain in ((plan.attention, 0.5, 0.2), (plan.linear, 1.0, 0.5)):
            for step, error in enumerate(self.errors):
                if config and precision_at(config, "blocks.0", step, len(self.errors)) == "int8":
                    squared, seconds = squared + (harm * error) ** 2, seconds - gain
        return seconds, math.sqrt(squared)


def test_runs_of_few_steps_are_searched_by_step_and_skip_none(monkeypatch):
    world = FewSteps(monkeypatch, steps=4)
    found = world.search(31.0)
    assert found.plan.name == "INT8 attention, 8-bit layers in steps 2, 3, 4 of 4"
    assert found.plan.linear.rules == found.plan.attention.rules == (Rule("full", end=0.25),)
    assert found.chosen.expected >= 31.0
    origin = found.plan.origin
    assert (origin.made_by, origin.steps, origin.inputs, origin.jobs) == ("search", 4, (4, 2), 4)
    assert origin.decibels == found.chosen.expected
    assert origin.speedup == found.speedup(found.chosen) > 1
    assert all(one.plan.origin is None for one in found.ran)


def test_all_steps_are_quantized_where_that_keeps_the_quality(monkeypatch):
    world = FewSteps(monkeypatch, steps=4)
    found = world.search(20.0)
    assert found.plan.name == "INT8 attention, 8-bit layers" and not found.plan.linear.rules
    assert len(world.plans) == 2  # no step had to be tried alone


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
