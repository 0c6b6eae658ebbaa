"""What the form's job will need, said before it runs.

Memory is simulated from the model's configurations (``accel/memory/fit.py``), once for each model
and size, in a process of its own. Decibels and seconds come from like runs of this page. The rule:
of the accelerations that keep the decibels, the fastest; then the fewest slices that fit in the
memory, as ``accel.plan`` picks them.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from accel.config import SlicingConfig
from accel.memory.fit import Needs
from accel.pipelines.batch.helper_process import Helper
from accel.pipelines.batch.identity import digest
from accel.pipelines.batch.simulated import (
    NOT_LOCAL,
    config_folder,
    other_weights,
    usual_dtype,
)
from accel.pipelines.job import Job, JobError
from accel.plans import Plan

ACCELERATIONS = ("fast", "balanced", None)  # without a time, the first that will do


# ----------------------------------------------------------------------------------------- memory


def simulate_needs(request: tuple[str, int, int, int, str]) -> Needs | str:
    """Simulate (folder, width, height, frames, dtype), or say why that cannot be."""
    import torch

    from accel.memory.fit import of_model
    from accel.memory.meta_models import Video, find, in_dtype

    folder, width, height, frames, dtype = request
    try:
        model = in_dtype(find(folder), getattr(torch, dtype))
        others, whole = other_weights(folder, dtype)
        video = Video(width, height, frames)
        return of_model(model, video, others=others, at_least=not whole)
    except Exception as error:  # a prediction must not cost the page
        return f"cannot be simulated: {error}"


class Simulations:
    """Needs of jobs, each model and size once.

    ``close`` ends the process that simulates.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._helper: Helper | None = None
        self._known: dict[str, Needs] = {}

    def known(self, job: Job) -> Needs | None:
        """Return what was simulated before."""
        return self._known.get(shape(job))

    def needs(self, job: Job) -> Needs:
        """Simulate a resolved job, which may take a minute.

        Raises JobError if that cannot be.
        """
        folder = config_folder(job.model)
        if folder is None or not (job.width and job.height and job.frames):
            why = NOT_LOCAL if folder is None else "it leaves its size to the pipeline"
            raise JobError(f"the memory of {job.model} cannot be simulated: {why}")
        key = shape(job)
        with self._lock:
            if key not in self._known:
                self._helper = self._helper or Helper(simulate_needs)
                request = (str(folder), job.width, job.height, job.frames, usual_dtype())
                answer = self._helper.ask(request)
                if isinstance(answer, str):
                    self._end()
                    raise JobError(f"the memory of {job.model} {answer}")
                self._known[key] = answer
        return self._known[key]

    def _end(self) -> None:
        helper, self._helper = self._helper, None
        if helper is not None:
            helper.close()

    def close(self) -> None:
        """End what is simulated now, too."""
        self._end()


def shape(job: Job) -> str:
    """Return what decides the memory of an unsliced job."""
    return digest([job.model, job.width, job.height, job.frames])


# ---------------------------------------------------------------------------- quality and seconds


@dataclass(frozen=True)
class Choice:
    """An acceleration by its preset, None for none.

    ``db`` that 9 of 10 further jobs should reach, None if no like run was measured; ``runs``
    measured; ``seconds`` None if unknown.
    """

    preset: str | None
    db: float | None
    runs: int
    seconds: float | None

    def keeps(self, quality: float) -> bool:
        """Return whether it should keep ``quality`` dB.

        What nobody measured keeps 0.
        """
        return quality <= 0 or (self.db is not None and self.db >= quality)


def expected(psnr: Iterable[float]) -> float | None:
    """Return the dB that 9 of 10 further jobs should reach, None without a measured one."""
    from accel.calibration.step_measurement import Point

    values = tuple(psnr)
    return Point((), values, "runs of the page").expected if values else None


def best(choices: Iterable[Choice], quality: float) -> Choice:
    """Return the fastest that keeps ``quality``; where no time is known, the first."""
    fits = [choice for choice in choices if choice.keeps(quality)]
    return min(fits, key=lambda c: math.inf if c.seconds is None else c.seconds)


@dataclass(frozen=True)
class Predicted:
    """The plan for a job.

    An acceleration in ``slices``, and peaks by phase beside those of the job as it comes.
    """

    choice: Choice
    slices: int
    peaks: Mapping[str, int]
    plain: Mapping[str, int]
    at_least: bool = False
    choices: tuple[Choice, ...] = field(default=(), repr=False)

    @property
    def name(self) -> str:
        """Such as "balanced, 16 slices"."""
        return f"{self.choice.preset or 'none'}, {slices_text(self.slices)}"

    def settings(self) -> dict[str, Any]:
        """``preset`` and ``plan`` of a job."""
        preset = self.choice.preset
        if self.slices == 1:
            return {"preset": preset, "plan": None}
        plan = Plan("none", attention=None) if preset is None else Plan.preset(preset)
        plan = replace(plan, name=self.name, slicing=SlicingConfig(self.slices, 1))
        return {"preset": None, "plan": plan.to_dict()}


def slices_text(slices: int) -> str:
    """Return it in words."""
    return "not sliced" if slices == 1 else f"{slices} slices"


def predict(needs: Needs, choices: tuple[Choice, ...], memory: float, quality: float) -> Predicted:
    """Return the plan within ``memory`` GiB that keeps ``quality`` dB.

    Raises JobError if none fits.
    """
    choice = best(choices, quality)
    plan = Plan("none", attention=None) if choice.preset is None else Plan.preset(choice.preset)
    try:
        slices = needs.fewest_slices(round(memory * 2**30), plan.rehash, plan.linear)
    except ValueError as error:
        raise JobError(str(error)) from error
    peaks = needs.phases(slices, plan.rehash, plan.linear)
    return Predicted(choice, slices, peaks, needs.phases(1), needs.at_least, choices)
