"""Small videos for tests of metrics: noise, a moving picture, and noise upon one."""

from __future__ import annotations

import math

import numpy as np


def noise(seed: int, shape: tuple[int, ...] = (3, 24, 32, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def moving(speed: int, frames: int = 9, side: int = 96) -> np.ndarray:
    """A smooth picture that moves left by ``speed`` pixels a frame."""
    rng = np.random.default_rng(7)
    wide = side + speed * frames
    y, x = np.mgrid[0:side, 0:wide]
    picture = sum(
        np.sin(2 * math.pi * (x * rng.uniform(-9, 9) + y * rng.uniform(-9, 9)) / side + k)[
            ..., None
        ]
        * rng.uniform(-1, 1, 3)
        for k in range(24)
    )
    levels = (127.5 + 100 * picture / np.abs(picture).max()).astype(np.uint8)
    return np.stack([levels[:, speed * k : speed * k + side] for k in range(frames)])


def distorted(video: np.ndarray, amount: float, seed: int = 0) -> np.ndarray:
    shift = np.random.default_rng(seed).normal(0, amount, video.shape)
    return np.clip(np.rint(video + shift), 0, 255).astype(np.uint8)
