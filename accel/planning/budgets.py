"""Make a plan for budgets of memory, quality and speed.

For memory alone the plan has the fewest slices that fit, simulated before anything runs. For
quality (dB PSNR) or speed it has what keeps the budgets together, found by running plans on jobs
(``plan_search.py``), or for quality the fastest measured schedule of step rehash.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from accel.calibration.ladders import Effort
from accel.calibration.plan_runs import Job, Peak, Say
from accel.calibration.step_measurement import Measurement
from accel.config import RehashConfig, SlicingConfig
from accel.core.diffusers_bridge import offloads
from accel.core.origin import plan_origin_of
from accel.core.placed import kept
from accel.core.plan_origin import PlanOrigin
from accel.core.units import gib, parse_bytes
from accel.memory import fit
from accel.memory.fit import DoesNotFit, Needs
from accel.memory.meta_models import Size, Video
from accel.memory.run_peak import process_peak, run_peak
from accel.planning.plan_search import Found, PlanSearch
from accel.planning.wishes import NoPlan, Wishes
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
    """Return the plan for budgets; ``accel.plan`` says what they are and what is raised."""
    wishes = check(memory, quality, speed, measured, jobs)
    if (speed is not None or quality is not None) and jobs:
        best = search_plan(pipe, jobs, quality, speed=speed, memory=memory, job=job).plan
        return replace(best, name=named(wishes, memory, best.name))
    rehash = None if quality is None else _schedule(quality, measured)
    origin = None if rehash is None else _origin(measured, rehash)
    found = Plan(wishes.name(), attention=None, rehash=rehash, origin=origin)
    return found if memory is None else within(pipe, job, memory, found)


def check(
    memory: str | int | None,
    quality: float | None,
    speed: float | None,
    measured: Measurement | None,
    jobs: Sequence[Job],
) -> Wishes:
    """Return the budgets; raise ValueError for none, or for what cannot be answered with them."""
    wishes = Wishes(None if memory is None else parse_bytes(memory), quality, speed)
    if jobs and measured is not None:
        raise ValueError("give jobs to search on, or what measure_steps measured, not both")
    if speed is not None and not jobs:
        raise ValueError(f"speed={speed:g} needs jobs=[...]: plans run on them, and are timed")
    return wishes


def needs_of(pipe: Any, job: Size) -> Needs:
    """Return what a job needs on a pipeline, where its weights lie."""
    arrangement = kept(pipe)
    found: Needs | None = None if arrangement is None else arrangement.needs(_video(job))
    return fit.of_loaded(pipe, _video(job)) if found is None else found


def named(wishes: Wishes, memory: str | int | None, name: str) -> str:
    """Return a plan's name after the budgets that it was found for."""
    start = [] if memory is None else [f"within {memory}"]
    return ": ".join(filter(None, (", ".join(filter(None, (*start, wishes.name()))), name)))


def within(pipe: Any, job: Size, memory: str | int, found: Plan) -> Plan:
    """Return a plan with the fewest slices with which a job fits ``memory``; raises as ``plan``."""
    slicing = _slicing(pipe, job, memory, found)
    name = f"within {memory}" + (f", {found.name}" if found.name else "")
    origin = found.origin
    if origin is None:
        made = plan_origin_of(pipe, "memory")
        origin = replace(made, width=job.width, height=job.height, frames=job.frames)
    return replace(found, name=name, slicing=slicing, origin=origin)


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
    search = PlanSearch(
        pipe, jobs, needs=None if job is None else lambda: needs_of(pipe, job), largest=largest,
        effort=effort, peak=_peak(pipe, job), say=say,
    )  # fmt: skip
    return search.within(memory=memory, quality=quality, speed=speed)


def _peak(pipe: Any, job: Size | None) -> Peak:
    """Return what measures as the needs of a pipeline are counted."""
    arrangement = kept(pipe)
    if job is None or arrangement is None or arrangement.needs(_video(job)) is None:
        return run_peak
    return process_peak


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


def _slicing(pipe: Any, job: Size, memory: str | int, found: Plan) -> SlicingConfig | None:
    budget = parse_bytes(memory)
    needs = needs_of(pipe, job)
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
