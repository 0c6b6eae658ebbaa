"""Tell a scheduler's own denoiser calls from others by the timestep they are given.

A denoiser can be called by somebody else: a second pipeline of the same parts with a scheduler of
its own, or a pipeline that steps copies of its scheduler. What the patched pipeline's scheduler
says then holds for another run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

TOLERANCE = 0.005  # of the largest timestep; bf16 rounds by 0.004
MOVED = 1e-4  # of the largest timestep: less is rounding
FAR = 0.1  # of the largest timestep; near zero many scales agree

# How denoisers are told the time: as the scheduler's timestep, or as one made of it and of N, the
# number of training steps. Each function gives the scheduler's timestep back.
Scale = Callable[[float, float], float]
SCALES: tuple[Scale, ...] = (
    lambda time, n: time,
    lambda time, n: time * n,
    lambda time, n: (1 - time) * n,
    lambda time, n: n - time,
)
_NOWHERE = "nowhere"


class Schedule:
    """One schedule of a scheduler, and the denoiser calls that follow it.

    Args:
        times: Timesteps of the schedule.
        training: Number of training steps.
        counts: Whether the scheduler counts its steps. If not, they are found by their timesteps.
        scale: How the denoiser is told the time, if that is known from an earlier run.
    """

    def __init__(
        self, times: Sequence[float], training: float, counts: bool, scale: Scale | None = None
    ) -> None:
        self.times, self.scale = list(times), scale
        self._training, self.counts = training, counts
        self._most = max(map(abs, self.times), default=0.0)
        self._place: object = _NOWHERE
        self._step, self._time = 0, 0.0
        self._lost: object = _NOWHERE
        self._why = ""

    def nearest(self, time: float) -> int | None:
        """Return the step of this timestep, None without one.

        Of equal timesteps that of the last call is taken, or else the first.
        """
        if self._place != _NOWHERE and self.times[self._step] == time:
            return self._step
        return self.times.index(time) if time in self.times else None

    def first(self, time: float) -> int:
        """Return the step of the first call of a scheduler that counts, before it counts."""
        if not self.times or self._fitting(self.times[0], time):
            return 0
        return self.nearest(time) or 0

    def why_not(self, step: int | None, place: object, time: float) -> str:
        """Return why a call at ``time`` is not the scheduler's, or "".

        A call that is not makes the rest of them doubtful, until the scheduler moves on.

        Args:
            step: Where the scheduler stands, None if it has no such timestep.
            place: What changes when the scheduler moves.
            time: The timestep that the denoiser is given.
        """
        if place == self._lost:
            return self._why
        self._why = self._judge(step, place, time)
        if self._why or step is None:
            self._lost = place
        else:
            self._lost, self._place, self._step, self._time = _NOWHERE, place, step, time
        return self._why

    def _judge(self, step: int | None, place: object, time: float) -> str:
        if step is None:
            return "its timestep is not in the patched pipeline's schedule"
        if step >= len(self.times):
            return "the patched pipeline's schedule is at its end"
        first = self._place == _NOWHERE
        if not self.counts:
            between = [] if first else self.times[self._step + 1 : step]
            jumps = any(t not in (self.times[self._step], time) for t in between)
            return "its timestep jumps in the patched pipeline's schedule" if jumps else ""
        limit = MOVED * max(abs(time), abs(self._time))
        if not first and place == self._place and abs(time - self._time) > limit:
            return "the timestep moves while the patched pipeline's scheduler stands still"
        return self._why_not_here(self.times[step], time)

    def _why_not_here(self, expected: float, time: float) -> str:
        """Return why a call at ``time`` does not belong to the timestep ``expected``."""
        fitting = self._fitting(expected, time)
        if self.scale is None:
            if len(fitting) == 1 and abs(expected) > FAR * self._most:
                self.scale = fitting[0]
            return ""
        if self.scale in fitting:
            return ""
        return "its timestep is not the one at which the patched pipeline's scheduler stands"

    def _fitting(self, expected: float, time: float) -> list[Scale]:
        """Return the scales in which ``time`` is the timestep ``expected``."""
        limit = TOLERANCE * self._most
        return [f for f in SCALES if abs(f(time, self._training) - expected) <= limit]
