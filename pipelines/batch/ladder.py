"""What to do after a job failed: try again, with less memory, or give up.

A job that ran out of memory climbs the ladder, one rung a try. Each rung keeps the ones below it. A
rung that this pipeline or machine cannot use is left out. ``exact`` rungs do not change the result;
which ones a video was rendered with stands in its sidecar.
"""

from __future__ import annotations

import errno
import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Undo = Callable[[], None]
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}


@dataclass(frozen=True)
class Rung:
    """One way to need less memory. ``why_not(pipe)``: reason it cannot be used, or ""."""

    name: str
    exact: bool
    why_not: Callable[[Any], str]
    apply: Callable[[Any], Undo]


def _no_offload(pipe: Any) -> str:
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


# Order: what costs least and changes nothing comes first. Exact slicing of the denoiser belongs at
# the top of this list, as soon as a plan can ask for it.
LADDER = (
    Rung("VAE slicing", True, _no_vae("enable_slicing"), _vae("slicing")),
    Rung("model offload", True, _no_offload, _offload("enable_model_cpu_offload")),
    Rung("VAE tiling", False, _no_vae("enable_tiling"), _vae("tiling")),
    Rung("sequential offload", True, _no_offload, _offload("enable_sequential_cpu_offload")),
)


def available(pipe: Any) -> list[Rung]:
    """The rungs this pipeline can use here."""
    return [rung for rung in LADDER if not rung.why_not(pipe)]


def classify(error: BaseException) -> str:
    """ "oom", "disk" (nothing more can be written) or "failed"."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return "oom"
    if isinstance(error, OSError) and error.errno in _DISK:
        return "disk"
    text = str(error).lower()
    words = ("out of memory", "can't allocate memory", "cannot allocate memory")
    return "oom" if isinstance(error, RuntimeError) and any(w in text for w in words) else "failed"


def free_memory() -> None:
    """Give back what a failed try held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def next_rung(kind: str, rung: int, rungs_left: int, failures: int, retries: int) -> int | None:
    """Rung for the next try, None to give up.

    ``failures``: failed tries so far, those on the way up the ladder not counted. ``retries`` 0
    means no second try of any kind.
    """
    if retries and kind == "oom" and rungs_left > 0:
        return rung + 1
    return rung if kind != "oom" and failures <= retries else None
