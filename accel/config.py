"""Frozen configurations, one per technique, validated at birth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from accel.core.validate import flag, from_dict, number, one_of, text, whole

Precision = Literal["int8", "int6", "int4", "full"]
Impl = Literal["auto", "reference", "cpu", "gpu"]
Level = Literal["output", "features"]
Storage = Literal["native", "int8", "cpu"]


@dataclass(frozen=True)
class Rule:
    """Precision of some sites during some steps.

    ``sites`` is a shell pattern over site names (``blocks.0.*``) or several names and patterns;
    ``start`` and ``end`` bound the step as a fraction of the run, ``start <= step / steps < end``.
    """

    precision: Precision
    sites: str | tuple[str, ...] = "*"
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        one_of("rule precision", self.precision, get_args(Precision))
        if not isinstance(self.sites, str):
            sites = tuple(self.sites) if isinstance(self.sites, (list, tuple)) else ()
            if not sites or not all(isinstance(site, str) for site in sites):
                raise ValueError(f"rule sites must be a name or several, got {self.sites!r}")
            object.__setattr__(self, "sites", sites)
        for name in ("start", "end"):
            number(f"rule {name}", getattr(self, name))
        if not 0.0 <= self.start < self.end <= 1.0:
            raise ValueError(
                f"rule needs 0 <= start < end <= 1, got start {self.start}, end {self.end}"
            )


@dataclass(frozen=True)
class AttentionConfig:
    """Quantized attention. The first rule that matches site and step wins, else ``precision``.

    ``impl`` "auto" takes the fastest implementation, and leaves calls too short to profit to torch;
    a named one is used for every call. ``check_rows``: query rows per head compared with full
    precision on each site's first call in each precision in a run; 0 turns that off. Above a
    relative L1 error of ``max_error`` there, the site stays at full precision for the rest of the
    run.
    """

    precision: Precision = "int8"
    rules: tuple[Rule, ...] = ()
    impl: Impl = "auto"
    smooth_q: bool = False
    smooth_v: bool = True
    hadamard: bool = False
    check_rows: int = 64
    max_error: float = 0.5

    def __post_init__(self) -> None:
        one_of("attention precision", self.precision, get_args(Precision))
        one_of("attention impl", self.impl, get_args(Impl))
        if not isinstance(self.rules, (list, tuple)):
            raise ValueError(f"attention rules must be a list of rules, got {self.rules!r}")
        rules = tuple(from_dict(Rule, rule, "attention rule") for rule in self.rules)
        object.__setattr__(self, "rules", rules)
        for name in ("smooth_q", "smooth_v", "hadamard"):
            flag(f"attention {name}", getattr(self, name))
        whole("attention check_rows", self.check_rows, 0)
        if not number("attention max_error", self.max_error) > 0:
            raise ValueError(f"attention max_error must be positive, got {self.max_error}")


@dataclass(frozen=True)
class SlicingConfig:
    """Exact feature slicing: each block runs in at most ``slices`` slices of at least
    ``min_tokens`` tokens.

    ``stream_frames``: where a VAE on an accelerator decodes a video piece by piece, finished frames
    go to the CPU at once, if the pipeline only returns them. Videos asked for as tensors
    (``output_type="pt"``) are then on the CPU; frames as arrays or pictures are there anyway.
    """

    slices: int = 8
    min_tokens: int = 128
    stream_frames: bool = True

    def __post_init__(self) -> None:
        for name in ("slices", "min_tokens"):
            whole(f"slicing {name}", getattr(self, name), 1)
        flag("slicing stream_frames", self.stream_frames)


@dataclass(frozen=True)
class Multistep:
    """Weights fitted to a schedule, as ``accel.calibration.step_weights`` has them: per step, of
    its own output if it is computed, then of the kept ones, newest first. They hold for the
    timesteps ``times`` of the scheduler class ``sampler``.
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
    """A rule picks the computed steps while the run goes on: one in ``speedup``."""

    speedup: float


@dataclass(frozen=True)
class Schedule:
    """``keys``: 0-based computed steps of a run of ``steps`` steps."""

    keys: tuple[int, ...]
    steps: int


@dataclass(frozen=True)
class MeasuredSchedule(Schedule):
    """A schedule that real runs were made with: fitted weights, and the dB it should keep in 9 of
    10 jobs, where they are known.
    """

    multistep: Multistep | None
    quality: float | None


@dataclass(frozen=True)
class RehashConfig:
    """Step rehash: some denoising steps reuse what earlier ones computed.

    Which steps are computed is one of three things (``choice``): a ``Wish``, a ``Schedule``, or a
    ``MeasuredSchedule`` as ``accel.measure_steps`` finds it. The first fifth of the steps and the
    last one are always computed, and runs of 8 steps or fewer are left alone.

    Args:
        speedup: Denoising steps of a run per computed one, 1 to 5; used without ``keys``.
        keys: 0-based computed steps of a run of ``steps`` steps; stretched to runs of another
            length.
        steps: Length of the run that ``keys`` belong to.
        level: "output" predicts the denoiser's output from its last ones; "features" keeps, in a
            transformer, what its blocks added to the token stream, in a UNet the temporal feature
            of its last up-block, and still runs the last ``tail`` blocks, or layers of that
            up-block, on it.
        order: Degree in the timestep of what is predicted: 0 repeats, 1 extrapolates linearly.
            None: 1 for outputs, but 0 beside INT6 and INT4 attention, whose noise a line would
            amplify.
        tail: See ``level``.
        store: What is kept: "native" as it is, "int8" in 8 bits, or "cpu" in the CPU's memory.
        multistep: Measured weights instead of ``order``, where a run is like those measured.
        quality: dB PSNR that 9 of 10 jobs should keep; takes a measured schedule.

    Raises:
        ValueError: A value that is not allowed, or fields that do not go together.
    """

    speedup: float = 1.9
    keys: tuple[int, ...] = ()
    steps: int = 0
    level: Level = "output"
    order: int | None = None
    tail: int = 1
    store: Storage = "native"
    multistep: Multistep | None = None
    quality: float | None = None

    def __post_init__(self) -> None:
        one_of("rehash level", self.level, get_args(Level))
        one_of("rehash store", self.store, get_args(Storage))
        if not isinstance(self.keys, (list, tuple)):
            raise ValueError(f"rehash keys must be a list of steps, got {self.keys!r}")
        object.__setattr__(self, "keys", tuple(whole("rehash key", k) for k in self.keys))
        number("rehash speedup", self.speedup)
        if not 1.0 <= self.speedup <= 5.0:
            raise ValueError(
                f"rehash speedup must be from 1 to 5 (a fifth of the steps is always computed), "
                f"got {self.speedup}"
            )
        if self.order not in (None, 0, 1) or (self.order == 1 and self.level == "features"):
            raise ValueError(
                f"rehash order must be None, 0 or, at level 'output', 1, got {self.order} at level "
                f"{self.level!r}"
            )
        whole("rehash tail", self.tail, 0)
        whole("rehash steps", self.steps, 0)
        self._check_schedule()

    def _check_schedule(self) -> None:
        if self.multistep is not None:
            found = from_dict(Multistep, self.multistep, "rehash multistep")
            object.__setattr__(self, "multistep", found)
        if self.keys and not all(0 <= k < self.steps for k in self.keys):
            raise ValueError(
                f"rehash keys must be steps of a run of {self.steps} steps (key 'steps'), got "
                f"{list(self.keys)}"
            )
        if self.quality is not None and not self.keys:
            number("rehash quality", self.quality)
            raise ValueError(
                f"rehash quality {self.quality:g} dB needs a measured schedule: "
                f"accel.measure_steps(pipe, jobs).at_quality({self.quality:g}) makes this "
                "config from a few jobs; without a measurement give a speedup instead"
            )
        rows = self.steps if self.multistep is None else len(self.multistep.weights)
        if self.multistep is not None and (
            self.level != "output" or not self.keys or rows != self.steps
        ):
            raise ValueError(
                "rehash multistep weights go with level 'output' and keys of as many steps, got "
                f"level {self.level!r}, {len(self.keys)} keys of {self.steps} steps and {rows} rows"
            )

    @property
    def choice(self) -> Wish | Schedule | MeasuredSchedule:
        """How the computed steps are chosen."""
        if not self.keys:
            return Wish(self.speedup)
        if self.multistep is None and self.quality is None:
            return Schedule(self.keys, self.steps)
        return MeasuredSchedule(self.keys, self.steps, self.multistep, self.quality)
