"""Dual-clock denoising: a crude animation leads the run, some regions longer than others.

Time-to-Move (arXiv 2511.08633), without training. The latents after a step, at noise level s, are
replaced by z + noise of level s, where z is the encoded animation: everywhere until the ``loose``
clock runs out, and where the animation is to be followed closely until the ``tight`` one does. The
rest of the run is the pipeline's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from accel.core.validate import from_dict, number, one_of

WAYS = ("noise", "dual-clock", "both", "control")


@dataclass(frozen=True)
class Follow:
    """How a run follows a motion: by warped ``noise``, by a ``dual-clock``, or by ``both``.

    Or by a ``control`` video, for pipelines that take one. ``loose`` and ``tight``: how long the
    clocks run, as fractions of the run's steps; None takes the family's.
    """

    way: str = "noise"
    loose: float | None = None
    tight: float | None = None

    def __post_init__(self) -> None:
        one_of("follow way", self.way, WAYS)
        for name in ("loose", "tight"):
            if (value := getattr(self, name)) is not None:
                number(f"follow {name}", value, 0.0, 1.0)
        if not self.clocks and (self.loose, self.tight) != (None, None):
            raise ValueError(f"follow {self.way} has no clocks; leave loose and tight out")
        if self.loose is not None and self.tight is not None and self.loose > self.tight:
            raise ValueError(
                f"follow loose must not be above tight, got {self.loose:g} and {self.tight:g}: "
                "what is followed closely is led for longer"
            )

    @classmethod
    def parse(cls, data: Any) -> Follow:
        """Return the ``follow`` of a job file: None, a way, or a mapping.

        Raises:
            ValueError: Anything else, or a bad value in it.
        """
        if data is None:
            return cls()
        if isinstance(data, (cls, Mapping)):
            return from_dict(cls, data, "follow")
        return cls(data)

    @property
    def noise(self) -> bool:
        """Whether warped noise is the first noise."""
        return self.way in ("noise", "both")

    @property
    def clocks(self) -> bool:
        """Whether a crude animation leads the latents."""
        return self.way in ("dual-clock", "both")

    @property
    def animated(self) -> bool:
        """Whether a crude animation is made of the job's picture."""
        return self.way != "noise"


@dataclass
class DualClock:
    """Replaces latents between the steps of one run.

    ``animation`` and ``noise``: latents laid out as the pipeline's own; ``led``: where they are
    followed until ``tight``, laid out so as to broadcast to them; ``free``: where the pipeline
    keeps something of its own, such as a first frame without noise. ``loose`` and ``tight`` are
    fractions of the run.
    """

    animation: Tensor
    noise: Tensor
    led: Tensor
    free: Tensor
    loose: float
    tight: float

    def until(self, steps: int) -> int:
        """Return the number of steps after which the run is the pipeline's own."""
        return max(math.ceil(fraction * steps - 1e-9) for fraction in (self.loose, self.tight))

    def step_done(self, pipe: Any, done: int, steps: int, timestep: Any, latents: Tensor) -> Tensor:
        """Return the latents to go on with after step ``done`` of ``steps``, at ``timestep``.

        Raises ValueError if the pipeline's latents are of another shape.
        """
        if done >= steps or done > self.until(steps):
            return latents
        if latents.shape != self.animation.shape:
            raise ValueError(
                f"{type(pipe).__name__} has latents of shape {tuple(latents.shape)}, the animation "
                f"{tuple(self.animation.shape)}; follow: noise does without"
            )
        loosely = done <= math.ceil(self.loose * steps - 1e-9)
        where = ~self.free if loosely else self.led & ~self.free
        there = noised(pipe.scheduler, self.animation, self.noise, timestep)
        return torch.where(where.to(latents.device), there.to(latents), latents)


def noised(scheduler: Any, clean: Tensor, noise: Tensor, timestep: Any) -> Tensor:
    """Return ``clean`` with noise of the level after the step at ``timestep``."""
    times = scheduler.timesteps
    at = int((times.to("cpu") == torch.as_tensor(timestep).to("cpu")).nonzero()[0, 0])
    following = times[at + 1 : at + 2]
    add = getattr(scheduler, "scale_noise", None)
    if add is not None:
        found: Tensor = add(clean.to(times.device), following, noise.to(times.device))
    else:
        found = scheduler.add_noise(clean.to(times.device), noise.to(times.device), following)
    return found
