"""Make a plan for a budget of memory, of quality, or of both.

For memory the plan has the fewest slices that fit, simulated before anything runs. For quality (dB
PSNR) it has the fastest precision and step rehash that keep it together, found by running them, or
the fastest measured schedule of step rehash.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from accel.calibration.step_measurement import Measurement
from accel.calibration.whole_plans import Job, search_plan
from accel.config import RehashConfig, SlicingConfig
from accel.core.diffusers_bridge import offloads
from accel.core.origin import plan_origin_of
from accel.core.plan_origin import PlanOrigin
from accel.core.units import gib, parse_bytes
from accel.memory import fit
from accel.memory.fit import DoesNotFit
from accel.memory.meta_models import Video
from accel.plans import Plan


class Size(Protocol):
    """The attributes of a job that are read: pixels and frames."""

    @property
    def width(self) -> int | None:
        """Width in pixels."""

    @property
    def height(self) -> int | None:
        """Height in pixels."""

    @property
    def frames(self) -> int | None:
        """Number of frames."""


def plan(
    pipe: Any,
    job: Size,
    *,
    memory: str | int | None = None,
    quality: float | None = None,
    measured: Measurement | None = None,
    jobs: Sequence[Job] = (),
) -> Plan:
    """Return the plan for a budget of memory, of quality, or of both.

    Within ``memory`` it has the fewest slices with which the job fits, and decodes the VAE in
    strips if that is needed. For ``quality`` it has the fastest precision and step rehash that
    keep it in 9 of 10 jobs like ``jobs``, on which they run (``search_plan``); or the fastest
    schedule of ``measured``. ``accel/memory/fit.py`` says what memory is counted.

    Args:
        pipe: A loaded diffusers pipeline.
        job: Anything with ``width``, ``height`` (pixels) and ``frames``.
        memory: Bytes, or text such as "8GiB".
        quality: dB PSNR against the pipeline's own output.
        measured: What ``accel.measure_steps(pipe, jobs)`` returned.
        jobs: Jobs to search on, see ``accel.search_plan``; instead of ``measured``.

    Returns:
        A plan to patch with.

    Raises:
        ValueError: No budget at all, a quality without jobs or a measurement, or with both, a job
            without a size, a
            pipeline whose classes cannot be simulated, or a phase that does not fit: the error says
            what it needs and what would help.

    Example::

        plan = accel.plan(pipe, job, memory="8GiB")
        accel.patch(pipe, plan=plan)
    """
    if memory is None and quality is None:
        raise ValueError("give a budget: memory='8GiB', quality=36.0 (dB PSNR), or both")
    if jobs and measured is not None:
        raise ValueError("give jobs to search on, or what measure_steps measured, not both")
    if quality is not None and jobs:
        best = search_plan(pipe, jobs, quality).plan
        found = replace(best, name=f"{quality:g} dB: {best.name}")
    else:
        rehash = None if quality is None else _schedule(quality, measured)
        found = Plan(
            f"{quality:g} dB" if quality else "", attention=None, rehash=rehash,
            origin=None if rehash is None else _origin(measured, rehash),
        )  # fmt: skip
    return found if memory is None else within(pipe, job, memory, found)


def within(pipe: Any, job: Size, memory: str | int, found: Plan) -> Plan:
    """Return a plan with the fewest slices with which a job fits ``memory``; raises as ``plan``."""
    slicing = _slicing(pipe, job, memory, found.rehash)
    name = f"within {memory}" + (f", {found.name}" if found.name else "")
    origin = found.origin
    if origin is None:
        made = plan_origin_of(pipe, "memory")
        origin = replace(made, width=job.width, height=job.height, frames=job.frames)
    return replace(found, name=name, slicing=slicing, origin=origin)


def _schedule(quality: float, measured: Measurement | None) -> RehashConfig:
    if measured is None:
        raise ValueError(
            f"quality={quality:g} dB needs a measurement of this pipeline: "
            "m = accel.measure_steps(pipe, jobs) runs a few jobs once (m.save(file) keeps it), "
            "then accel.plan(pipe, job, quality=..., measured=m); without one, ask for a speed-up: "
            "accel.Plan(rehash=accel.RehashConfig(speedup=1.9)); or give jobs=[...], and plans run "
            "on them until one keeps it"
        )
    return measured.at_quality(quality)


def _origin(measured: Measurement | None, rehash: RehashConfig) -> PlanOrigin | None:
    """Return a measurement's origin with what it says of a schedule."""
    if measured is None or measured.origin is None:
        return None
    promised = "in 9 of 10 jobs, measured" if rehash.quality is not None else ""
    return replace(
        measured.origin, decibels=rehash.quality, decibels_are=promised,
        speedup=rehash.speedup, speedup_is="steps per computed one",
    )  # fmt: skip


def _slicing(
    pipe: Any, job: Size, memory: str | int, rehash: RehashConfig | None
) -> SlicingConfig | None:
    budget = parse_bytes(memory)
    needs = fit.of_loaded(pipe, _video(job))
    try:
        slices = needs.fewest_slices(budget, rehash)
    except DoesNotFit as error:
        raise ValueError(_too_much(pipe, needs, error)) from error
    return SlicingConfig(slices, 1) if slices > 1 else None


def _video(job: Size) -> Video:
    if not job.width or not job.height or not job.frames:
        raise ValueError(
            "a plan within a memory budget needs the job's width, height and frames, got "
            f"{job.width} x {job.height}, {job.frames} frames"
        )
    return Video(job.width, job.height, job.frames)


def _too_much(pipe: Any, needs: fit.Needs, error: DoesNotFit) -> str:
    """Say what a phase needs and what would help."""
    offload = "" if offloads(pipe) else "; pipe.enable_model_cpu_offload() frees other weights"
    smaller = "choose a smaller size or fewer frames"
    what, help_, last = {
        "decode": ("decoding", _decoding_help(pipe, needs), smaller),
        "denoise": (f"denoising in {needs.slices} slices", offload, smaller),
        "encode": (
            "text encoding", offload, "encode prompts elsewhere and pass prompt_embeds"
        ),
    }[error.phase]  # fmt: skip
    return (
        f"{what} needs {gib(error.needed)}, weights included, but the budget is "
        f"{gib(error.budget)}{help_}; or {last}"
    )


def _decoding_help(pipe: Any, needs: fit.Needs) -> str:
    """Return diffusers' own settings that decode in less memory, as text."""
    calls = {"tiled": "enable_tiling", "frame by frame": "enable_slicing"}
    return "".join(
        f"; pipe.vae.{call}() decodes {way} in {gib(size)}"
        for way, size in needs.others.items()
        for start, call in calls.items()
        if way.startswith(start) and hasattr(pipe.vae, call)
    )
