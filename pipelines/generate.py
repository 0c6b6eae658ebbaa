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

from accel.core.run_pipeline import shown, to_uint8
from accel.core.structure import denoisers
from accel.families.family import Geometry
from accel.families.sizes import SizeRule
from accel.kernels.warp import check_flow
from accel.patching import Handle, patched
from accel.pipelines.checkpoint import StepCheckpoint
from accel.pipelines.job import Job, JobError
from accel.pipelines.motion.flows import make_flow
from accel.pipelines.motion.latents import arrange, latent_geometry, warped_latents
from accel.pipelines.motion.strength import make_strength
from accel.reporting import Report

OnStep = Callable[[int, int], None]
OnLatents = Callable[[Any, torch.Tensor], None]


@dataclass(frozen=True)
class Result:
    """What one generation gave.

    Frames uint8 [F, H, W, 3]; wall seconds of the pipeline call, without previews and saved steps;
    the report, None if not accelerated.
    """

    frames: np.ndarray
    seconds: float
    report: Report | None


@dataclass(frozen=True)
class _Motion:
    """What a job's ``motion`` comes to before any noise is warped: flows, strength, latent grid."""

    flow: torch.Tensor
    backward: torch.Tensor | None
    strength: float | torch.Tensor
    geometry: Geometry


def check(pipe: Any, job: Job) -> None:
    """Raise JobError if ``job`` does not fit ``pipe``.

    Checked are size multiples, frame count, motion and denoiser.
    """
    _checked(pipe, job)


def _checked(pipe: Any, job: Job) -> _Motion | None:
    """``check``, and the job's motion, which is long work for a driving video."""
    where = f"job {job.file_name!r}"
    try:
        main = next(iter(denoisers(pipe).values()))
    except ValueError as error:
        raise JobError(f"{where}: {error}") from error
    try:
        _size_rule(pipe, main).check(job.width, job.height, job.frames)
    except ValueError as error:
        raise JobError(f"{where}: {error}") from error
    try:
        return None if job.motion is None else _motion(pipe, job)
    except ValueError as error:
        raise JobError(f"{where}: {error}") from error


def _size_rule(pipe: Any, denoiser: Any) -> SizeRule:
    """Return the sizes that a loaded pipeline can make: VAE factor times patch size, and frames."""
    patch = getattr(getattr(denoiser, "config", None), "patch_size", None) or 1
    patch = patch[-1] if isinstance(patch, (tuple, list)) else patch
    names = ("vae_scale_factor_spatial", "vae_scale_factor")
    space = next((f for name in names if (f := getattr(pipe, name, None))), 8)
    time = getattr(pipe, "vae_scale_factor_temporal", None) or 1
    return SizeRule(int(space) * int(patch), int(time))


def _motion(pipe: Any, job: Job) -> _Motion:
    """Return the motion of a job that has one.

    Raises ValueError if the job or the pipeline cannot have it.
    """
    assert job.movement is not None
    if job.frames is None or job.height is None or job.width is None:
        raise ValueError("motion needs frames, height and width in the job")
    if job.frames == 1:
        raise ValueError("motion needs 2 frames or more, got frames 1")
    geometry = latent_geometry(pipe)
    geometry.latent_frames(job.frames)
    size = {"frames": job.frames, "height": job.height, "width": job.width}
    strength = make_strength(job.gamma, **size)
    flow, backward = make_flow(job.movement, **size)
    check_flow("flow", flow)
    return _Motion(flow, backward, strength, geometry)


def motion_latents(pipe: Any, job: Job) -> torch.Tensor:
    """Return warped initial latents of a job with ``motion``, as its pipeline takes them.

    Raises ValueError if that cannot be done.
    """
    return _latents(pipe, job, _motion(pipe, job))


def _latents(pipe: Any, job: Job, motion: _Motion) -> torch.Tensor:
    latents = warped_latents(
        motion.flow, motion.geometry, seed=job.seed, strength=motion.strength,
        backward=motion.backward,
    )  # fmt: skip
    latents = arrange(latents, motion.geometry.layout)
    return latents.to(pipe.unet.dtype) if hasattr(pipe, "unet") else latents


def generate(
    pipe: Any,
    job: Job,
    *,
    on_step: OnStep | None = None,
    on_latents: OnLatents | None = None,
    checkpoint: StepCheckpoint | None = None,
) -> Result:
    """Run ``job`` on a loaded pipeline, patched with the job's plan for the length of the call.

    ``on_step(done, steps)`` is called after every denoising step; what it raises ends the run.
    Before it ``on_latents(pipe, latents)`` may look at the latents, where the pipeline shows them.
    ``checkpoint`` saves steps, and takes those over that it holds. Raises JobError for a job that
    does not fit the pipeline; the pipeline is left as it was in every case.
    """
    job = job.resolved()
    motion = _checked(pipe, job)
    plan = job.accel_plan()
    if plan is None:
        frames, seconds = _run(pipe, job, motion, on_step, on_latents, checkpoint, None)
        return Result(frames, seconds, None)
    with patched(pipe, plan=plan) as handle:
        frames, seconds = _run(pipe, job, motion, on_step, on_latents, checkpoint, handle)
        return Result(frames, seconds, handle.report())


def _run(
    pipe: Any,
    job: Job,
    motion: _Motion | None,
    on_step: OnStep | None,
    on_latents: OnLatents | None,
    checkpoint: StepCheckpoint | None,
    handle: Handle | None,
) -> tuple[np.ndarray, float]:
    """Call the pipeline; frames uint8 [F, H, W, 3] and seconds.

    A pipeline for single images makes a clip of one image per warped latent, without step
    checkpoints.
    """
    accepted = inspect.signature(type(pipe).__call__).parameters
    arguments, images = _arguments(pipe, job, motion, accepted)
    latents, image, aside = arguments.get("latents"), 0, 0.0

    def step_done(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        nonlocal aside
        since = time.perf_counter()
        done, steps = step + 1, len(pipe.scheduler.timesteps)
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


def _arguments(
    pipe: Any, job: Job, motion: _Motion | None, accepted: Any
) -> tuple[dict[str, Any], int]:
    """Return the arguments of the pipeline's call, and how many images to make one by one.

    0 images: one call makes all. Raises JobError for a setting that the pipeline does not take.
    """
    wanted: dict[str, Any] = {
        "prompt": job.prompt,
        "negative_prompt": job.negative_prompt,
        "num_inference_steps": job.steps,
        "guidance_scale": job.guidance,
        "width": job.width,
        "height": job.height,
        "num_frames": job.frames,
        "max_sequence_length": _prompt_tokens(pipe, accepted),
        "latents": None if motion is None else _latents(pipe, job, motion),
    }
    images = 0
    if motion is not None and "num_frames" not in accepted:
        images = int(wanted.pop("num_frames"))
    missing = [
        k
        for k, v in wanted.items()
        if k not in accepted and v is not None and v != "" and k != "max_sequence_length"
    ]
    if missing:
        raise JobError(
            f"job {job.file_name!r}: {type(pipe).__name__} takes no {', '.join(missing)}; "
            "leave out the matching keys"
        )
    return {k: v for k, v in wanted.items() if k in accepted and v is not None}, images


def _prompt_tokens(pipe: Any, accepted: Any) -> int | None:
    """Return the tokenizer's own length where it is shorter than the pipeline's default padding."""
    length = getattr(getattr(pipe, "tokenizer", None), "model_max_length", None)
    default = getattr(accepted.get("max_sequence_length"), "default", None)
    if not isinstance(length, int) or not isinstance(default, int):
        return None
    return min(length, default)
