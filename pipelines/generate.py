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

from accel.kernels.warp import check_flow
from accel.patch import Handle, patched
from accel.pipelines.checkpoint import StepCheckpoint
from accel.pipelines.job import Job, JobError
from accel.pipelines.motion.flows import make_flow
from accel.pipelines.motion.latents import Geometry, latent_geometry, warped_latents
from accel.report import Report
from accel.sites import denoisers

OnStep = Callable[[int, int], None]


@dataclass(frozen=True)
class Result:
    """Frames uint8 [F, H, W, 3], wall seconds of the pipeline call, report (None if not
    accelerated).
    """

    frames: np.ndarray
    seconds: float
    report: Report | None


def check(pipe: Any, job: Job) -> None:
    """Raise JobError if ``job`` does not fit ``pipe``: size multiples, frame count, motion,
    denoiser.
    """
    where = f"job {job.file_name!r}"
    try:
        main = next(iter(denoisers(pipe).values()))
    except ValueError as error:
        raise JobError(f"{where}: {error}") from error
    multiple = _size_multiple(pipe, main)
    for side in ("width", "height"):
        value = getattr(job, side)
        if value is not None and value % multiple:
            low = max(multiple, value // multiple * multiple)
            near = low if value - low <= multiple / 2 else low + multiple
            raise JobError(
                f"{where}: {side} {value} is not a multiple of {multiple} for {job.model}; "
                f"the nearest is {near}"
            )
    temporal = getattr(pipe, "vae_scale_factor_temporal", None)
    if job.frames is not None and temporal and (job.frames - 1) % temporal:
        near = (job.frames - 1 + temporal // 2) // temporal * temporal + 1
        raise JobError(
            f"{where}: frames must be {temporal} n + 1 for {job.model}, got {job.frames}; "
            f"the nearest is {near}"
        )
    if job.motion is not None:
        try:
            _motion_flow(pipe, job)
        except ValueError as error:
            raise JobError(f"{where}: {error}") from error


def _size_multiple(pipe: Any, denoiser: Any) -> int:
    """Pixels that width and height must be a multiple of: VAE factor times patch size."""
    patch = getattr(getattr(denoiser, "config", None), "patch_size", None) or 1
    patch = patch[-1] if isinstance(patch, (tuple, list)) else patch
    for name in ("vae_scale_factor_spatial", "vae_scale_factor"):
        factor = getattr(pipe, name, None)
        if factor:
            return int(factor) * int(patch)
    return 8 * int(patch)


def _motion_flow(pipe: Any, job: Job) -> tuple[torch.Tensor, torch.Tensor | None, Geometry]:
    """Flows of a job with ``motion`` and the latent grid they go to, without the work of warping.
    Raises ValueError if the job or the pipeline cannot have that motion.
    """
    assert job.motion is not None
    if job.frames is None or job.height is None or job.width is None:
        raise ValueError("motion needs frames, height and width in the job")
    if job.frames == 1:
        raise ValueError("motion needs 2 frames or more, got frames 1")
    flow, backward = make_flow(job.motion, frames=job.frames, height=job.height, width=job.width)
    check_flow("flow", flow)
    return flow, backward, latent_geometry(pipe)


def motion_latents(pipe: Any, job: Job) -> torch.Tensor:
    """Warped initial latents of a job with ``motion``. Raises ValueError if that cannot be done."""
    flow, backward, geometry = _motion_flow(pipe, job)
    return warped_latents(flow, geometry, seed=job.seed, strength=job.strength, backward=backward)


def generate(
    pipe: Any, job: Job, *, on_step: OnStep | None = None, checkpoint: StepCheckpoint | None = None
) -> Result:
    """Run ``job`` on a loaded pipeline, patched with the job's plan for the length of the call.

    ``on_step(done, steps)`` is called after every denoising step; what it raises ends the run.
    ``checkpoint`` saves steps, and takes those over that it holds. Raises JobError for a job that
    does not fit the pipeline; the pipeline is left as it was in every case.
    """
    job = job.resolved()
    check(pipe, job)
    plan = job.accel_plan()
    if plan is None:
        frames, seconds = _run(pipe, job, on_step, checkpoint, None)
        return Result(frames, seconds, None)
    with patched(pipe, plan=plan) as handle:
        frames, seconds = _run(pipe, job, on_step, checkpoint, handle)
        return Result(frames, seconds, handle.report())


def _run(
    pipe: Any,
    job: Job,
    on_step: OnStep | None,
    checkpoint: StepCheckpoint | None,
    handle: Handle | None,
) -> tuple[np.ndarray, float]:
    """Call the pipeline with the arguments it has; frames uint8 [F, H, W, 3] and seconds."""
    arguments = _arguments(pipe, job)

    def step_done(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        done, steps = step + 1, len(pipe.scheduler.timesteps)
        if checkpoint is not None:
            checkpoint.step_done(pipe, done, steps, tensors)
        if on_step is not None:
            on_step(done, steps)
        return tensors

    follows = "callback_on_step_end" in inspect.signature(type(pipe).__call__).parameters
    if follows:
        arguments["callback_on_step_end"] = step_done
    generator = torch.Generator().manual_seed(job.seed)
    saving = (
        checkpoint.running(pipe, generator, handle) if checkpoint and follows else nullcontext()
    )
    start = time.perf_counter()
    with saving:
        output = pipe(**arguments, generator=generator, output_type="np")
    seconds = time.perf_counter() - start
    video = output.frames[0] if hasattr(output, "frames") else output.images
    frames = np.clip(np.nan_to_num(np.asarray(video)) * 255, 0, 255).round().astype(np.uint8)
    return frames, seconds


def _arguments(pipe: Any, job: Job) -> dict[str, Any]:
    """Arguments of a pipeline call, as far as the pipeline takes them. Raises JobError for a
    setting it has no use for.
    """
    accepted = inspect.signature(type(pipe).__call__).parameters
    wanted: dict[str, Any] = {
        "prompt": job.prompt,
        "negative_prompt": job.negative_prompt,
        "num_inference_steps": job.steps,
        "guidance_scale": job.guidance,
        "width": job.width,
        "height": job.height,
        "num_frames": job.frames,
        "max_sequence_length": _prompt_tokens(pipe, accepted),
        "latents": None if job.motion is None else motion_latents(pipe, job),
    }
    missing = [
        k for k, v in wanted.items() if k not in accepted and v and k != "max_sequence_length"
    ]
    if missing:
        raise JobError(
            f"job {job.file_name!r}: {type(pipe).__name__} takes no {', '.join(missing)}; "
            "leave out the matching keys"
        )
    return {k: v for k, v in wanted.items() if k in accepted and v is not None}


def _prompt_tokens(pipe: Any, accepted: Any) -> int | None:
    """The tokenizer's own length where it is shorter than the pipeline's default padding."""
    length = getattr(getattr(pipe, "tokenizer", None), "model_max_length", None)
    default = getattr(accepted.get("max_sequence_length"), "default", None)
    if not isinstance(length, int) or not isinstance(default, int):
        return None
    return min(length, default)
