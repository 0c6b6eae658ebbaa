"""How the computed steps of a run are chosen: by a wish, a schedule, or a measured schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass

from accel.core.validate import text


@dataclass(frozen=True)
class Multistep:
    """Weights fitted to a schedule, as ``accel.calibration.step_weights`` finds them.

    Args:
        weights: One row per step: the weight of the step's own output if it is computed, then those
            of the kept outputs, newest first.
        times: Timesteps of the run that the weights hold for.
        sampler: Class name of the scheduler that the weights hold for.

    Raises:
        ValueError: Rows that are no finite numbers, or not one for each timestep.
    """

    weights: tuple[tuple[float, ...], ...]
    times: tuple[float, ...]
    sampler: str

    def __post_init__(self) -> None:
        text("multistep sampler", self.sampler)
        try:
            rows = tuple(tuple(map(float, row)) for row in self.weights)
            times = tuple(map(float, self.times))
        except (TypeError, ValueError) as error:
            raise ValueError(f"multistep weights and times must be numbers: {error}") from error
        object.__setattr__(self, "weights", rows)
        object.__setattr__(self, "times", times)
        if len(rows) != len(times) or not all(rows):
            raise ValueError(
                f"multistep weights need one row for each timestep, got {len(rows)} rows "
                f"for {len(times)} timesteps"
            )
        if not all(math.isfinite(w) for row in rows for w in row):
            raise ValueError("multistep weights must be finite")


@dataclass(frozen=True)
class Wish:
    """A speed-up: a rule picks one computed step in ``speedup`` steps during the run."""

    speedup: float


@dataclass(frozen=True)
class Schedule:
    """Computed steps chosen beforehand.

    ``keys`` are the 0-based computed steps of a run of ``steps`` steps.
    """

    keys: tuple[int, ...]
    steps: int


@dataclass(frozen=True)
class MeasuredSchedule(Schedule):
    """A schedule measured on real runs.

    ``multistep`` holds its fitted weights, and ``quality`` the dB PSNR that 9 of 10 jobs should
    keep; each is None where it is not known.
    """

    multistep: Multistep | None
    quality: float | None
