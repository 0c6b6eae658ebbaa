"""``accel.plan``: a plan for a loaded pipeline, or for a model that is placed in memory first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from accel.calibration.plan_runs import Job
from accel.calibration.step_measurement import Measurement
from accel.memory.meta_models import Size
from accel.pipelines.fitting import load
from accel.planning import budgets
from accel.plans import Plan


def plan(
    pipe: Any,
    job: Size,
    *,
    memory: str | int | None = None,
    quality: float | None = None,
    speed: float | None = None,
    measured: Measurement | None = None,
    jobs: Sequence[Job] = (),
) -> Plan:
    """Return the plan for a budget of memory, quality or speed, or of several.

    Within ``memory`` it has the fewest slices with which the job fits, and decodes the VAE in
    strips if that is needed. For ``quality`` it is the fastest that keeps it in 9 of 10 jobs like
    ``jobs``, on which plans run; or it has the fastest schedule of ``measured``. With a ``speed``
    it is the one that keeps most. ``accel/memory/fit.py`` says what memory is counted.

    Args:
        pipe: A loaded diffusers pipeline. Or a model, as in ``accel.load``: it is loaded within
            ``memory`` in the cheapest way that fits, as the same call of ``accel.load`` does.
        job: Anything with ``width``, ``height`` (pixels) and ``frames``.
        memory: Bytes, or text such as "8GiB". Of a pipeline whose weights ``accel.load`` placed
            elsewhere, bytes of the card, or on a CPU of the whole process.
        quality: dB PSNR against the pipeline's own output.
        speed: Least times as fast as the plain pipeline.
        measured: What ``accel.measure_steps(pipe, jobs)`` returned.
        jobs: Jobs to search on, see ``accel.PlanSearch``; instead of ``measured``. Memory is
            confirmed on the first.

    Returns:
        A plan to patch with.

    Raises:
        NoPlan: The budgets together are too much; it has the plans that miss one of them least.
        NoWay: A model's weights fit in no way.
        ValueError: No budget at all, a quality or speed without jobs or a measurement, or with
            both, a job without a size, a pipeline whose classes cannot be simulated, or a phase
            that does not fit: the error says what it needs and what would help.

    Example::

        plan = accel.plan(pipe, job, memory="8GiB")
        accel.patch(pipe, plan=plan)
    """
    budgets.check(memory, quality, speed, measured, jobs)
    placed = load(pipe, memory=memory, job=job) if isinstance(pipe, str) else pipe
    return budgets.plan(
        placed, job, memory=memory, quality=quality, speed=speed, measured=measured, jobs=jobs
    )
