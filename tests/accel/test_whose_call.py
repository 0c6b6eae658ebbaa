"""Whose denoiser call it is: the patched pipeline's scheduler's, or somebody else's."""

import copy

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from torch._subclasses.fake_tensor import FakeTensorMode

from accel.core.run_state import RunState

SCHEDULERS = (
    DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler, HeunDiscreteScheduler, PNDMScheduler, UniPCMultistepScheduler,
)  # fmt: skip
TOLD = {
    "as it is": lambda t: t,
    "as a share": lambda t: t / 1000,
    "rising": lambda t: 1 - t / 1000,
    "backwards": lambda t: 1000 - t,
    "rounded": lambda t: t.to(torch.bfloat16),
    "per token": lambda t: torch.stack([torch.zeros_like(t), t, t]),
}


class Pipe:
    def __init__(self, scheduler):
        self.scheduler = scheduler


def calls(scheduler, told=lambda t: t, begin=0, until=None):
    """Yield the timestep of each denoiser call; the scheduler steps after two of one step."""
    sample = torch.zeros(1, 1, 2, 2)
    if begin and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    for t in scheduler.timesteps[begin:until]:
        for _ in range(2):
            yield told(t).expand(1) if told(t).dim() == 0 else told(t)
        sample = scheduler.step(sample, t, sample).prev_sample


def follow(state, times):
    seen = []
    for time in times:
        state.observe(time)
        state.observe(time)  # a hook and a patch may both tell
        seen.append((state.refresh(), state.step, state.unknown))
    return seen


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_its_own_calls_are_known_wherever_they_begin(kind):
    pipe = Pipe(kind())
    state = RunState(pipe)
    for run, begin in enumerate((0, 4, 0), 1):
        pipe.scheduler.set_timesteps(12)
        seen = follow(state, calls(pipe.scheduler, begin=begin))
        assert {r for r, _, _ in seen} == {run} and not any(why for _, _, why in seen)
        assert state.begin == seen[0][1] and state.span.stop == len(pipe.scheduler.timesteps)
        steps = [step for _, step, _ in seen]
        assert steps == sorted(steps)
    assert not state.lost


@pytest.mark.parametrize("told", TOLD)
@pytest.mark.parametrize("shift", [1.0, 12.0])
def test_denoisers_are_told_the_time_in_many_ways(told, shift):
    pipe = Pipe(FlowMatchEulerDiscreteScheduler(shift=shift))
    state = RunState(pipe)
    for _ in range(2):
        pipe.scheduler.set_timesteps(30)
        seen = follow(state, calls(pipe.scheduler, TOLD[told]))
        assert [step for _, step, _ in seen] == [i for i in range(30) for _ in range(2)]


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("steps", [20, 30])
@pytest.mark.parametrize("stopped", [0, 1, 7, None])
def test_calls_of_another_schedulers_run_are_not_mistaken(kind, steps, stopped):
    pipe = Pipe(kind())
    other = copy.deepcopy(pipe.scheduler)
    state = RunState(pipe)
    pipe.scheduler.set_timesteps(20)
    follow(state, calls(pipe.scheduler))
    if stopped is not None:
        pipe.scheduler.set_timesteps(20)
        follow(state, calls(pipe.scheduler, until=stopped))
    before = state.run
    other.set_timesteps(steps)
    seen = follow(state, calls(other))
    known = [step for _, step, why in seen if not why]
    counts = hasattr(kind, "step_index")
    # A scheduler that does not count cannot be told from one of the same schedule; its own numbers
    # hold for both. In other schedules nothing but a common start is taken for its own.
    if not counts and steps == 20:
        assert len(known) == len(seen)
    else:
        assert len(known) <= 4, seen
    if counts or stopped != 1:  # a run that stopped in its first step cannot be told from this one
        assert {run for run, _, _ in seen} - {before}
    pipe.scheduler.set_timesteps(20)
    seen = follow(state, calls(pipe.scheduler))
    assert not any(why for _, _, why in seen) and len({run for run, _, _ in seen}) == 1


def test_a_run_that_steps_copies_of_the_scheduler_is_unknown():
    pipe = Pipe(UniPCMultistepScheduler())
    state = RunState(pipe)
    pipe.scheduler.set_timesteps(10)
    seen = follow(state, calls(copy.deepcopy(pipe.scheduler)))
    assert [step for _, step, _ in seen][2:] == [None] * 18
    assert "stands still" in seen[-1][2]


def test_tokens_with_timesteps_of_their_own():
    pipe = Pipe(FlowMatchEulerDiscreteScheduler())
    pipe.scheduler.set_timesteps(10)
    state = RunState(pipe)
    t = pipe.scheduler.timesteps
    state.observe(torch.stack([t[0], t[1], t[2]]))
    assert state.step is None and "of their own" in state.unknown
    state.observe(torch.stack([t[0], torch.zeros(()), t[0]]).expand(2, 3))
    assert state.step == 0


def test_a_scheduler_outlives_its_pipeline():
    pipe = Pipe(FlowMatchEulerDiscreteScheduler())
    state, scheduler = RunState(pipe), pipe.scheduler
    del pipe
    scheduler.set_timesteps(5)
    assert [step for _, step, _ in follow(state, calls(scheduler))] == [
        0,
        0,
        1,
        1,
        2,
        2,
        3,
        3,
        4,
        4,
    ]
    del scheduler
    state.observe(1.0)
    assert state.step is None and "without a pipeline" in state.unknown


def test_a_scheduler_that_is_replaced_is_followed():
    pipe = Pipe(FlowMatchEulerDiscreteScheduler())
    state = RunState(pipe)
    for kind, steps in ((EulerDiscreteScheduler, 6), (DDIMScheduler, 9)):
        pipe.scheduler = kind()
        pipe.scheduler.set_timesteps(steps)
        seen = follow(state, calls(pipe.scheduler))
        assert [step for _, step, _ in seen] == [i for i in range(steps) for _ in range(2)]


def test_no_schedule_no_step():
    for kind in SCHEDULERS:
        state = RunState(Pipe(kind()))
        runs = [state.refresh() for t in (900, 500, 900, 500, 100) if not state.observe(float(t))]
        if kind not in (HeunDiscreteScheduler,):  # its constructor makes a schedule
            assert state.step is None and runs[-1] == runs[0] + 1, kind
            assert "no schedule" in state.unknown


def test_a_timestep_that_cannot_be_read_changes_nothing():
    pipe = Pipe(FlowMatchEulerDiscreteScheduler())
    pipe.scheduler.set_timesteps(5)
    state = RunState(pipe)
    state.observe(pipe.scheduler.timesteps[0])
    with FakeTensorMode():
        state.observe(torch.ones(1, dtype=torch.float32, device="cpu"))
    state.observe(torch.ones(1, dtype=torch.float32, device="meta"))
    state.observe(None)
    assert state.step == 0 and not state.unknown
