"""What to do after a job failed: try again, with less memory, or give up.

A job that ran out of memory climbs the ladder, one rung a try. Each rung keeps the ones below it. A
rung that this pipeline or machine cannot use is left out. Above the last rung the model is loaded
again, placed in the next cheaper way (``placing.py``). ``exact`` rungs do not change the result
(sliced blocks round differently in fp32, not in bf16); which ones a video was rendered with stands
in its sidecar.
"""

from __future__ import annotations

import errno
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from accel.config import SlicingConfig
from accel.core.structure import denoisers
from accel.memory.ways import Way
from accel.pipelines.arranging import arrangement_of
from accel.pipelines.batch.tasks import Kind
from accel.pipelines.job import Job
from accel.plans import Plan

MOST_USEFUL = 16  # slices; beyond, keys, values and the stream itself are what takes the memory
Undo = Callable[[], None]
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}


@dataclass(frozen=True)
class Rung:
    """One way to need less memory.

    ``why_not(pipe)``: reason it cannot be used, or "". ``change`` is what becomes of the job's
    plan, ``apply`` what is done to the pipeline.
    """

    name: str
    exact: bool
    why_not: Callable[[Any], str]
    apply: Callable[[Any], Undo] = lambda pipe: lambda: None
    change: Callable[[Plan | None], Plan | None] = lambda plan: plan


def _no_slicing(pipe: Any) -> str:
    try:
        denoisers(pipe)
    except ValueError as error:
        return str(error)
    return ""


def more_slices(plan: Plan | None) -> Plan:
    """Return the plan with feature slicing in 16 slices, or twice as many as it has."""
    plan = Plan("unaccelerated", attention=None) if plan is None else plan
    least = SlicingConfig(slices=MOST_USEFUL // 2) if plan.slicing is None else plan.slicing
    slices = max(MOST_USEFUL, 2 * least.slices)
    return replace(plan, slicing=replace(least, slices=slices))


def in_slices(job: Job, slices: int) -> Job:
    """Return the job in at least so many slices, which its placement counts on."""
    plan = job.accel_plan()
    if slices <= 1 or (plan is not None and plan.slicing and plan.slicing.slices >= slices):
        return job
    plan = Plan("unaccelerated", attention=None) if plan is None else plan
    sliced = SlicingConfig(slices, 1) if plan.slicing is None else plan.slicing
    plan = replace(plan, slicing=replace(sliced, slices=slices))
    return replace(job, preset=None, plan=plan.to_dict())


def changed(job: Job, rungs: Sequence[Rung]) -> Job:
    """Return the job as it is generated on these rungs."""
    before = plan = job.accel_plan()
    for rung in rungs:
        plan = rung.change(plan)
    if plan is None or plan == before:
        return job
    return replace(job, preset=None, plan=plan.to_dict())


def _no_offload(pipe: Any) -> str:
    found = arrangement_of(pipe)
    if found is not None and found.placement.way is not Way.RESIDENT:
        return f"its weights are placed already: {found.placement.way}"
    if pipe.device.type == "cpu":
        return "there is no accelerator to offload from"
    return "" if hasattr(pipe, "enable_model_cpu_offload") else "the pipeline cannot offload"


def _offload(method: str) -> Callable[[Any], Undo]:
    def apply(pipe: Any) -> Undo:
        device = pipe.device
        getattr(pipe, method)(device=device)

        def undo() -> None:
            pipe.remove_all_hooks()
            pipe.to(device)

        return undo

    return apply


def _no_vae(method: str) -> Callable[[Any], str]:
    def why_not(pipe: Any) -> str:
        return "" if hasattr(getattr(pipe, "vae", None), method) else f"the VAE has no {method}"

    return why_not


def _vae(what: str) -> Callable[[Any], Undo]:
    def apply(pipe: Any) -> Undo:
        if getattr(pipe.vae, f"use_{what}", False):
            return lambda: None
        getattr(pipe.vae, f"enable_{what}")()
        return lambda: getattr(pipe.vae, f"disable_{what}")()

    return apply


# Order: what costs least and changes nothing comes first.
LADDER = (
    Rung("more slices", True, _no_slicing, change=more_slices),
    Rung("VAE slicing", True, _no_vae("enable_slicing"), _vae("slicing")),
    Rung("model offload", True, _no_offload, _offload("enable_model_cpu_offload")),
    Rung("VAE tiling", False, _no_vae("enable_tiling"), _vae("tiling")),
    Rung("sequential offload", True, _no_offload, _offload("enable_sequential_cpu_offload")),
)


def available(pipe: Any) -> list[Rung]:
    """Return the rungs this pipeline can use here."""
    return [rung for rung in LADDER if not rung.why_not(pipe)]


def classify(error: BaseException) -> Kind:
    """Tell a lack of memory and of disk space from other failures."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return Kind.OOM
    if isinstance(error, OSError) and error.errno in _DISK:
        return Kind.DISK
    text = str(error).lower()
    words = ("out of memory", "can't allocate memory", "cannot allocate memory")
    short = isinstance(error, RuntimeError) and any(w in text for w in words)
    return Kind.OOM if short else Kind.FAILED


def free_memory() -> None:
    """Give back what a failed try held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def next_rung(kind: Kind, rung: int, rungs_left: int, failures: int, retries: int) -> int | None:
    """Return the rung for the next try, None to give up.

    ``failures``: failed tries so far, those on the way up the ladder not counted. ``retries`` 0
    means no second try of any kind.
    """
    if retries and kind == Kind.OOM and rungs_left > 0:
        return rung + 1
    return rung if kind != Kind.OOM and failures <= retries else None
