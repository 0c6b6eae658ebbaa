"""Loads a model so that a job fits: ``accel.load``, and what ``accel render`` loads with."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from accel.core.placed import keep
from accel.core.run_log import logger
from accel.core.units import gib, parse_bytes
from accel.memory.meta_models import Video
from accel.memory.ways import Way
from accel.pipelines.arranging import (
    Arrangement,
    Techniques,
    arranged,
    arrangement_of,
    demand_of,
    kind_of_weights,
    usual_video,
)
from accel.pipelines.load import dtype_of, usual_device
from accel.pipelines.load_options import ALL, LoadOptions
from accel.pipelines.loading.building import built
from accel.pipelines.loading.checking import check
from accel.pipelines.loading.offload import apply_offload, offload
from accel.pipelines.loading.scheduler import with_scheduler
from accel.pipelines.loading.source import Source, resolve
from accel.pipelines.placing import READ, place
from accel.pipelines.room import free_room
from accel.pipelines.stored_tensors import NotStreamable


def load(
    model: str,
    memory: str | int | None = None,
    *,
    job: Any = None,
    device: str | None = None,
    host: str | int | None = None,
    **options: Any,
) -> Any:
    """Return a diffusers pipeline whose weights are placed so that a job fits in memory.

    The cheapest way that fits is simulated before a weight is read: all weights on the device, the
    text encoder read first and gone, components or blocks offloaded to the host, or read from disk
    when they run. The log says which one and why.

    Args:
        model: "tiny", a folder, or a hub id.
        memory: Bytes that the device may hold, or text such as "12GiB"; None for what is free. On
            a CPU that is the memory of the whole process.
        job: Anything with ``width``, ``height`` and ``frames``; None for the pipeline's own size.
        device: Defaults to cuda where there is one.
        host: Bytes of host memory that may be used; None for what is free.
        options: What a job may say in ``load``, such as ``offload="disk"`` or ``dtype="bf16"``.

    Raises:
        NoWay: Nothing fits; the message says what needs most and what would help.
        ValueError: An option that is not allowed.
        FileNotFoundError: No such model.

    Example::

        pipe = accel.load("owner/name", memory="12GiB")
    """
    wanted = LoadOptions.parse(options or None)
    target = torch.device(device or usual_device())
    limit = None if memory is None else parse_bytes(memory)
    most = None if host is None else parse_bytes(host)
    return placed(model, wanted, target, job=job, memory=limit, host=most)


def placed(
    model: str,
    options: LoadOptions,
    device: torch.device,
    *,
    job: Any = None,
    memory: int | None = None,
    host: int | None = None,
    skip: int = 0,
) -> Any:
    """Load a model for a job; where memory runs out while loading, take the next cheaper way.

    See ``load``. ``skip``: ways that fitted by the numbers, and did not. Raises NoWay if no way is
    left.
    """
    source = resolve(model, options)
    check(source, options, str(device))
    dtype = dtype_of(options, str(device))
    video, techniques = _video(source.pipeline, job), Techniques.of(job)
    while True:
        found = _decided(
            source.folder, video, device, dtype, options, techniques, memory, host, skip
        )
        placement = found.placement
        as_usual = placement.way is Way.RESIDENT and not placement.weights
        (logger.info if as_usual else logger.warning)("%s", found)
        try:
            pipe = _loaded(source, found, options, device, dtype)
        except (MemoryError, torch.OutOfMemoryError) as error:
            told = str(error).splitlines()[0] if str(error) else type(error).__name__
            told = f"out of memory while loading ({told})"
        except NotStreamable as error:
            told = str(error)
        else:
            keep(pipe, found)
            return pipe
        logger.warning("%s: %s", placement.name, told)
        skip += 1
        gc.collect()


def _loaded(
    source: Source, found: Arrangement, options: LoadOptions, device: torch.device,
    dtype: torch.dtype,
) -> Any:  # fmt: skip
    """Return the pipeline in the way that was decided.

    Raises NotStreamable where it must be read piece by piece and cannot be.
    """
    placement = found.placement
    if placement.weights:
        options = replace(options, weights={ALL: placement.weights}, allow=())
    if placement.way in READ:
        if why := _why_not_read(source, options):
            raise NotStreamable(why)
        pipe = place(
            source.folder, placement, device=device, dtype=dtype, pipeline=source.pipeline,
            variant=options.variant,
        )  # fmt: skip
        if options.scheduler:
            pipe.scheduler = with_scheduler(pipe.scheduler, options.scheduler)
        return pipe
    pipe = built(source, options, dtype)
    if found.simulated:
        offload(pipe, placement.way, device, pinned=placement.pinned)
    else:
        apply_offload(pipe, options.offload, device)
    return pipe


def _why_not_read(source: Source, options: LoadOptions) -> str:
    """Return why components cannot be read from disk when they run, "" if they can."""
    if source.file is not None:
        return f"{source.model} is a single file, which is read whole"
    if options.weights or options.components:
        given = "weights" if options.weights else "components"
        return f"load {given} are read whole, not piece by piece"
    return "compiled blocks are read whole" if options.compile != "off" else ""


def _decided(
    folder: Path,
    video: Video,
    device: torch.device,
    dtype: torch.dtype,
    options: LoadOptions,
    job: Techniques,
    memory: int | None,
    host: int | None,
    skip: int,
) -> Arrangement:
    """Decide about what is free now."""
    if memory is not None:  # the simulation itself makes the process larger
        demand_of(str(folder), video, dtype, kind_of_weights(options), job)
    room = free_room(device, memory)
    if host is not None and not room.shared:
        room = replace(room, host=host)
    always = memory is not None
    return arranged(folder, video, room, dtype, options=options, job=job, skip=skip, always=always)


def _video(pipeline: str, job: Any) -> Video:
    """Return the size of a job, of its pipeline where the job leaves it open."""
    import diffusers

    if job is not None and job.width and job.height and job.frames:
        return Video(job.width, job.height, job.frames)
    usual = usual_video(getattr(diffusers, pipeline))
    given = {} if job is None else {"width": job.width, "height": job.height, "frames": job.frames}
    return replace(usual, **{key: value for key, value in given.items() if value})


def again(pipe: Any, job: Any) -> Arrangement | None:
    """Return what is decided for another job on a pipeline that was placed, None if it was not.

    It is about the memory that was free before the pipeline was loaded.
    """
    found = arrangement_of(pipe)
    if found is None or found.source is None:
        return found
    video, techniques = _video(type(pipe).__name__, job), Techniques.of(job)
    if (video, techniques) == (found.source.video, found.source.job):
        return found
    return found.source.arranged(video, techniques)


def still_fits(pipe: Any, before: Arrangement | None, job: Any) -> Arrangement | None:
    """Return what is decided for another job if the pipeline can stay as it is, else None."""
    found = again(pipe, job)
    if before is None or found is None or found.decision.chosen is None:
        return None
    if found.placement.weights != before.placement.weights:  # the result may not hang on the order
        return None
    order = [*Way]
    ways = [order.index(one.placement.way) for one in (found, before)]
    return None if ways[0] > ways[1] else found if ways[0] == ways[1] else before


def summary(found: Arrangement | None) -> dict[str, Any] | None:
    """Return a placement as plain JSON values, None where nothing had to be simulated."""
    if found is None or not found.simulated:
        return None
    return {**found.placement.to_dict(), "table": str(found).splitlines()}


def check_room(found: Arrangement, pipe: Any, device: torch.device) -> None:
    """Raise MemoryError if a phase of a job needs more than what is free now.

    A long run should not end in its last minute because decoding does not fit.
    """
    if not found.simulated:
        return
    held = sum(
        tensor.nbytes
        for part in pipe.components.values()
        if isinstance(part, nn.Module)
        for tensor in (*part.parameters(), *part.buffers())
        if tensor.device.type == device.type
    )
    free = free_room(device).device
    for phase, size in found.placement.device.items():
        if size - held > free:
            raise MemoryError(
                f"out of memory before the first step: {phase} will need {gib(size - held)} more, "
                f"{gib(free)} is free now; {found.decision.way_out or 'end what else uses memory'}"
            )
