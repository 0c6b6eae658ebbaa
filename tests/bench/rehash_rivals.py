"""Two published ways of leaving out denoiser calls, written anew from their papers for the bench.

Neither is in diffusers. Both see only the denoiser's latents and outputs here, so they run on any
model:

* ``Chebyshev``, after Spectrum (arXiv 2603.01623): after some steps gaps between computed steps
  grow steadily. Between them an output is half the line through the last two and half a ridge fit
  of Chebyshev polynomials in the timestep to all computed ones. The paper fits features of the last
  block, which the denoiser's head maps to outputs.
* ``Transformation``, after EasyCache (arXiv 2507.02860): a step is left out while the relative
  change of the output, foretold from that of the latents, adds up to less than a threshold. The
  last difference of output and latents is added to the latents.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from rehash_models import denoiser_of
from torch import Tensor

LATENTS = ("hidden_states", "sample")
FIRST = 4  # steps at the start of a run that are always computed


@dataclass
class Kept:
    """What was kept of one branch of guidance: timesteps, latents and outputs, oldest first."""

    times: list[float] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)


class Policy(Protocol):
    """Decides at each step of a run, and predicts."""

    def wants(self, step: int, latents: Tensor, kept: Kept) -> bool:
        """Whether a step is computed; asked by the first branch, once a step."""

    def predict(self, kept: Kept, latents: Tensor, time: float) -> Tensor:
        """The output of a branch at ``time``."""


class Chebyshev:
    """Spectrum's prediction; gaps start at ``gap`` and grow by ``growth`` at each computed step."""

    def __init__(
        self, gap: float, growth: float, degree: int = 4, penalty: float = 0.1, share: float = 0.5
    ) -> None:
        self.gap, self.growth = gap, growth
        self.degree, self.penalty, self.share = degree, penalty, share
        self._next = FIRST

    def wants(self, step: int, latents: Tensor, kept: Kept) -> bool:
        """Whether the gap has ended."""
        if step >= self._next:
            self._next = step + int(self.gap)
            self.gap += self.growth
            return True
        return step < FIRST

    def predict(self, kept: Kept, latents: Tensor, time: float) -> Tensor:
        """Half a line, half a ridge fit."""
        first = kept.times[0]
        basis = _chebyshev(np.array([*kept.times, time]) / first, self.degree)
        known, here = basis[:-1], basis[-1]
        inner = known.T @ known + self.penalty * np.eye(known.shape[1])
        fit = np.linalg.solve(inner, known.T).T @ here
        slope = (time - kept.times[-1]) / (kept.times[-1] - kept.times[-2])
        total = self.share * fit
        total[-1] += (1 - self.share) * (1 + slope)
        total[-2] -= (1 - self.share) * slope
        return sum(float(w) * y for w, y in zip(total, kept.outputs, strict=True))


class Transformation:
    """EasyCache's rule and prediction."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._sum, self._rate = 0.0, 0.0
        self._before: Tensor | None = None

    def wants(self, step: int, latents: Tensor, kept: Kept) -> bool:
        """Whether the foretold change since the last computed step has reached the threshold."""
        before, self._before = self._before, latents
        if step < FIRST or before is None:
            return True
        if len(kept.outputs) > 1 and not self._sum:
            moved = (kept.outputs[-1] - kept.outputs[-2]).abs().mean()
            self._rate = float(moved / (kept.inputs[-1] - kept.inputs[-2]).abs().mean())
        size = kept.outputs[-1].abs().mean()
        self._sum += float(self._rate * (latents - before).abs().mean() / size)
        if self._sum < self.threshold:
            return False
        self._sum = 0.0
        return True

    def predict(self, kept: Kept, latents: Tensor, time: float) -> Tensor:
        """The latents plus the last difference."""
        return latents + (kept.outputs[-1] - kept.inputs[-1])


def _chebyshev(places: np.ndarray, degree: int) -> np.ndarray:
    """Chebyshev polynomials up to ``degree`` at ``places`` in 0..1, [N, degree + 1]."""
    return np.polynomial.chebyshev.chebvander(2 * places - 1, degree)


def skipping(make: Callable[[], Policy]) -> Callable[[Any], AbstractContextManager[None]]:
    """A contender's context: ``make`` builds the policy of each run."""

    @contextmanager
    def on(pipe: Any) -> Iterator[None]:
        denoiser = denoiser_of(pipe)
        denoiser.forward = _Forward(denoiser, pipe.scheduler, make)
        try:
            yield
        finally:
            del denoiser.forward

    return on


class _Forward:
    """Stands for a denoiser's ``forward``. The n-th call at a timestep is the n-th branch."""

    def __init__(self, denoiser: Any, scheduler: Any, make: Callable[[], Policy]) -> None:
        self.plain, self.scheduler, self.make = denoiser.forward, scheduler, make
        self.names = list(inspect.signature(self.plain).parameters)
        self._schedule: Tensor | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        named = {**dict(zip(self.names, args, strict=False)), **kwargs}
        latents = next(named[name] for name in LATENTS if name in named)
        time = float(torch.as_tensor(named["timestep"]).flatten()[0])
        if self._schedule is not self.scheduler.timesteps:
            self._schedule, self.policy = self.scheduler.timesteps, self.make()
            self.step, self.time, self.branches = -1, float("nan"), []
        if time != self.time:
            self.step, self.time, self.turn = self.step + 1, time, 0
        if self.turn == len(self.branches):
            self.branches.append(Kept())
        kept = self.branches[self.turn]
        if self.turn == 0:
            last = self.step == len(self._schedule) - 1
            self.compute = self.policy.wants(self.step, latents, kept) or last
        self.turn += 1
        if not self.compute:
            return (self.policy.predict(kept, latents, time),)
        output = self.plain(*args, **kwargs)
        value = output[0] if isinstance(output, tuple) else output.sample
        kept.times.append(time)
        kept.inputs.append(latents.clone())
        kept.outputs.append(value.clone())
        return output
