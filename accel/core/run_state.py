"""Where a run is: its step, number of steps and sigma, read from the scheduler without a patch.

A scheduler keeps ``timesteps`` (a new tensor for every pipeline call), and most keep
``step_index``. Those that do not (DDIM, PNDM and a few others) are followed by the timestep of the
last denoiser call.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor


class RunState:
    """Follows the scheduler of one pipeline.

    ``run`` counts pipeline calls; it changes when a call starts.
    """

    def __init__(self, pipe: Any) -> None:
        self._pipe = weakref.ref(pipe)
        self._timesteps: weakref.ref[Tensor] | None = None
        self._seen: float | None = None
        self.run = 0

    def _scheduler(self) -> Any:
        return getattr(self._pipe(), "scheduler", None)

    def observe(self, timestep: object) -> None:
        """Take note of the timestep of a denoiser call: a scalar, or a tensor of equal values."""
        if isinstance(timestep, Tensor):
            if timestep.numel() == 0 or timestep.device.type == "meta":
                return
            timestep = timestep.flatten()[0].item()
        if isinstance(timestep, (int, float)):
            if self._scheduler() is None and (self._seen is None or timestep > self._seen):
                self.run += 1  # a denoiser without a pipeline: more noise again starts a new run
            self._seen = float(timestep)

    def refresh(self) -> int:
        """Return the number of the current run; new ``timesteps`` in the scheduler start one."""
        timesteps = getattr(self._scheduler(), "timesteps", None)
        if isinstance(timesteps, Tensor):
            known = self._timesteps() if self._timesteps is not None else None
            if known is not timesteps:
                self._timesteps = weakref.ref(timesteps)
                self.run += 1
        return self.run

    @property
    def steps(self) -> int | None:
        """Length of the schedule, None if there is none yet."""
        timesteps = getattr(self._scheduler(), "timesteps", None)
        return len(timesteps) if isinstance(timesteps, Tensor) else None

    @property
    def schedule(self) -> tuple[str, list[float]]:
        """Class name of the scheduler, and its timesteps."""
        scheduler = self._scheduler()
        timesteps = getattr(scheduler, "timesteps", None)
        times = timesteps.float().tolist() if isinstance(timesteps, Tensor) else []
        return type(scheduler).__name__, times

    @property
    def step(self) -> int | None:
        """0-based index in the schedule, None if it cannot be known."""
        scheduler = self._scheduler()
        timesteps = getattr(scheduler, "timesteps", None)
        if not isinstance(timesteps, Tensor):
            return None
        if hasattr(type(scheduler), "step_index"):
            index = scheduler.step_index
            if index is None:
                index = getattr(scheduler, "begin_index", None) or 0
            return min(int(index), len(timesteps) - 1)
        if self._seen is None:
            return None
        at = torch.nonzero(timesteps.cpu() == self._seen)
        return int(at[0, 0]) if len(at) else None

    @property
    def sigma(self) -> float | None:
        """Noise level of the current step where the scheduler has ``sigmas``."""
        sigmas = getattr(self._scheduler(), "sigmas", None)
        step = self.step
        if not isinstance(sigmas, Tensor) or step is None or step >= len(sigmas):
            return None
        return float(sigmas[step])
