"""Make a plan for budgets of memory, quality and speed.

For memory alone the plan has the fewest slices that fit, simulated before anything runs. For
quality (dB PSNR) or speed it has what keeps the budgets together, found by running plans on jobs
(``plan_search.py``), or for quality the fastest measured schedule of step rehash.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from accel.calibration.ladders import Effort
from accel.calibration.plan_runs import Job, Say
from accel.calibration.step_measurement import Measurement
from accel.config import RehashConfig, SlicingConfig
from accel.core.diffusers_bridge import offloads
from accel.core.units import gib, parse_bytes
from accel.memory import fit
from accel.memory.fit import DoesNotFit
from accel.memory.meta_models import Video
from accel.planning.plan_search import Found, PlanSearch
from accel.planning.wishes import NoPlan, Wishes
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
        pipe: A loaded diffusers pipeline.
        job: Anything with ``width``, ``height`` (pixels) and ``frames``.
        memory: Bytes, or text such as "8GiB".
        quality: dB PSNR against the pipeline's own output.
        speed: Least times as fast as the plain pipeline.
        measured: What ``accel.measure_steps(pipe, jobs)`` returned.
        jobs: Jobs to search on, see ``accel.PlanSearch``; instead of ``measured``. Memory is
            confirmed on the first.

    Returns:
        A plan to patch with.

    Raises:
        NoPlan: The budgets together are too much; it has the plans that miss one of them least.
        ValueError: No budget at all, a quality or speed without jobs or a measurement, or with
            both, a job without a size, a pipeline whose classes cannot be simulated, or a phase
            that does not fit: the error says what it needs and what would help.

    Example::

        plan = accel.plan(pipe, job, memory="8GiB")
        accel.patch(pipe, plan=plan)
    """
    limit = None if memory is None else parse_bytes(memory)
    wishes = Wishes(limit, quality, speed)
    if jobs and measured is not None:
        raise ValueError("give jobs to search on, or what measure_steps measured, not both")
    if (speed is not None or quality is not None) and jobs:
        search = PlanSearch(pipe, jobs, needs=lambda: fit.of_loaded(pipe, _video(job)))
        best = search.within(memory=memory, quality=quality, speed=speed).plan
        return replace(best, name=named(wishes, memory, best.name))
    if speed is not None:
        raise ValueError(f"speed={speed:g} needs jobs=[...]: plans run on them, and are timed")
    rehash = None if quality is None else _schedule(quality, measured)
    found = Plan(wishes.name(), attention=None, rehash=rehash)
    return found if memory is None else within(pipe, job, memory, found)


def named(wishes: Wishes, memory: str | int | None, name: str) -> str:
    """Return a plan's name after the budgets that it was found for."""
    start = [] if memory is None else [f"within {memory}"]
    return ": ".join(filter(None, (", ".join(filter(None, (*start, wishes.name()))), name)))


def within(pipe: Any, job: Size, memory: str | int, found: Plan) -> Plan:
    """Return a plan with the fewest slices with which a job fits ``memory``; raises as ``plan``."""
    slicing = _slicing(pipe, job, memory, found)
    name = f"within {memory}" + (f", {found.name}" if found.name else "")
    return replace(found, name=name, slicing=slicing)


def search_plan(
    pipe: Any,
    jobs: Sequence[Job],
    quality: float | None = None,
    *,
    speed: float | None = None,
    memory: str | int | None = None,
    job: Size | None = None,
    largest: int = 0,
    effort: Effort | None = None,
    say: Say = lambda text: None,
) -> Found:
    """Return the plan for budgets, and what was measured on a few jobs to find it.

    Args:
        pipe: A diffusers pipeline, not patched.
        jobs: Two or more, see ``accel.PlanSearch``.
        quality: dB PSNR to the pipeline's own output that 9 of 10 further jobs should keep.
        speed: Least times as fast as the plain pipeline; of those plans the one that keeps most.
        memory: Bytes that a job may take, or text such as "8GiB".
        job: The size for which memory is simulated; anything with ``width``, ``height`` (pixels)
            and ``frames``.
        largest: The one of ``jobs`` on which it is confirmed.
        effort: What is measured, see ``accel.PlanSearch``.
        say: Called with one line of text after each plan.

    Raises:
        NoPlan: The budgets together are too much; it has the plans that miss one of them least.
        ValueError: Fewer than two jobs, no budget or a wrong one, or a memory without ``job``.
    """
    if memory is not None and job is None:
        raise ValueError("a memory needs job=..., anything with width, height and frames")
    needs = None if job is None else lambda: fit.of_loaded(pipe, _video(job))
    search = PlanSearch(pipe, jobs, needs=needs, largest=largest, effort=effort, say=say)
    return search.within(memory=memory, quality=quality, speed=speed)


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


def _slicing(pipe: Any, job: Size, memory: str | int, found: Plan) -> SlicingConfig | None:
    budget = parse_bytes(memory)
    needs = fit.of_loaded(pipe, _video(job))
    try:
        slices = needs.fewest_slices(budget, found.rehash, found.linear)
    except DoesNotFit as error:
        raise NoPlan(Wishes(budget), why=_too_much(pipe, needs, error)) from error
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
