"""Where the weights of a loaded pipeline lie: diffusers' own ways behind one function."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from accel.core.run_log import logger
from accel.core.structure import DENOISERS
from accel.memory.ways import ASKED, Way

_ENCODERS = ("text_encoder", "image_encoder")  # how names of components begin


def usual_device() -> str:
    """Return the device that a model goes to if none is named."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def kind_of(name: str) -> str:
    """Return whether a component is an encoder, a denoiser, or another model."""
    if name in DENOISERS:
        return "denoiser"
    return "encoder" if name.startswith(_ENCODERS) else "other"


def offload(pipe: Any, way: Way, device: torch.device, *, pinned: bool = False) -> None:
    """Put a loaded pipeline's weights on the device, or offload them to the host.

    ``pinned``: group offload keeps a second copy of a component while it is set up, which makes
    its transfers faster.
    """
    match way:
        case Way.MODEL:
            pipe.enable_model_cpu_offload(device=device)
        case Way.SEQUENTIAL:
            pipe.enable_sequential_cpu_offload(device=device)
        case Way.GROUP:
            _group(pipe, device, pinned)
        case _:
            pipe.to(device)


def _group(pipe: Any, device: torch.device, pinned: bool) -> None:
    """Offload denoisers block by block, encoders layer by layer; all else stays on the device."""
    from diffusers.hooks.group_offloading import apply_group_offloading

    stream = device.type == "cuda"
    for name, part in pipe.components.items():
        if not isinstance(part, nn.Module):
            continue
        kind = kind_of(name)
        if kind == "other":
            part.to(device)
            continue
        level = "block_level" if kind == "denoiser" else "leaf_level"
        apply_group_offloading(
            part, onload_device=device, offload_device=torch.device("cpu"),
            offload_type=level, num_blocks_per_group=1 if kind == "denoiser" else None,
            use_stream=stream, low_cpu_mem_usage=stream and not pinned,
        )  # fmt: skip


def apply_offload(pipe: Any, asked: str, device: torch.device) -> None:
    """Put a pipeline's weights where a job asks for: none, model, group, sequential, or auto.

    On a CPU they stay whole, and the log says so: all of them lie in the same memory.
    """
    way = ASKED[asked][0]
    if way not in (Way.RESIDENT, Way.MODEL, Way.GROUP, Way.SEQUENTIAL):
        raise ValueError(f"offload {asked} is not one of auto, none, model, group, sequential")
    if way is not Way.RESIDENT and device.type == "cpu":
        logger.warning(
            "offload %s has no effect on a CPU, where all weights lie in the same memory", asked
        )
        way = Way.RESIDENT
    offload(pipe, way, device)
