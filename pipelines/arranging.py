"""Which placement a job's model takes on this machine: simulated, before a weight is read."""

from __future__ import annotations

import inspect
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from accel.config import LinearConfig, RehashConfig
from accel.core.placed import kept
from accel.core.units import gib
from accel.families.family import Model
from accel.memory.decide import decide
from accel.memory.fit import Kept, Needs
from accel.memory.meta_models import Video, find, in_dtype
from accel.memory.pieces import PLAIN, Demand, demand
from accel.memory.placed_needs import of_placed
from accel.memory.placement import Decision, Placement, Room
from accel.memory.simulate import Peaks, simulate
from accel.memory.ways import COSTS, Way
from accel.pipelines.load_options import ALL, LoadOptions
from accel.pipelines.safetensors_header import numbers, weight_files

_AS_USUAL = (Way.RESIDENT, "")
ROUGH = 8192  # bytes of activations for each pixel of each frame, that no model known here needs


@dataclass(frozen=True)
class Techniques:
    """What of a job's plan decides its memory: slices, step rehash, 8-bit linear layers."""

    slices: int = 1
    rehash: RehashConfig | None = None
    linear: LinearConfig | None = None

    @classmethod
    def of(cls, job: Any) -> Techniques:
        """Return those of a job, of anything with a size, or of None."""
        plan = job.accel_plan() if hasattr(job, "accel_plan") else None
        if plan is None:
            return cls()
        slices = 1 if plan.slicing is None else plan.slicing.slices
        return cls(slices, plan.rehash, plan.linear)


@dataclass(frozen=True)
class Asked:
    """What a decision was asked about."""

    folder: Path
    video: Video
    room: Room
    dtype: torch.dtype
    options: LoadOptions
    job: Techniques
    skip: int
    always: bool

    def arranged(self, video: Video, job: Techniques) -> Arrangement:
        """Return what is decided about another size and plan."""
        return arranged(
            self.folder, video, self.room, self.dtype, options=self.options, job=job,
            skip=self.skip, always=self.always,
        )  # fmt: skip


@dataclass(frozen=True)
class Arrangement:
    """What is decided for a job, and the reason where nothing had to be simulated."""

    decision: Decision
    simulated: bool
    why: str = ""
    source: Asked | None = None

    @property
    def ways_left(self) -> int:
        """Return how many ways that fit need less memory than the one taken."""
        rows = self.decision.table
        after = rows.index(self.placement) + 1
        return sum(not row.why_not for row in rows[after:])

    @property
    def placement(self) -> Placement:
        """Return the way that is taken.

        Raises NoWay if none fits.
        """
        return self.decision.required()

    def needs(self, video: Video) -> Needs | None:
        """Return what a job of another size or plan needs where the weights lie now.

        None where all lie on the device, whole and as they are, as in any pipeline.
        """
        taken = self.placement
        if not self.simulated or self.source is None or (taken.way, taken.weights) == _AS_USUAL:
            return None
        source, kind = self.source, taken.weights or kind_of_weights(self.source.options)
        model, peaks = simulated(str(source.folder), video, source.dtype)
        demand = demand_of(str(source.folder), video, source.dtype, kind)
        return of_placed(demand, taken, source.room, Kept.of(model, peaks), peaks.packed)

    def __str__(self) -> str:
        return str(self.decision) if self.simulated else f"placement: {self.why}"


def arranged(
    folder: Path,
    video: Video,
    room: Room,
    dtype: torch.dtype,
    *,
    options: LoadOptions | None = None,
    job: Techniques | None = None,
    skip: int = 0,
    always: bool = False,
) -> Arrangement:
    """Return the placement for a model.

    A model that is small beside what is free lies there whole, without a simulation, which takes
    seconds.

    Args:
        folder: Of the pipeline.
        video: Pixels and frames of the largest job.
        room: What is free.
        dtype: Of weights and activations.
        options: How to load it.
        job: What the job's plan takes.
        skip: Ways that fitted by the numbers, and did not.
        always: Simulate even a small one.
    """
    options = options or LoadOptions()
    job = job or Techniques()
    asked = Asked(folder, video, room, dtype, options, job, skip, always)
    weights = stored_bytes(folder, dtype)
    rough = weights + ROUGH * video.width * video.height * video.frames
    small = rough <= room.device // 2 and not skip and not always
    if options.offload == "none":
        return _whole(asked, weights, "as asked for")
    if options.offload == "auto" and small:
        return _whole(asked, weights, f"{gib(weights)} of weights are small beside what is free")
    try:
        needed = demand_of(str(folder), video, dtype, kind_of_weights(options), job)
        allowed = {k: demand_of(str(folder), video, dtype, k, job) for k in options.allow}
    except (ValueError, OSError) as error:
        if skip:
            raise
        return _whole(asked, weights, f"whole, since its needs are unknown: {error}")
    decision = decide(
        needed, room, offload=options.offload, slices=job.slices, skip=skip, allowed=allowed
    )
    return Arrangement(decision, True, source=asked)


def arrangement_of(pipe: Any) -> Arrangement | None:
    """Return what was decided for a pipeline; None for one that was loaded as usual."""
    found: Arrangement | None = kept(pipe)
    return found


def _whole(asked: Asked, weights: int, why: str) -> Arrangement:
    row = Placement(Way.RESIDENT, 1, "whole", {"load": weights}, {}, COSTS[Way.RESIDENT])
    decision = Decision(row, (row,), asked.room)
    return Arrangement(decision, False, f"{Way.RESIDENT}: {why}", asked)


@lru_cache(maxsize=64)
def demand_of(
    folder: str,
    video: Video,
    dtype: torch.dtype,
    kind: str = PLAIN,
    job: Techniques | None = None,
) -> Demand:
    """Return what a job needs, simulated once for each size.

    Raises ValueError for a model that cannot be simulated, or not at this size.
    """
    model, peaks = simulated(folder, video, dtype)
    job = job or Techniques()
    kept = Kept.of(model, peaks).bytes(job.rehash)
    return demand(model, peaks, kind=kind, kept=kept, packed=peaks.packed.bytes(job.linear))


@lru_cache(maxsize=64)
def simulated(folder: str, video: Video, dtype: torch.dtype) -> tuple[Model, Peaks]:
    """Return a stored model and its peaks, simulated once for each size; raises ``ValueError``."""
    model = in_dtype(find(folder), dtype)
    return model, simulate(model, video)


def kind_of_weights(options: LoadOptions) -> str:
    """Return the kind of weights that a job allows for all components."""
    return str(options.weights.get(ALL, PLAIN))


def usual_video(pipeline: Any) -> Video:
    """Return the size that a pipeline's call makes if none is given; 1024 x 1024 if unsaid."""
    known = inspect.signature(pipeline.__call__).parameters

    def default(name: str, otherwise: int) -> int:
        value = known[name].default if name in known else None
        return value if isinstance(value, int) else otherwise

    return Video(default("width", 1024), default("height", 1024), default("num_frames", 1))


def stored_bytes(folder: Path, dtype: torch.dtype) -> int:
    """Return the bytes of all weights in a folder, as they are in ``dtype``."""
    total = 0
    for part in folder.iterdir():
        for file in weight_files(part):
            with suppress(ValueError):  # whoever reads it says what is wrong with it
                total += numbers(file) * dtype.itemsize
    return total
