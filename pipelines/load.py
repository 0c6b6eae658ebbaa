"""Opens a diffusers pipeline by the embedded name ``tiny``, a folder, a file, or a hub id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from accel.pipelines.load_options import LoadOptions
from accel.pipelines.loading.offload import usual_device
from accel.pipelines.loading.source import TINY, local_folder, resolve, tiny_folder

__all__ = ["DTYPES", "TINY", "Defaults", "defaults", "dtype_of", "load", "local_folder",
           "tiny_folder", "usual_device"]  # fmt: skip

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Defaults:
    """Settings a job leaves out.

    None: the pipeline's own default.
    """

    width: int | None = None
    height: int | None = None
    frames: int | None = None
    steps: int | None = None
    guidance: float | None = None
    fps: float = 16.0


def defaults(model: str) -> Defaults:
    """Return default settings for a model; the embedded one was trained at 64 x 64, 17 frames."""
    return Defaults(64, 64, 17, 20, 2.0, 8.0) if model == TINY else Defaults()


def dtype_of(options: LoadOptions, device: str) -> torch.dtype:
    """Return the dtype of a model's weights: the one asked for, else bf16 or, on a CPU, fp32."""
    if options.dtype is not None:
        return DTYPES[options.dtype]
    return torch.float32 if device.startswith("cpu") else torch.bfloat16


def load(
    model: str = TINY,
    *,
    options: LoadOptions | None = None,
    dtype: torch.dtype | None = None,
    device: str | None = None,
) -> Any:
    """Return a diffusers pipeline.

    Everything that can be wrong with the options is looked for before a weight is read.

    Args:
        model: "tiny" (embedded, no network), a folder written by ``save_pretrained``, a file of
            weights whose ``options.config`` names the folder it belongs to, or a hub id
            ``owner/name``.
        options: How to load it; None for the usual way.
        dtype: Of the weights, instead of the one in the options.
        device: Defaults to cuda where there is one.

    Raises:
        FileNotFoundError: A folder or file is missing, or holds no pipeline.
        OSError: The hub cannot be reached or has no such model.
        ValueError: The options do not fit the model or this machine.
        ImportError: A package is missing; the message says how to install it.
    """
    from accel.pipelines.loading.building import built
    from accel.pipelines.loading.checking import check
    from accel.pipelines.loading.offload import apply_offload

    options = options or LoadOptions()
    device = device or usual_device()
    source = resolve(model, options)
    check(source, options, device)
    pipe = built(source, options, dtype or dtype_of(options, device))
    apply_offload(pipe, options.offload, torch.device(device))
    return pipe
