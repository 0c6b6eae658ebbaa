"""PSNR, SSIM and MS-SSIM of two videos, frame by frame in fp64."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW = 11  # pixels across SSIM's Gaussian window, whose sigma is 1.5
# Of the scales, from the full size down (Wang, Simoncelli and Bovik 2003).
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


class CannotMeasure(ValueError):
    """A metric that these videos, or this machine, do not allow: what is missing."""


def check_pair(a: np.ndarray, b: np.ndarray) -> None:
    """Raise ValueError unless both are uint8 videos [F, H, W, 3] of one shape."""
    wrong = a.shape != b.shape or a.dtype != np.uint8 or b.dtype != np.uint8
    if wrong or a.ndim != 4 or a.shape[-1] != 3 or not a.size:
        raise ValueError(
            "need two uint8 videos [F, H, W, 3] of the same shape, got "
            f"{a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)}"
        )


def check_size(what: str, frames: np.ndarray, least: int, hint: str = "") -> None:
    """Raise CannotMeasure for frames [F, H, W, 3] of fewer than ``least`` pixels a side."""
    height, width = frames.shape[1:3]
    if min(height, width) < least:
        raise CannotMeasure(
            f"{what} needs frames of {least} x {least} or more, got {height} x {width}{hint}"
        )


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio in dB over all frames of two uint8 videos [F, H, W, 3].

    Equal videos give inf. Raises ValueError for another dtype or for different shapes.
    """
    check_pair(a, b)
    return _decibels(float(np.mean([_squared(x, y) for x, y in zip(a, b, strict=True)])))


def psnr_by_frame(a: np.ndarray, b: np.ndarray) -> list[float]:
    """Return PSNR in dB of each pair of frames of two uint8 videos [F, H, W, 3].

    Raises ValueError for another dtype or for different shapes.
    """
    check_pair(a, b)
    return [_decibels(_squared(x, y)) for x, y in zip(a, b, strict=True)]


def _squared(a: np.ndarray, b: np.ndarray) -> float:
    """Return the mean squared difference of two frames."""
    return float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))


def _decibels(error: float) -> float:
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Return the structural similarity of two uint8 videos [F, H, W, 3], averaged over all frames.

    Wang et al. 2004, with an 11 x 11 Gaussian window of sigma 1.5, averaged over the channels too.
    Raises ValueError for another dtype, different shapes, or frames smaller than 11 x 11.
    """
    return float(np.mean(ssim_by_frame(a, b)))


def ssim_by_frame(a: np.ndarray, b: np.ndarray) -> list[float]:
    """Return the structural similarity of each pair of frames of two uint8 videos [F, H, W, 3].

    Raises ValueError as ``ssim`` does.
    """
    check_pair(a, b)
    check_size("SSIM", a, WINDOW)
    return [float(_similarity(_planes(x), _planes(y))[0].mean()) for x, y in zip(a, b, strict=True)]


def ms_ssim(a: np.ndarray, b: np.ndarray, scales: int = len(WEIGHTS)) -> float:
    """Return the multi-scale structural similarity of two uint8 videos [F, H, W, 3].

    Wang, Simoncelli and Bovik 2003: contrast and structure of every scale, luminance of the last,
    each to the power of its weight, by channel, averaged over channels and frames. What is negative
    counts as 0. Each scale is half the one before (mean of 2 x 2 pixels).

    Args:
        a: A video.
        b: Another of the same shape.
        scales: 1 to 5. Fewer than 5 is another metric, for pictures that 5 do not fit into; its
            weights are the first ones, scaled to a sum of 1.

    Raises:
        ValueError: Another dtype, different shapes, or frames smaller than the scales need: 11
            pixels in the last one, so 176 x 176 for five.
    """
    check_pair(a, b)
    if scales not in range(1, len(WEIGHTS) + 1):
        raise ValueError(f"scales must be 1 to {len(WEIGHTS)}, got {scales!r}")
    least = WINDOW * 2 ** (scales - 1)
    side = min(a.shape[1:3])
    fitting = int(math.log2(side / WINDOW)) + 1 if side >= WINDOW else 0
    hint = f"; accel.quality.ms_ssim(a, b, scales={fitting}) takes these" if fitting else ""
    check_size(f"MS-SSIM with {scales} scales", a, least, hint)
    return float(np.mean([_of_scales(x, y, scales) for x, y in zip(a, b, strict=True)]))


def _of_scales(a: np.ndarray, b: np.ndarray, scales: int) -> float:
    """Return MS-SSIM of two frames uint8 [H, W, 3]."""
    x, y = _planes(a), _planes(b)
    total = torch.ones(len(x), dtype=torch.float64, device="cpu")
    whole_sum = 1.0 if scales == len(WEIGHTS) else sum(WEIGHTS[:scales])
    for scale, weight in enumerate(WEIGHTS[:scales]):
        if scale:
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        whole, contrast = _similarity(x, y)
        part = (whole if scale == scales - 1 else contrast).mean((1, 2, 3))
        total *= part.clamp_min(0) ** (weight / whole_sum)
    return float(total.mean())


def _planes(frame: np.ndarray) -> Tensor:
    """Return a frame uint8 [H, W, 3] as fp64 [3, 1, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(frame)).double().permute(2, 0, 1)[:, None]


def _similarity(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return SSIM, and its part of contrast and structure, at every place of [C, 1, H, W]."""
    half = WINDOW // 2
    places = torch.arange(-half, half + 1, dtype=torch.float64, device="cpu")
    line = torch.exp(-(places**2) / (2 * 1.5**2))
    line = line / line.sum()

    def blur(image: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(image, line.view(1, 1, 1, -1)), line.view(1, 1, -1, 1))

    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    contrast = (2 * cov + c2) / (vx + vy + c2)
    return contrast * (2 * mx * my + c1) / (mx * mx + my * my + c1), contrast
