"""Where the weights of a loaded pipeline lie: diffusers' own ways behind one function."""

from __future__ import annotations

from typing import Any

import torch

from accel.core.run_log import logger


def usual_device() -> str:
    """Return the device that a model goes to if none is named."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def why_no_offload(way: str, device: str) -> str:
    """Return why nothing can be offloaded in this way on this machine, "" if it can."""
    if way not in ("model", "group", "sequential") or not device.startswith("cpu"):
        return ""
    return f"offload {way} has no effect on a CPU, where all weights lie in the same memory"


def apply_offload(pipe: Any, way: str, device: str) -> str:
    """Put a pipeline's weights where ``way`` says: none, model, group, sequential, or auto.

    Returns:
        Why nothing was offloaded although the way asks for it, "" if there is nothing to say. The
        log has it too.
    """
    why = why_no_offload(way, device)
    if why or way in ("auto", "none"):
        pipe.to(device)
    elif way == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif way == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    elif way == "group":
        pipe.enable_group_offload(
            onload_device=torch.device(device), offload_type="block_level", num_blocks_per_group=1,
            use_stream=True,
        )  # fmt: skip
    else:
        raise ValueError(f"offload {way} is not one of auto, none, model, group, sequential")
    if why:
        logger.warning("%s", why)
    return why
