"""One search for many budgets: what it takes, what it runs for that, and what it refuses."""

from __future__ import annotations

import math
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.error_tables import made

import accel
from accel.attention.policy import precision_at
from accel.calibration import ladders, plan_runs
from accel.calibration.ladders import Effort
from accel.calibration.rungs import PRECISIONS, SPEEDUPS, calibrated, scheduled
from accel.calibration.step_measurement import Measurement, Point
from accel.cli import main
from accel.config import RehashConfig, Rule
from accel.memory.fit import Needs
from accel.planning import plan_search
from accel.planning.wishes import NoPlan, Wishes

MIB = 2**20
NEEDS = Needs(
    {1: 100 * MIB, 2: 80 * MIB, 4: 70 * MIB}, {"whole": 90 * MIB, "strips": 60 * MIB}, 50 * MIB,
    others={"tiled (approximate)": 40 * MIB},
)  # fmt: skip
TILED = Needs({1: 50 * MIB, 2: 45 * MIB}, NEEDS.decode, 40 * MIB, others=NEEDS.others)
PLAIN = Effort(rules=False, schedules=False)


def denoiser():
    """Return what is read of a pipeline."""
    return SimpleNamespace(transformer=torch.nn.Linear(2, 2), scheduler=SimpleNamespace())


class World:
    """A pipeline whose plans cost and keep what is stated; time passes by what runs."""

    def __init__(
        self, monkeypatch, together=0.0, busy=lambda run: 1.0, steps=25, held=0, needs=NEEDS,
        slow_slices=1.0,
    ):  # fmt: skip
        self.now, self.plan, self.runs, self.plans = 0.0, None, 0, []
        self.together, self.busy, self.steps, self.held = together, busy, steps, held
        self.needs, self.slow_slices = needs, slow_slices
        monkeypatch.setattr(plan_runs, "patched", self.patched)
        monkeypatch.setattr(plan_runs.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(plan_search, "run_peak", self.peak)

    @contextmanager
    def patched(self, pipe, plan):
        self.plan = plan
        self.plans.append(plan.name)
        yield SimpleNamespace(steps=self.steps, origin=SimpleNamespace(inputs=(4, 2)))
        self.plan = None

    def peak(self, pipe, work):
        """Hold more than is simulated: ``held``."""
        work()
        sliced = self.plan.slicing
        slices, tiled = (sliced.slices, sliced.tiling) if sliced is not None else (1, False)
        return self.held + self.needs.peak(
            slices, self.plan.rehash, self.plan.linear, tiled=tiled
        )  # fmt: skip

    def error(self, plan):
        attention, rehash, sliced = plan.attention is not None, plan.rehash, plan.slicing
        found = 2.0 * attention + 2.0 * (plan.linear is not None)
        found += max(1.0, 4.0 * (rehash.speedup - 1)) if rehash else 0.0
        found += self.together if rehash and attention else 0.0
        return found + (6.0 if sliced is not None and sliced.tiling else 0.0)

    def seconds(self, plan):
        took = 10.0 / (1.2 if plan.attention is not None else 1.0)
        took /= (1.1 if plan.linear.rules else 1.3) if plan.linear is not None else 1.0
        took *= self.slow_slices if plan.slicing is not None and plan.slicing.slices > 1 else 1.0
        return took / (plan.rehash.speedup if plan.rehash else 1.0)

    def job(self, number):
        """Return a job whose frames are off by the plan's errors, a little more in some jobs."""

        def run(pipe):
            self.runs += 1
            plan = self.plan or accel.Plan(attention=None)
            error = self.error(plan) * (1 + 0.02 * number)
            frames = np.full((2, 16, 16, 3), 100.0)
            frames += np.resize([error, -error], frames.shape)
            self.now += self.seconds(plan) * self.busy(self.runs)
            return frames.round().astype(np.uint8)

        return run

    def start(self, jobs=4, effort=PLAIN):
        return accel.PlanSearch(
            denoiser(), [self.job(i) for i in range(jobs)], needs=lambda: self.needs,
            effort=effort,
        )  # fmt: skip

    def search(self, quality=None, **budgets):
        return self.start().within(quality=quality, **budgets)


def test_a_pair_wins_where_it_keeps_the_quality(monkeypatch):
    world = World(monkeypatch)
    found = world.search(30.0)
    assert found.chosen.expected >= 30.0 and found.plan.rehash and found.plan.attention
    faster = [one for one in found.ran if found.speedup(one) > found.speedup(found.chosen)]
    assert all(one.expected < 30.0 for one in faster)
    assert found.speedup(found.chosen) == pytest.approx(10.0 / found.chosen.seconds[0])
    text = str(found)
    assert f"-> {found.plan.name}: " in text and "doubtful" not in text
    assert f"4 jobs measured in {world.runs} runs:" in text


class FewSteps(World):
    """Four steps, the first of which forgives little; layers gain more and cost more."""

    errors = (12.0, 3.0, 2.0, 4.0)

    def error(self, plan):
        assert plan.rehash is None
        return math.sqrt(sum((harm * self.errors[k]) ** 2 for harm, _, k in self._eight(plan)))

    def seconds(self, plan):
        return 10.0 - sum(gain for _, gain, _ in self._eight(plan))

    def _eight(self, plan):
        for config, harm, gain in ((plan.attention, 0.5, 0.2), (plan.linear, 1.0, 0.5)):
            for step in range(4):
                if config and precision_at(config, "blocks.0", step, 4) == "int8":
                    yield harm, gain, step


def test_runs_of_few_steps_are_searched_by_step_and_skip_none(monkeypatch):
    found = FewSteps(monkeypatch, steps=4).search(30.0)
    assert found.plan.name == "INT8 attention, 8-bit layers in steps 2, 3, 4 of 4"
    assert found.plan.linear.rules == found.plan.attention.rules == (Rule("full", end=0.25),)
    assert found.chosen.expected >= 30.0
    origin = found.plan.origin
    assert (origin.made_by, origin.steps, origin.inputs, origin.jobs) == ("search", 4, (4, 2), 4)
    assert origin.decibels == found.chosen.expected
    assert origin.speedup == found.speedup(found.chosen) > 1
    assert all(one.plan.origin is None for one in found.ran)


def test_no_pair_of_the_grid_that_keeps_the_quality_is_faster(monkeypatch):
    for quality in (24.0, 27.0, 30.0, 34.0, 38.0):
        world = World(monkeypatch)
        found = world.search(quality)
        for precision in PRECISIONS:
            for speedup in (1.0, *SPEEDUPS):
                rehash = RehashConfig(speedup=speedup) if speedup > 1 else None
                plan = accel.Plan(
                    "", precision.attention, linear=precision.linear, rehash=rehash
                )  # fmt: skip
                if world.error(plan) <= 255 * 10 ** (-(quality + 1.5) / 20):
                    assert world.seconds(found.plan) <= world.seconds(plan) * 1.001


def test_what_errs_together_is_found_by_running_it(monkeypatch):
    apart = World(monkeypatch).search(30.0)
    together = World(monkeypatch, together=20.0).search(30.0)
    assert apart.plan.rehash and apart.plan.attention
    assert not (together.plan.rehash and together.plan.attention)
    assert together.chosen.expected >= 30.0
    most = 8 + plan_search.TRIES + plan_search.FINER
    assert 8 < len(together.ran) <= most  # pairs were tried, and none kept it


def test_nothing_faster_keeps_what_is_too_much(monkeypatch):
    found = World(monkeypatch).search(60.0)
    assert found.plan.name == "plain" and found.speedup(found.chosen) == pytest.approx(1.0)
    assert "nothing faster keeps it" in str(found)


def test_a_machine_that_slows_down_midway_changes_no_ratio(monkeypatch):
    quiet = World(monkeypatch).search(30.0)
    busy = World(monkeypatch, busy=lambda run: 1.0 if run <= 22 else 3.0).search(30.0)
    assert busy.plan == quiet.plan
    assert busy.speedup(busy.chosen) == pytest.approx(quiet.speedup(quiet.chosen), rel=0.01)
    assert "times are doubtful, the machine was busy: plain runs took 1.00 to 3.00" in str(busy)


def test_each_rung_runs_alone_first_and_only_once_for_all_questions(monkeypatch):
    world = World(monkeypatch)
    search = world.start()
    first = search.within(quality=30.0)
    assert world.plans[:3] == [rung.name for rung in PRECISIONS[1:]]
    assert world.plans[3:7] == [f"full precision, step rehash {s:g}x" for s in SPEEDUPS]
    assert len(set(world.plans)) == len(world.plans)
    before = world.runs
    again = search.within(quality=60.0)
    assert again.plan.name == "plain" and world.runs <= before + 6 * plan_search.FINER
    assert search.within(quality=30.0).speedup(first.chosen) > 1


def test_a_few_steps_leave_only_precisions(monkeypatch):
    world = World(monkeypatch, steps=8)
    found = world.search(30.0)
    assert found.plan.attention and all(one.plan.rehash is None for one in found.ran)


def test_with_a_speed_the_quality_is_the_most_that_is_kept(monkeypatch):
    world = World(monkeypatch)
    found = world.search(speed=2.0)
    gain = {one.plan.name: found.speedup(one) for one in found.ran}
    assert gain[found.chosen.plan.name] >= 2.0
    better = [one for one in found.ran if one.expected > found.chosen.expected]
    assert better and all(gain[one.plan.name] < 2.0 for one in better)
    assert "for 2x as fast" in str(found)


def test_a_finer_speed_between_two_rungs_is_found(monkeypatch):
    found = World(monkeypatch).search(speed=1.7)
    speedups = {one.plan.rehash.speedup for one in found.ran if one.plan.rehash}
    assert speedups - set(SPEEDUPS)


def test_a_prediction_of_seconds_orders_what_runs(monkeypatch):
    world, asked = World(monkeypatch), []

    def seconds(plan):
        asked.append(plan)
        return world.seconds(plan)

    found = world.start(effort=Effort(False, False, seconds=seconds)).within(quality=30.0)
    assert found.chosen.expected >= 30.0 and asked


def test_memory_takes_the_fewest_slices_and_is_confirmed_by_a_run(monkeypatch):
    found = World(monkeypatch).search(30.0, memory=85 * MIB)
    assert found.plan.slicing.slices == 4  # 2 would do for denoising, not for decoding
    assert found.checked.peak <= 85 * MIB
    assert f"in 4 slices it held {found.checked.peak:,} of {85 * MIB:,} bytes" in str(found)
    assert World(monkeypatch).search(30.0, memory=200 * MIB).plan.slicing is None


def test_what_holds_more_than_simulated_gives_way_to_more_slices(monkeypatch):
    tight = World(monkeypatch, held=5 * MIB).search(30.0, memory=102 * MIB)
    assert tight.plan.slicing.slices == 2 and tight.checked.peak == 95 * MIB
    with pytest.raises(NoPlan, match=r"the lowest peak is 0\.07 GiB .*measured") as error:
        World(monkeypatch, held=5 * MIB).search(30.0, memory=72 * MIB)
    (one,) = error.value.nearest
    assert one.budget == "memory" and one.short == 3 * MIB
    assert one.one.plan.slicing.slices == 4 and one.one.peak == 75 * MIB


def test_slices_that_cost_the_speed_give_way(monkeypatch):
    world = World(monkeypatch, slow_slices=1.3)
    found = world.search(speed=2.0, memory=85 * MIB)
    assert found.plan.slicing.slices == 4 and found.checked.gain >= 2.0


def test_tiles_are_taken_where_nothing_exact_fits_and_the_quality_allows_them(monkeypatch):
    world = World(monkeypatch, needs=TILED)
    found = world.search(25.0, memory=50 * MIB)
    assert found.plan.slicing.tiling and found.chosen.expected >= 25.0
    with pytest.raises(NoPlan) as error:
        World(monkeypatch, needs=TILED).search(40.0, memory=50 * MIB)
    budgets = {one.budget: one for one in error.value.nearest}
    assert set(budgets) == {"memory", "quality"}
    assert budgets["memory"].one.peak == 60 * MIB and budgets["memory"].short == 10 * MIB
    assert 30 < budgets["quality"].one.expected < 40
    text = str(error.value)
    assert "40 dB in 9 of 10 jobs: the lowest peak is 0.06 GiB (0.01 GiB too much)" in text
    assert "within 0.05 GiB: the best quality is" in text


def test_speed_and_quality_that_exclude_each_other_name_what_is_near(monkeypatch):
    with pytest.raises(NoPlan, match=r"no plan that ran keeps 40 dB .*, 3x as fast") as error:
        World(monkeypatch).search(40.0, speed=3.0)
    budgets = {one.budget: one for one in error.value.nearest}
    assert set(budgets) == {"quality", "speed"}
    assert budgets["quality"].one.gain >= 3.0 and budgets["speed"].one.expected >= 40.0
    assert budgets["speed"].short == pytest.approx(3.0 - budgets["speed"].one.gain)


def test_what_cannot_fit_is_refused_before_anything_runs(monkeypatch):
    world = World(monkeypatch)
    with pytest.raises(NoPlan, match=r"nothing fits in .*: the denoise phase needs") as error:
        world.search(30.0, memory=60 * MIB)
    assert not world.runs and error.value.nearest[0].short == 10 * MIB


def test_what_is_beyond_what_was_measured_lowers_a_schedules_promise(monkeypatch):
    """A schedule that was fitted to the jobs is promised only what it did on jobs it was not."""
    world, keys = World(monkeypatch), (*range(12), 24)
    point = Point(keys, (30.0, 30.1, 30.2, 30.3), "a")
    measured = Measurement(
        25, tuple(range(25, 0, -1)), ((1.0,) * 25,) * 25, RehashConfig(), 1, (point,)
    )
    monkeypatch.setattr(ladders, "measure_steps", lambda *args, **options: measured)
    monkeypatch.setattr(plan_runs, "decibels_of", lambda error: -10 * np.log10(max(error, 1e-9)))
    search = world.start(effort=Effort(rules=False))
    search.within(quality=29.0)
    (own,) = [one for one in search.ran if "schedule" in one.plan.name and not one.plan.attention]
    assert own.psnr == pytest.approx(point.psnr, abs=0.01)
    ((rung, unseen),) = scheduled(measured)
    assert rung.name == "measured schedule 1.92x" and unseen == point.psnr


def test_a_calibration_gives_rungs_of_fewer_bits_and_rules():
    table = made()
    names = [rung.name for rung in calibrated(table)]
    assert names[0] == "INT6 attention" and "INT4 attention" not in names  # it costs the same
    assert any("by site and step" in name for name in names[1:])
    slow = {p: cost * (1.0 if p == "full" else 3.0) for p, cost in table.costs.items()}
    assert not calibrated(accel.ErrorTable(**{**vars(table), "costs": slow}))


def test_calibration_that_measures_nothing_is_said(monkeypatch):
    said, world = [], World(monkeypatch)

    def nothing(*args, **options):
        raise ValueError("no call to measure")

    monkeypatch.setattr(ladders, "calibrate", nothing)
    monkeypatch.setattr(ladders, "measure_steps", nothing)
    jobs = [world.job(i) for i in range(4)]
    accel.PlanSearch(denoiser(), jobs, say=said.append).within(quality=30.0)
    assert "no rules by site and step: no call to measure" in said
    assert "no measured schedules: no call to measure" in said


def test_wrong_wishes_are_refused_before_anything_runs(monkeypatch):
    world = World(monkeypatch)
    with pytest.raises(ValueError, match="needs two jobs or more, got 1"):
        world.start(jobs=1)
    for budgets, error in (
        ({"quality": float("nan")}, "positive number of dB, got nan"),
        ({"speed": 0.5}, "speed must be from 1 to 1000 times as fast, got 0.5"),
        ({}, "give a budget: memory='8GiB'"),
    ):
        with pytest.raises(ValueError, match=error):
            world.search(**budgets)
    with pytest.raises(ValueError, match="not both"):
        accel.plan(None, None, quality=30.0, jobs=[{}], measured=object())
    with pytest.raises(ValueError, match=r"speed=2 needs jobs"):
        accel.plan(None, None, speed=2.0)
    with pytest.raises(ValueError, match="a memory needs job"):
        accel.search_plan(None, [{}, {}], 30.0, memory="8GiB")
    with pytest.raises(ValueError, match="made without needs"):
        accel.PlanSearch(None, [{}, {}]).within(memory="8GiB")
    assert not world.runs and str(Wishes(None, 30.0, 2.0)) == "30 dB in 9 of 10 jobs, 2x as fast"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "give --quality DB, --speed TIMES, --memory SIZE, or several"),
        (["--quality", "34"], "a plan by quality or speed needs two jobs or more, got 1"),
        (["--quality", "-3"], "--quality must be"),
        (["--speed", "0.2"], "--speed must be"),
        (["--memory", "40"], "did you mean '40GiB'?"),
    ],
)
def test_the_command_refuses_wrong_wishes(tmp_path, capsys, words, error):
    (tmp_path / "jobs.yaml").write_text("jobs: [{prompt: a, steps: 9, frames: 5}]")
    assert main(["plan", str(tmp_path / "jobs.yaml"), *words]) == 2
    assert error in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.proof
def test_the_command_finds_a_plan_for_the_embedded_model(tmp_path, capsys, monkeypatch):
    for name, few in (("SPEEDUPS", (1.9,)), ("SCHEDULES", (1.5,)), ("PROBES", 2)):
        monkeypatch.setattr(ladders, name, few)
    jobs = "\n".join(
        f"  - {{prompt: a {c} circle, seed: {i}}}" for i, c in enumerate(["red", "blue"])
    )
    (tmp_path / "jobs.yaml").write_text(
        f"defaults: {{steps: 9, frames: 5, width: 32, height: 32}}\njobs:\n{jobs}\n"
    )
    out = tmp_path / "plan.json"
    words = ["--quality", "20", "--memory", "8GiB", "--out", str(out)]
    assert main(["plan", str(tmp_path / "jobs.yaml"), *words]) == 0
    printed = capsys.readouterr()
    assert "for 20 dB in 9 of 10 jobs, within 8.00 GiB, 2 jobs measured in " in printed.out
    assert "of 8,589,934,592 bytes" in printed.out
    assert "INT8 attention, 8-bit layers: " in printed.err
    assert accel.Plan.load(out).name.startswith("within 8GiB, ")
