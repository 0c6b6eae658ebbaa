"""Full-reference quality: the distance of an accelerated run from its reference run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from accel.core.structure import denoisers


def _check(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape != b.shape or a.dtype != np.uint8 or b.dtype != np.uint8 or a.ndim != 4:
        raise ValueError(
            "need two uint8 videos [F, H, W, 3] of the same shape, got "
            f"{a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)}"
        )


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio in dB over all frames of two uint8 videos [F, H, W, 3].

    Equal videos give inf. Raises ValueError for another dtype or for different shapes.
    """
    _check(a, b)
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Return the structural similarity of two uint8 videos [F, H, W, 3], averaged over all frames.

    Wang et al. 2004, with an 11 x 11 Gaussian window of sigma 1.5, averaged over the channels too.
    Raises ValueError for another dtype, different shapes, or frames smaller than 11 x 11.
    """
    _check(a, b)
    if min(a.shape[1:3]) < 11:
        raise ValueError(f"SSIM needs frames of 11 x 11 or more, got {a.shape[1:3]}")
    x, y = (torch.from_numpy(v).double().permute(0, 3, 1, 2).flatten(0, 1)[:, None] for v in (a, b))
    line = torch.exp(-(torch.arange(-5, 6, dtype=torch.float64, device="cpu") ** 2) / (2 * 1.5**2))
    window = torch.outer(line, line)[None, None] / line.sum() ** 2

    def blur(image: torch.Tensor) -> torch.Tensor:
        return F.conv2d(image, window)

    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    score = (2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return float(score.mean())


@contextmanager
def latents_by_step(pipe: Any) -> Iterator[list[Tensor]]:
    """Collect the latents that the denoiser is given at each step of the runs inside.

    Those are the latents after the step before, fp16 on the CPU, including conditioning channels.
    With several denoisers, or several calls in a step, the first call for each timestep counts.
    Raises ValueError for a pipeline without a known denoiser.
    """
    found: list[Tensor] = []
    last: list[float] = []

    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        sample = next((kwargs[k] for k in ("hidden_states", "sample", "x") if k in kwargs), None)
        sample = args[0] if sample is None else sample
        time = kwargs.get("timestep", args[1] if len(args) > 1 else None)
        if not isinstance(sample, Tensor) or time is None:
            return
        now = float(torch.as_tensor(time).flatten()[0])
        if not last or last[-1] != now:
            last.append(now)
            found.append(sample.detach().to("cpu", torch.float16))

    handles = [
        m.register_forward_pre_hook(before, with_kwargs=True) for m in denoisers(pipe).values()
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def latent_errors(reference: Sequence[Tensor], run: Sequence[Tensor]) -> list[float]:
    """Return the relative L2 distance between the latents of two runs, step by step.

    Raises ValueError for runs of different length.
    """
    if len(reference) != len(run):
        raise ValueError(f"runs of different length: {len(reference)} and {len(run)} steps")
    return [
        float((b.double() - a.double()).norm() / a.double().norm().clamp_min(1e-30))
        for a, b in zip(reference, run, strict=True)
    ]
