"""What both stages of training share: settings, checkpoints, learning rate."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from accel.core.atomic_write import write_atomic

ROOT = Path(__file__).resolve().parent
WORK = ROOT.parent / "build" / "tiny"
FRAMES, SIZE = 17, 64
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # for the second stage


@dataclass(frozen=True)
class Settings:
    """Settings of the training and its length.

    ``seed`` fixes data, weights and batches.
    """

    seed: int = 7
    clips: int = 12000
    stills: int = 60000
    vae_clips: int = 2000
    vae_steps: int = 4500
    vae_lr: float = 2e-3
    vae_noise: float = 0.05
    dit_steps: int = 25000
    dit_batch: int = 16
    dit_lr: float = 1e-3
    follow: float = 0.3
    scene: float = 0.5
    lengths: float = 30.0
    ema: float = 0.996
    warm: bool = False
    plain: bool = False

    @property
    def checkpoint(self) -> Path:
        """The checkpoint of the second stage."""
        return WORK / ("dit-plain.pt" if self.plain else "dit.pt")


def save_state(path: Path, **state: object) -> None:
    """Write a checkpoint so that a crash leaves the old one or the new one, never half of one."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getvalue())


def cosine(step: int, steps: int, peak: float, warmup: int = 200, flat: int = 0) -> float:
    """Return the learning rate at ``step``: linear warm-up, then a half cosine to 1 % of ``peak``.

    It stays at its peak up to step ``flat``.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    start = max(warmup, flat)
    x = max(0, step - start) / max(1, steps - start)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, x))))


def to_video(frames: np.ndarray) -> Tensor:
    """Return uint8 frames ``[..., F, H, W, 3]`` as float ``[..., 3, F, H, W]`` in -1..1."""
    return torch.from_numpy(frames).float().movedim(-1, -4) / 127.5 - 1.0


def descend(optimizers: list[torch.optim.Optimizer], loss: Tensor, rate: float) -> None:
    """Take one step down ``loss`` at learning rate ``rate``.

    Gradients are clipped to 1 over all weights.
    """
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    for group in groups:
        group["lr"] = rate
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], 1.0)
    for optimizer in optimizers:
        optimizer.step()
