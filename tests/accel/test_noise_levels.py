"""Places of steps between noise and result, from what schedulers state."""

from __future__ import annotations

import math
from types import SimpleNamespace

import diffusers
import pytest
import torch

from accel.core.noise_levels import places

FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
NOISE = (
    "DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler", "KDPM2DiscreteScheduler", 
    "UniPCMultistepScheduler", "LCMScheduler", "EDMEulerScheduler",
)  # fmt: skip


@pytest.mark.parametrize("name", FLOW + NOISE)
def test_every_scheduler_tells_where_its_steps_lie(name):
    scheduler = getattr(diffusers, name)()
    scheduler.set_timesteps(12)
    found = places(scheduler)
    assert len(found) == len(scheduler.timesteps)
    assert found[0] == 1.0 and found[-1] == 0.0 and found == sorted(found, reverse=True)
    assert len(set(found)) >= 11


def test_places_are_linear_in_the_log_of_signal_over_noise():
    sigmas = torch.tensor([0.9, 0.5, 0.2, 0.0])
    flow = SimpleNamespace(timesteps=1000 * sigmas[:3], sigmas=sigmas)
    levels = [math.log((1 - s) / s) for s in (0.9, 0.5, 0.2)]
    assert places(flow)[1] == pytest.approx((levels[2] - levels[1]) / (levels[2] - levels[0]))
    noise = SimpleNamespace(
        timesteps=torch.tensor([9.0, 5.0, 0.0]), sigmas=torch.tensor([8.0, 4, 1])
    )
    assert places(noise)[1] == pytest.approx(2 / 3)
    share = torch.tensor([0.9, 0.5, 0.1])
    kept = SimpleNamespace(timesteps=torch.tensor([2, 1, 0]), alphas_cumprod=share)
    assert places(SimpleNamespace(timesteps=kept.timesteps, alphas_cumprod=share.flip(0))) == []
    assert places(kept)[1] == pytest.approx(0.5)


def test_pure_noise_and_no_noise_are_finite():
    sigmas = torch.tensor([1.0, 0.5, 0.0])
    found = places(SimpleNamespace(timesteps=sigmas, sigmas=sigmas))
    assert found == pytest.approx([1.0, 0.5, 0.0])


@pytest.mark.parametrize(
    "scheduler",
    [
        None,
        SimpleNamespace(timesteps=None),
        SimpleNamespace(timesteps=torch.tensor([2.0, 1.0])),
        SimpleNamespace(timesteps=torch.tensor([2.0, 1.0]), sigmas=torch.tensor([0.5])),
        SimpleNamespace(timesteps=torch.tensor([2.0, 1.0]), sigmas=torch.tensor([0.5, 0.9])),
        SimpleNamespace(timesteps=torch.tensor([2.0]), sigmas=torch.tensor([0.5, 0.0])),
    ],
)
def test_what_says_nothing_has_no_places(scheduler):
    assert places(scheduler) == []
