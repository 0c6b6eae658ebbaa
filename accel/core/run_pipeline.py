"""Run a pipeline and take the frames out of what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

Run = Callable[[Any], np.ndarray]  # from a pipeline to its frames, uint8 [F, H, W, 3]


def shown(output: Any) -> Any:
    """Return the first clip of a video pipeline's output, or the images, as levels from 0 to 1."""
    return output.frames[0] if hasattr(output, "frames") else output.images


def to_uint8(video: Any) -> np.ndarray:
    """Return levels from 0 to 1 [F, H, W, 3] as uint8 from 0 to 255; NaN becomes black."""
    return np.clip(np.nan_to_num(np.asarray(video)) * 255, 0, 255).round().astype(np.uint8)


def as_run(job: Mapping[str, Any] | Run) -> Run:
    """Return a job, or the arguments of a pipeline's call, as a function of the pipeline."""
    return job if callable(job) else lambda pipe: call(pipe, job)


def call(pipe: Any, job: Mapping[str, Any]) -> np.ndarray:
    """Run the pipeline with the arguments in ``job`` and return its frames, uint8 [F, H, W, 3].

    Without a ``generator`` in ``job``, its ``seed`` (0 by default) seeds one on the CPU.
    """
    arguments = dict(job)
    generator = torch.Generator().manual_seed(int(arguments.pop("seed", 0)))
    return to_uint8(shown(pipe(**{"generator": generator, **arguments, "output_type": "np"})))
