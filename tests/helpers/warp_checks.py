"""Flows and statistics for the tests of warped noise; bounds follow from sample sizes."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def grid(height: int, width: int | None = None) -> Tensor:
    """Pixel positions [2, H, W] from the center, slightly off the grid: no rounding ties."""
    width = width or height
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x - (width - 1) / 2, y - (height - 1) / 2]).float() - 0.13


def constant(dx: float, dy: float = 0.0, frames: int = 1, size: int = 128) -> Tensor:
    """The same motion everywhere, [F, 2, size, size]."""
    return torch.tensor([dx, dy]).view(1, 2, 1, 1).expand(frames, 2, size, size).contiguous()


def zoom(factor: float, frames: int = 1, size: int = 128) -> Tensor:
    """Zoom about the center."""
    return ((factor - 1) * grid(size)).expand(frames, 2, size, size).contiguous()


def rotation(angle: float, frames: int = 1, size: int = 128) -> Tensor:
    """Rotation by ``angle`` radians per frame about the center."""
    c, s = math.cos(angle), math.sin(angle)
    x, y = grid(size)
    field = torch.stack([c * x - s * y - x, s * x + c * y - y])
    return field.expand(frames, 2, size, size).contiguous()


def turbulence(frames: int = 1, size: int = 128, strength: float = 6.0) -> Tensor:
    """Smooth random motion, another one in each frame."""
    g = torch.Generator().manual_seed(5)
    coarse = torch.randn(frames, 2, 6, 6, generator=g) * strength
    return torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic")


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson correlation over all elements."""
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt())


def lag(noise: Tensor, dx: int, dy: int) -> float:
    """Correlation of [..., H, W] with itself moved by (dx, dy); dy not negative."""
    height, width = noise.shape[-2:]
    here = noise[..., : height - dy, max(0, -dx) : width - max(0, dx)]
    there = noise[..., dy:, max(0, dx) : width + min(0, dx)]
    return correlation(here, there)


def moran(noise: Tensor) -> float:
    """Moran's I of [C, H, W] with the four nearest neighbors as weights."""
    c, h, w = noise.shape
    centered = noise - noise.mean((1, 2), keepdim=True)
    pairs = (centered[..., 1:] * centered[..., :-1]).sum() + (
        centered[..., 1:, :] * centered[..., :-1, :]
    ).sum()
    count = c * (h * (w - 1) + w * (h - 1))
    return float(pairs / count / centered.square().mean())


def ks_p_value(values: Tensor) -> float:
    """Kolmogorov-Smirnov against N(0, 1), asymptotic p-value."""
    x = values.flatten().double().sort().values
    n = x.numel()
    cdf = 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    d = float(torch.maximum(cdf - steps[:-1], steps[1:] - cdf).max())
    t = d * (math.sqrt(n) + 0.12 + 0.11 / math.sqrt(n))
    return min(1.0, 2 * sum((-1) ** (k - 1) * math.exp(-2 * (k * t) ** 2) for k in range(1, 60)))


def assert_white(noise: Tensor, sigmas: float = 5.0) -> None:
    """Unit variance and no neighbor correlation in [C, H, W], within standard errors."""
    c, h, w = noise.shape
    assert abs(float(noise.var()) - 1) < sigmas * math.sqrt(2 / noise.numel())
    assert abs(moran(noise)) < sigmas / math.sqrt(c * (h * (w - 1) + w * (h - 1)))


def pooled(noise: Tensor, by: int = 8) -> Tensor:
    """Block means of [C, H, W] at unit variance, as latents are made."""
    return torch.nn.functional.avg_pool2d(noise, by) * by
