"""Where a plan comes from: what measured it, on which model and machine, and what it promises.

An origin changes nothing that a plan does, so it is no part of what plans are compared by, nor of
the ids of jobs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from typing import Any

from accel.core.key_steps import Origin
from accel.core.plain_values import shown
from accel.core.validate import from_dict, number, one_of, text, whole

MAKERS = ("calibrate", "search", "measure_steps", "memory", "hand")
_MAPPINGS = ("classes", "sizes", "versions", "machine")
_COUNTS = ("steps", "width", "height", "frames", "jobs")
_TEXTS = ("pipeline", "decibels_are", "speedup_is")


@dataclass(frozen=True)
class PlanOrigin:
    """Where a plan comes from. What is unknown is None or empty.

    Args:
        made_by: One of ``MAKERS``.
        date: Day in UTC, such as "2026-11-30".
        pipeline: Class name of the pipeline.
        classes: Class names of its denoisers by component name.
        sizes: Hashes of their configurations by component name.
        measured: Hashes of their weights, and the sampler.
        steps: Denoising steps of the jobs.
        inputs: Sizes of a denoiser's input without the batch, such as [16, 5, 8, 8].
        width: Pixels of the jobs' frames.
        height: Pixels of the jobs' frames.
        frames: Frames of a job.
        jobs: How many jobs were measured.
        versions: Versions of packages by name.
        machine: Processor, instruction set, threads and device by those names.
        decibels: PSNR in dB that the plan should keep.
        decibels_are: What these are, such as "expected in 9 of 10 jobs, measured".
        speedup: How many times as fast the plan is.
        speedup_is: What that is, such as "of whole runs, measured".

    Raises:
        ValueError: A value of another type.
    """

    made_by: str
    date: str = ""
    pipeline: str = ""
    classes: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, str] = field(default_factory=dict)
    measured: Origin | None = None
    steps: int | None = None
    inputs: tuple[int, ...] = ()
    width: int | None = None
    height: int | None = None
    frames: int | None = None
    jobs: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, str] = field(default_factory=dict)
    decibels: float | None = None
    decibels_are: str = ""
    speedup: float | None = None
    speedup_is: str = ""

    def __post_init__(self) -> None:
        one_of("origin made_by", self.made_by, MAKERS)
        for name in _TEXTS:
            text(f"origin {name}", getattr(self, name))
        self._check_date()
        for name in _MAPPINGS:
            object.__setattr__(self, name, _texts(f"origin {name}", getattr(self, name)))
        if self.measured is not None:
            object.__setattr__(
                self, "measured", from_dict(Origin, self.measured, "origin measured")
            )
        for name in _COUNTS:
            if (value := getattr(self, name)) is not None:
                whole(f"origin {name}", value, 1)
        if not isinstance(self.inputs, (list, tuple)):
            raise ValueError(f"origin inputs must be a list of sizes, got {shown(self.inputs)}")
        sizes = tuple(whole("origin input size", size, 0) for size in self.inputs)
        object.__setattr__(self, "inputs", sizes)
        for name in ("decibels", "speedup"):
            if (value := getattr(self, name)) is not None:
                number(f"origin {name}", value)

    def _check_date(self) -> None:
        text("origin date", self.date)
        try:
            if self.date:
                date.fromisoformat(self.date)
        except ValueError:
            raise ValueError(
                f"origin date must be a day such as '2026-11-30', got {shown(self.date)}"
            ) from None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, without what is unknown."""
        return {k: v for k, v in asdict(self).items() if v not in (None, "", {}, ())}

    def measured_on(self, steps: int | None, inputs: tuple[int, ...], frames: Any) -> PlanOrigin:
        """Return the origin with what a run had: its steps, input, and frames [F, H, W, 3]."""
        count, height, width = frames.shape[:3]
        size = {"frames": count, "height": height, "width": width}
        return replace(self, steps=steps, inputs=inputs, **size)

    @property
    def promise(self) -> str:
        """The PSNR that the plan should keep, as text; "what it was measured for" without one."""
        return f"{self.decibels:.1f} dB" if self.decibels else "what it was measured for"

    def __str__(self) -> str:
        parts = [f"made by {self.made_by}"]
        parts += [f"on {self.date}"] if self.date else []
        parts += [f"for {self.pipeline}"] if self.pipeline else []
        parts += [self._size()] if self._size() else []
        parts += [f"{self.steps} steps"] if self.steps else []
        parts += [f"{self.jobs} job{'s' * (self.jobs > 1)}"] if self.jobs else []
        if self.decibels is not None:
            parts.append(f"{self.decibels:.1f} dB {self.decibels_are}".rstrip())
        if self.speedup is not None:
            parts.append(f"{self.speedup:.2f}x {self.speedup_is}".rstrip())
        parts += [", ".join(f"{key} {value}" for key, value in self.machine.items())]
        return ", ".join(filter(None, parts))

    def _size(self) -> str:
        if not (self.width and self.height):
            return ""
        return f"{self.width}x{self.height}" + (f"x{self.frames}" if self.frames else "")

    def other_model(self, now: PlanOrigin) -> Iterator[str]:
        """Yield a line for each thing about the model that is not as it was; see ``moved``."""
        if self.pipeline and self.pipeline != now.pipeline:
            yield (
                f"made for {self.pipeline}, used on {now.pipeline}: {self.promise} is not promised"
            )
        for name, known in self.classes.items():
            here = now.classes.get(name)
            if here is None:
                yield f"made for a denoiser {name!r} of class {known}, which is not there"
            elif here != known:
                yield f"made for {known} as {name!r}, used on {here}: its sites may be others"
            elif self.sizes.get(name, "") not in ("", now.sizes.get(name)):
                yield f"made for {known} with another configuration: its sizes or sites differ"

    def other_machine(self, now: PlanOrigin) -> Iterator[str]:
        """Yield a line where its times, and choices made for speed, may not hold."""
        names = ("machine", "versions")
        pairs = [(getattr(self, name), getattr(now, name)) for name in names]
        found = [
            f"{key} {value} (here {here.get(key, 'none')})"
            for known, here in pairs
            for key, value in known.items()
            if here.get(key) != value
        ]
        if found:
            yield (
                f"made with {', '.join(found)}: its speed, and what was chosen for speed, may "
                "differ here; what its integer precisions keep does not depend on the machine"
            )

    def other_run(self, steps: int | None, inputs: tuple[int, ...]) -> Iterator[str]:
        """Yield a line for each thing that a run has otherwise: its steps, its size."""
        if self.steps and steps and self.steps != steps:
            asked = f"made for {self.steps} steps, this run has {steps}"
            yield f"{asked}: {self.promise} is not promised"
        if self.inputs and inputs and self.inputs != inputs:
            size = f" ({self._size()})" if self._size() else ""
            yield (
                f"made for inputs of {list(self.inputs)}{size}, this run has {list(inputs)}: "
                f"{self.promise} is not promised"
            )


def _texts(name: str, value: Any) -> dict[str, str]:
    """Return a mapping of text to text; raises ValueError for anything else."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be a mapping of texts, got {shown(value)}")
    for key, word in value.items():
        text(f"key of {name}", key)
        text(f"{name} {key!r}", word)
    return dict(value)
