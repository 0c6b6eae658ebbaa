"""Frozen configuration of step rehash, checked when it is made; public in ``accel/config.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from accel.core.key_steps import MeasuredSchedule, Multistep, Origin, Schedule, Wish
from accel.core.validate import from_dict, number, one_of, whole

Level = Literal["output", "features"]
Storage = Literal["native", "int8", "cpu"]
MOST = 5.0  # steps per computed one
MOST_WISHED = 3.6  # without a measurement: beyond it fewer steps are better (docs/rehash.md)
_SHORTER = " (beyond it a run of fewer steps, num_inference_steps, keeps more)"


@dataclass(frozen=True)
class RehashConfig:
    """Step rehash: denoising steps that can be predicted from earlier ones are skipped.

    The computed steps are chosen in one of three ways (``choice``): a ``Wish``, a ``Schedule``, or
    a ``MeasuredSchedule`` as ``accel.measure_steps`` finds it. The first fifth of the steps (fewer
    where a ``Wish`` leaves few) and the last one are always computed; 8 steps or fewer all are.

    Args:
        speedup: Steps of a run per computed one, 1 to 3.6, or less where outputs change too fast;
            to 5 for a measured schedule. Beyond 3.6 a run of fewer steps keeps more.
        keys: 0-based computed steps of a run of ``steps`` steps, stretched to other lengths.
        steps: Length of the run that ``keys`` belong to.
        level: "output" predicts the denoiser's output from its last ones. "features" keeps what a
            transformer's blocks added to the token stream, or the temporal feature of a UNet's last
            up-block, and still runs the last ``tail`` blocks, or layers of that up-block, on it.
        order: Degree in the timestep of the prediction: 0 repeats, 1 extrapolates linearly. None
            means 1 for outputs, but 0 with INT6 and INT4 attention, whose noise a line amplifies.
            With a ``Wish`` the line is damped, unless the run shows another to be far better.
        entries: 2 to 6 outputs kept per branch for a ``Wish``; 3 or more also try a polynomial.
        tail: Blocks or layers that still run at level "features".
        store: How outputs are kept: "native" unchanged, "int8" in 8 bits, "cpu" in CPU memory.
        multistep: Measured weights, used instead of ``order`` in runs like the measured ones.
        quality: dB PSNR that 9 of 10 jobs should keep; needs a measured schedule.
        origin: What the schedule was measured with; runs with something else are reported.

    Raises:
        ValueError: A value that is not allowed, or fields that do not go together.

    Example::

        accel.patch(pipe, plan=accel.Plan(rehash=accel.RehashConfig(speedup=1.9)))
    """

    speedup: float = 1.9
    keys: tuple[int, ...] = ()
    steps: int = 0
    level: Level = "output"
    order: int | None = None
    entries: int = 2
    tail: int = 1
    store: Storage = "native"
    multistep: Multistep | None = None
    quality: float | None = None
    origin: Origin | None = None

    def __post_init__(self) -> None:
        one_of("rehash level", self.level, get_args(Level))
        one_of("rehash store", self.store, get_args(Storage))
        if not isinstance(self.keys, (list, tuple)):
            raise ValueError(f"rehash keys must be a list of steps, got {self.keys!r}")
        object.__setattr__(self, "keys", tuple(whole("rehash key", k) for k in self.keys))
        number("rehash speedup", self.speedup)
        most = MOST if self.keys else MOST_WISHED
        if not 1.0 <= self.speedup <= most:
            raise ValueError(
                f"rehash speedup must be from 1 to {most:g}{'' if self.keys else _SHORTER}, got "
                f"{self.speedup}"
            )
        if self.order not in (None, 0, 1) or (self.order == 1 and self.level == "features"):
            got = f"got {self.order} at level {self.level!r}"
            raise ValueError(f"rehash order must be None, 0 or, at level 'output', 1, {got}")
        whole("rehash entries", self.entries, 2, 6)
        whole("rehash tail", self.tail, 0)
        whole("rehash steps", self.steps, 0)
        self._check_schedule()

    def _check_schedule(self) -> None:
        for name, kind in (("multistep", Multistep), ("origin", Origin)):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, from_dict(kind, value, f"rehash {name}"))
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
                "rehash multistep weights need level 'output' and keys of the same steps, got "
                f"level {self.level!r}, {len(self.keys)} keys of {self.steps} steps and {rows} rows"
            )

    @property
    def choice(self) -> Wish | Schedule | MeasuredSchedule:
        """The way the computed steps are chosen."""
        if not self.keys:
            return Wish(self.speedup)
        if self.multistep is None and self.quality is None:
            return Schedule(self.keys, self.steps)
        return MeasuredSchedule(self.keys, self.steps, self.multistep, self.quality)

    @property
    def chosen(self) -> bool:
        """Whether predictions are chosen during the run."""
        return self.order is None and self.level == "output" and not self.keys
