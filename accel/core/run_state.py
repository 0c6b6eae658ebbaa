"""Where a run is: its step, number of steps and sigma, read from the scheduler without a patch.

A scheduler keeps ``timesteps`` (a new tensor for every pipeline call), and most keep
``step_index``. Those that do not (DDIM, PNDM and a few others) are followed by the timestep of the
last denoiser call. Where a call is not the scheduler's (``accel/core/whose_call.py``) the step is
unknown.
"""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Any

from torch import Tensor

from accel.core.waiting import reading_waits
from accel.core.whose_call import Schedule
from accel.kernels.attention_call import why_not_eager


class RunState:
    """Follows the scheduler of one pipeline.

    ``run`` counts pipeline calls; it changes when a call starts. ``begin`` is the first step of the
    run, None before its first denoiser call. Of the last denoiser call, ``time`` is the timestep,
    and ``unknown`` says why its step is not known, "" if it is. ``lost`` counts calls of unknown
    step by reason.
    """

    def __init__(self, pipe: Any) -> None:
        self._pipe = weakref.ref(pipe)
        self._known = _weak(getattr(pipe, "scheduler", None))
        self._timesteps: weakref.ref[Tensor] | None = None
        self._schedule = Schedule((), 1.0, True)
        self._last: int | None = None  # step of the last call
        self._falling: bool | None = None  # how the time moves in a run without a schedule
        self.run = 0
        self.begin: int | None = None
        self.time: float | None = None
        self.unknown = ""
        self.lost: Counter[str] = Counter()

    @property
    def scheduler(self) -> Any:
        """The scheduler; it can outlive the pipeline, as in ``pipe = X.from_pipe(pipe)``."""
        pipe = self._pipe()
        if pipe is None:
            return self._known()
        scheduler = getattr(pipe, "scheduler", None)
        if scheduler is not self._known():
            self._known = _weak(scheduler)
        return scheduler

    def refresh(self) -> int:
        """Return the number of the current run; new ``timesteps`` in the scheduler start one."""
        scheduler = self.scheduler
        timesteps = getattr(scheduler, "timesteps", None)
        known = self._timesteps() if self._timesteps is not None else None
        if isinstance(timesteps, Tensor) and known is not timesteps:
            self._timesteps = weakref.ref(timesteps)
            counts = hasattr(type(scheduler), "step_index")
            training = getattr(getattr(scheduler, "config", None), "num_train_timesteps", 1000)
            times = _numbers(timesteps) or []
            self._schedule = Schedule(times, float(training), counts, self._schedule.scale)
            self.begin = self._last = self._falling = self.time = None
            self.unknown = ""
            self.run += 1
        return self.run

    def observe(self, timestep: object) -> None:
        """Take note of the timestep of a denoiser call: a scalar, or a tensor.

        Zeros beside one other value are tokens that are given, such as those of a first frame.
        """
        self.refresh()
        known = self._in_schedule(timestep)
        times = sorted(set((_numbers(timestep) or ()) if known is None else (known,)))
        if not times:
            return
        time = times[-1]
        step, why = self._where(time)
        if not why and any(value != 0.0 for value in times[:-1]):
            why = "its tokens have timesteps of their own"
        if why:
            step = None
            self._follow(time)
        elif self.begin is None:
            self.begin = step
        elif self.unknown or (self._last is not None and step is not None and step < self._last):
            self.run += 1  # the schedule's own run goes on, or it starts again
            self.begin = step
        self.time, self._last, self.unknown = time, step, why

    def _in_schedule(self, timestep: object) -> float | None:
        """Return the value of a timestep that is a view of the schedule's, without reading it.

        None for others, and where reading does not wait.
        """
        known = None if self._timesteps is None else self._timesteps()
        if known is None or not isinstance(timestep, Tensor) or why_not_eager(timestep):
            return None
        if not reading_waits(timestep.device) or timestep.dtype is not known.dtype:
            return None
        if timestep.untyped_storage().data_ptr() != known.untyped_storage().data_ptr():
            return None
        sizes = zip(timestep.shape, timestep.stride(), strict=True)
        place = timestep.storage_offset() - known.storage_offset()
        if any(size > 1 and stride for size, stride in sizes) or not timestep.numel():
            return None
        times = self._schedule.times
        return times[place] if 0 <= place < len(times) and known.is_contiguous() else None

    def count(self, timestep: object) -> None:
        """Take note of a denoiser call as ``observe`` does, and count it if its step is unknown."""
        self.observe(timestep)
        if self.unknown:
            self.lost[self.unknown] += 1

    def _where(self, time: float) -> tuple[int | None, str]:
        """Return the step of a call at ``time``, or why it is not the scheduler's."""
        scheduler, schedule = self.scheduler, self._schedule
        if scheduler is None:
            return None, "a denoiser without a pipeline has no schedule"
        # Schedulers that count have no such number before their first schedule, the others may.
        inference = getattr(scheduler, "num_inference_steps", None if schedule.counts else 0)
        if not schedule.times or inference is None:
            return None, "the patched pipeline's scheduler has no schedule yet"
        if not schedule.counts:
            step = schedule.nearest(time)
            return step, schedule.why_not(step, None, time)
        place = _standing(scheduler)
        step = schedule.first(time) if place is None else place
        return step, schedule.why_not(step, place, time)

    def _follow(self, time: float) -> None:
        """Count runs that have no known schedule: in each the time moves in one direction."""
        moved = 0.0 if self.time is None else time - self.time
        if not self.unknown:
            self.run, self._falling = self.run + 1, None
        elif moved and self._falling is None:
            self._falling = moved < 0
        elif moved and (moved < 0) is not self._falling:
            self.run, self._falling = self.run + 1, None

    @property
    def steps(self) -> int | None:
        """Length of the schedule of the last ``refresh``.

        None if there is none yet, or the last call was not of it.
        """
        return len(self._schedule.times) or None if not self.unknown else None

    @property
    def span(self) -> range:
        """Steps of the schedule that the current run goes through.

        They are fewer than all with a ``strength`` below 1, or where a second pipeline does the
        last steps.
        """
        begin, end = self.begin or 0, self.steps or 0
        count = getattr(self._pipe(), "num_timesteps", None)
        if isinstance(count, int) and 0 < count <= end - begin:
            end = begin + count
        return range(begin, end)

    @property
    def guidance(self) -> tuple[float | None, bool]:
        """Scale of classifier-free guidance as the pipeline states it, None if it does not.

        The flag says whether the pipeline has classifier-free guidance in the current run. Scales
        of several frames count by the largest.
        """
        pipe = self._pipe()
        scale = getattr(pipe, "guidance_scale", None)
        if isinstance(scale, Tensor):
            scale = float(scale.max())
        free = bool(getattr(pipe, "do_classifier_free_guidance", False))
        return (float(scale) if isinstance(scale, (int, float)) else None), free

    @property
    def schedule(self) -> tuple[str, list[float]]:
        """Class name of the scheduler, and its timesteps."""
        scheduler = self.scheduler
        timesteps = getattr(scheduler, "timesteps", None)
        times = timesteps.float().tolist() if isinstance(timesteps, Tensor) else []
        return type(scheduler).__name__, times

    @property
    def step(self) -> int | None:
        """0-based index in the schedule of the last ``refresh``, None if it cannot be known."""
        length = len(self._schedule.times)
        if self.unknown or not length:
            return None
        if not self._schedule.counts:
            return self._last
        scheduler = self.scheduler
        place = None if scheduler is None else _standing(scheduler)
        if place is None:
            place = self._last or 0
        return place if place < length else None

    @property
    def sigma(self) -> float | None:
        """Noise level of the current step where the scheduler has ``sigmas``."""
        self.refresh()
        sigmas = getattr(self.scheduler, "sigmas", None)
        step = self.step
        if not isinstance(sigmas, Tensor) or step is None or step >= len(sigmas):
            return None
        return float(sigmas[step])


def _standing(scheduler: Any) -> int | None:
    """Return the step at which a scheduler that counts stands, None before it counts."""
    place = scheduler.step_index
    if place is None:
        place = getattr(scheduler, "begin_index", None)
    return None if place is None else int(place)


def _weak(thing: Any) -> Any:
    """Return a function that gives ``thing`` as long as it lives, then None."""
    return weakref.ref(thing) if thing is not None else lambda: None


def _numbers(value: object) -> list[float] | None:
    """Return the values of a timestep as numbers, None where they cannot be read."""
    if isinstance(value, (int, float)):
        return [float(value)]
    if not isinstance(value, Tensor) or not value.numel() or why_not_eager(value):
        return None
    return (value if value.numel() <= 4096 else value.unique()).flatten().double().tolist()
