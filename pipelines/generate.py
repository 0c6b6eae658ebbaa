"""One job to frames: checks it against the pipeline, patches, generates, and returns what ran."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from accel.core.run_log import logger
from accel.core.run_pipeline import shown, to_uint8
from accel.core.structure import denoisers
from accel.patching import Handle, patched
from accel.pipelines.checkpoint import StepCheckpoint
from accel.pipelines.inputs.binding import Bound, bind, bound, check_call, frame_step, takes
from accel.pipelines.inputs.media import Used
from accel.pipelines.job import Job, JobError
from accel.pipelines.led_run import animation_of, computing_led_steps, controls, dual_clock
from accel.pipelines.limits import of_pipe
from accel.pipelines.loading.lora_files import parse
from accel.pipelines.loading.loras import fit, switched
from accel.pipelines.motion.clocks import DualClock
from accel.pipelines.motion.latents import latent_geometry
from accel.pipelines.motion.prepared import Prepared, prepare
from accel.pipelines.prompt_tokens import Cut, watched
from accel.reporting import Report

OnStep = Callable[[int, int], None]
OnLatents = Callable[[Any, torch.Tensor], None]


@dataclass(frozen=True)
class Result:
    """What one generation gave.

    Frames uint8 [F, H, W, 3]; wall seconds of the pipeline call, without previews and saved steps;
    the report, None if not accelerated; what the tokenizers cut off the prompts; what became of the
    job's pictures and videos.
    """

    frames: np.ndarray
    seconds: float
    report: Report | None
    cuts: tuple[Cut, ...] = ()
    inputs: tuple[Used, ...] = ()


def check(pipe: Any, job: Job) -> None:
    """Raise JobError if ``job`` does not fit ``pipe``.

    Checked are the model's limits, what the pipeline's call takes, the job's files, and its motion.
    """
    _checked(pipe, job)


def _checked(pipe: Any, job: Job) -> Prepared | None:
    """``check``, and the job's motion, which is long work for a driving video."""
    try:
        limits = of_pipe(pipe)
        limits.check(job)
        _check_call(pipe, job)
        fit(pipe, parse(job.loras))
        return limits.motion(job)
    except ValueError as error:
        raise JobError(f"job {job.file_name!r}: {error}") from error


def motion_latents(pipe: Any, job: Job) -> torch.Tensor:
    """Return warped initial latents of a job with ``motion``, as its pipeline takes them.

    Raises ValueError if that cannot be done.
    """
    return _latents(pipe, job, prepare(job, latent_geometry(pipe)))


def _latents(pipe: Any, job: Job, motion: Prepared) -> torch.Tensor:
    latents = motion.latents(job.seed)
    return latents if motion.geometry.casts else latents.to(_prompt_dtype(pipe))


def _prompt_dtype(pipe: Any) -> torch.dtype:
    """Return the dtype of a pipeline's encoded prompts."""
    encoders = (getattr(pipe, name, None) for name in ("text_encoder", "image_encoder"))
    parts: list[Any] = [encoder for encoder in encoders if encoder is not None]
    dtype: torch.dtype = [*parts, *denoisers(pipe).values()][0].dtype
    return dtype


def generate(
    pipe: Any,
    job: Job,
    *,
    on_step: OnStep | None = None,
    on_latents: OnLatents | None = None,
    checkpoint: StepCheckpoint | None = None,
    on_cut: Callable[[str], None] = logger.warning,
) -> Result:
    """Run ``job`` on a loaded pipeline, patched with the job's plan for the length of the call.

    ``on_step(done, steps)`` is called after every denoising step; what it raises ends the run.
    Before it ``on_latents(pipe, latents)`` may look at the latents, where the pipeline shows them.
    ``checkpoint`` saves steps, and takes those over that it holds. ``on_cut`` is told what a
    tokenizer cuts off a prompt, what of a LoRA has no effect, and where the pipeline makes another
    size than the job's. Raises JobError for a job that
    does not fit the pipeline; the pipeline is left as it was in every case.
    """
    job = job.resolved()
    motion = _checked(pipe, job)
    plan = job.accel_plan()
    prompts = {"prompt": job.prompt, "negative prompt": job.negative_prompt}
    given = _given(pipe, job)
    crude = animation_of(job) if job.following.animated else None
    with (
        watched(pipe, prompts, on_cut) as cuts,
        switched(pipe, job.loras, on_cut),
        nullcontext() if plan is None else patched(pipe, plan=plan) as handle,
    ):
        arguments, clock = dict(given.arguments), None
        if motion is not None and job.following.noise:
            arguments["latents"] = _latents(pipe, job, motion)
        if crude is not None and job.following.way == "control":
            arguments |= controls(pipe, crude[0])
        elif motion is not None and crude is not None:
            clock = dual_clock(pipe, job, crude[0], motion.geometry, arguments.get("latents"))
        with computing_led_steps(clock):
            frames, seconds = _run(
                pipe, job, arguments, on_step, on_latents, checkpoint, handle, clock
            )
        report = None if handle is None else handle.report()
    if told := _other_size(job, frames):
        on_cut(told)
    shown = any(used.key == "image" for used in given.inputs)
    inputs = given.inputs if crude is None or shown else (crude[1], *given.inputs)
    return Result(frames, seconds, report, tuple(cuts), inputs)


def _given(pipe: Any, job: Job) -> Bound:
    """Return what the job gives to the call; a file may end earlier than its header says."""
    try:
        return bound(pipe, job)
    except ValueError as error:
        raise JobError(f"job {job.file_name!r}: {error}") from error


def _other_size(job: Job, frames: np.ndarray) -> str:
    """Return what is said if the pipeline chose another size than the job's, or ""."""
    count, height, width = frames.shape[:3]
    asked = (job.width or width, job.height or height, job.frames or count)
    if asked == (width, height, count):
        return ""
    made, wanted = (f"{w} x {h}, {n} frames" for w, h, n in ((width, height, count), asked))
    return f"the pipeline made {made}, the job asked for {wanted}"


def _run(
    pipe: Any,
    job: Job,
    arguments: dict[str, Any],
    on_step: OnStep | None,
    on_latents: OnLatents | None,
    checkpoint: StepCheckpoint | None,
    handle: Handle | None,
    clock: DualClock | None,
) -> tuple[np.ndarray, float]:
    """Call the pipeline; frames uint8 [F, H, W, 3] and seconds.

    A pipeline for single images makes a clip of one image per warped latent, without step
    checkpoints.
    """
    accepted = inspect.signature(type(pipe).__call__).parameters
    latents, image, aside = arguments.get("latents"), 0, 0.0
    images = 0 if latents is None or "num_frames" in accepted else int(job.frames or 0)

    def step_done(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        nonlocal aside
        since = time.perf_counter()
        done, steps = step + 1, _steps_of(pipe)
        if clock is not None:
            tensors["latents"] = clock.step_done(pipe, done, steps, timestep, tensors["latents"])
        if on_latents is not None and isinstance(tensors.get("latents"), torch.Tensor):
            on_latents(pipe, tensors["latents"])
        if checkpoint is not None and not images:
            checkpoint.step_done(pipe, done, steps, tensors)
        if on_step is not None:
            on_step(image * steps + done, max(images, 1) * steps)
        aside += time.perf_counter() - since
        return tensors

    follows = "callback_on_step_end" in accepted
    if follows:
        arguments["callback_on_step_end"] = step_done
    start, video = time.perf_counter(), []
    for image in range(max(images, 1)):
        if images and latents is not None:
            arguments["latents"] = latents[image : image + 1]
        generator = torch.Generator().manual_seed(job.seed)
        with (
            checkpoint.running(pipe, generator, handle)
            if checkpoint and follows and not images
            else nullcontext()
        ):
            output = pipe(**arguments, generator=generator, output_type="np")
        video.extend(shown(output))
    seconds = time.perf_counter() - start - aside
    return to_uint8(video), seconds


def _steps_of(pipe: Any) -> int:
    """Return the number of steps of the running call, which a strength makes fewer."""
    steps, own = len(pipe.scheduler.timesteps), getattr(pipe, "num_timesteps", None)
    return own if isinstance(own, int) and 0 < own <= steps else steps


def _check_call(pipe: Any, job: Job) -> None:
    """Raise ValueError for a job that the pipeline's call does not take, or refuses itself."""
    taken = takes(pipe.__class__)
    check_call(taken, job)
    given = bind(taken, job, time=frame_step(pipe), stand_in=True)
    if refusal := _refusal(pipe, given.arguments):
        raise ValueError(f"{taken.pipeline} refuses the job: {refusal}")


def _refusal(pipe: Any, given: dict[str, Any]) -> str:
    """Return what a pipeline's own check of its inputs says to a job, "" if it finds nothing."""
    own = getattr(pipe, "check_inputs", None)
    try:
        known = inspect.signature(own).parameters  # type: ignore[arg-type]
        usual = {name: p.default for name, p in takes(pipe.__class__).parameters.items()}
        asked = {
            name: given.get(name, usual.get(name))
            for name, parameter in known.items()
            if name in given or name in usual or parameter.default is parameter.empty
        }
        own(**asked)  # type: ignore[misc]
    except ValueError as error:
        return str(error)
    except (TypeError, AttributeError):  # it checks something else
        pass
    return ""
