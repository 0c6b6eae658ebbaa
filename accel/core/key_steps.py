"""How the computed steps of a run are chosen: by a wish, a schedule, or a measured schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass

from accel.core.validate import text

FEW = 8  # runs of this many steps or fewer leave nothing to skip
INSTEAD = "preset 'few-step' has 8-bit layers in all of them"


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
class Origin:
    """What a schedule was measured with.

    Args:
        weights: Pairs of a denoiser's name in the pipeline and a hash of its weights; "" where they
            could not be read.
        sampler: Class name of the scheduler.
        settings: Hash of the scheduler's configuration.

    Raises:
        ValueError: Something else than texts.
    """

    weights: tuple[tuple[str, str], ...]
    sampler: str
    settings: str

    def __post_init__(self) -> None:
        try:
            pairs = tuple((name, value) for name, value in self.weights)
        except (TypeError, ValueError):
            raise ValueError(
                f"origin weights must be pairs of a name and a hash, got {self.weights!r}"
            ) from None
        object.__setattr__(self, "weights", pairs)
        for value in (self.sampler, self.settings, *(part for pair in pairs for part in pair)):
            text("origin", value)

    def differs(self, now: Origin) -> str:
        """Return what is not as it was measured, "" if nothing is."""
        found, read = [], dict(now.weights)
        for name, value in self.weights:
            if name not in read:
                found.append(f"a denoiser {name!r}, which is not there")
            elif not value or not read[name]:
                found.append(f"weights of {name!r} that are offloaded and cannot be compared")
            elif value != read[name]:
                found.append(f"other weights of {name!r}")
        if self.sampler != now.sampler:
            found.append(f"{self.sampler}, not {now.sampler}")
        elif self.settings != now.settings:
            found.append(f"other settings of {self.sampler}")
        return " and ".join(found)


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
