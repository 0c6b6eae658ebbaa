"""A second loss on a middle block: it must know what its tokens show (REPA, arXiv 2410.06940).

In REPA a middle layer of a diffusion transformer predicts the features that a frozen encoder finds
in the clean picture. Here no encoder is needed: clips are drawn, so their contents are known
exactly. Predicted for each token are how far its points are from the nearest outline, which shape
that is, its color and the ground's, and how it moves. The small head that predicts them is not
exported.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from clips import COLORS, SHAPES, Layer, shape_distance
from diffusers import WanTransformer3DModel
from following import GRID, TOKEN, token_centers
from pooled import TEMPORAL
from torch import Tensor
from torch.nn import LayerNorm, Linear, Module, Sequential, SiLU
from train_common import FRAMES

BLOCK = 2  # the block, of six, whose output is used
POINTS = 4  # points per side of each token
REACH = 8.0  # pixels; larger distances from an outline count as this one
PARTS = (POINTS**2, len(SHAPES), 3, 3, 2)  # distances, shape, its color, the ground's, motion
WIDTH = sum(PARTS)


def latent_times() -> np.ndarray:
    """Return the middle of what each latent frame shows, in frames: 0, 2.5, 6.5, ..."""
    return np.maximum(0.0, TEMPORAL * np.arange((FRAMES - 1) // TEMPORAL + 1) - 1.5)


def _moved(layer: Layer, points: np.ndarray, time: float) -> np.ndarray:
    """Return how far ``points`` of a layer move in one frame around ``time``, in pixels."""
    u = layer.path.inverse(points, time)
    return layer.path.forward(u, time + 0.5) - layer.path.forward(u, time - 0.5)


def scene_of(layers: list[Layer], time: float) -> np.ndarray:
    """Return what tokens show at one time, [8, 8, WIDTH], in the order of ``PARTS``."""
    ground, *shapes = layers
    y, x = (np.mgrid[0 : GRID * POINTS, 0 : GRID * POINTS] + 0.5) * (TOKEN / POINTS) - 0.5
    far = np.stack([shape_distance(s, np.stack([x, y], -1), time) for s in shapes])
    fine = np.clip(far.min(0) / REACH, -1, 1)
    fine = fine.reshape(GRID, POINTS, GRID, POINTS).transpose(0, 2, 1, 3).reshape(GRID, GRID, -1)
    center = token_centers()
    away = np.stack([shape_distance(s, center, time) for s in shapes])
    nearest, motion = away.argmin(0), _moved(ground, center, time)
    for shape, distance in zip(shapes, away, strict=True):  # the last one is on top
        here = distance < 0
        motion[here] = _moved(shape, center[here], time)
    kinds = np.eye(len(SHAPES))[[SHAPES.index(str(s.shape)) for s in shapes]]
    colors = np.asarray([COLORS[s.color] for s in shapes])
    base = np.broadcast_to(COLORS[ground.color], (GRID, GRID, 3))
    return np.concatenate([fine, kinds[nearest], colors[nearest], base, motion], -1)


def scene_targets(layers: list[Layer]) -> np.ndarray:
    """Return what each token of a clip shows, fp16 [5, 8, 8, WIDTH], in the order of ``PARTS``."""
    return np.stack([scene_of(layers, time) for time in latent_times()]).astype(np.float16)


def mirror_scenes(scenes: Tensor) -> Tensor:
    """Return the targets [B, T, 8, 8, WIDTH] of the same clips with left and right swapped."""
    fine, *rest, motion = scenes.flip(3).split(PARTS, -1)
    fine = fine.unflatten(-1, (POINTS, POINTS)).flip(-1).flatten(-2)
    return torch.cat([fine, *rest, motion * motion.new_tensor([-1.0, 1.0])], -1)


def near_outline(scenes: Tensor) -> Tensor:
    """Return 1 in latent pixels within or close to a shape, else 0: [B, 1, T, 16, 16]."""
    fine = scenes[..., : POINTS**2].unflatten(-1, (2, POINTS // 2, 2, POINTS // 2))
    least = fine.amin((-3, -1))  # [B, T, 8, 8, 2, 2]
    plane = least.permute(0, 1, 2, 4, 3, 5).reshape(*least.shape[:2], 2 * GRID, 2 * GRID)
    return (plane < 3.0 / REACH).float()[:, None]


class SceneHead(Module):
    """Predicts targets from the output of a block of ``transformer`` in its last call.

    ``scenes`` [N, 5, 8, 8, WIDTH] are those of all training clips, for mean and deviation.
    """

    def __init__(self, transformer: WanTransformer3DModel, scenes: Tensor) -> None:
        super().__init__()
        width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
        self.net = Sequential(LayerNorm(width), Linear(width, 256), SiLU(), Linear(256, WIDTH))
        self.register_buffer("mean", scenes.float().mean((0, 1, 2, 3)))
        self.register_buffer("spread", scenes.float().std((0, 1, 2, 3)))
        self.kept: list[Tensor] = []
        transformer.blocks[BLOCK].register_forward_hook(self._keep)

    def _keep(self, module: Module, args: Any, output: Tensor) -> None:
        self.kept[:] = [output]

    def loss(self, scenes: Tensor) -> Tensor:
        """Return the mean squared error for targets [B, T, 8, 8, WIDTH], in their deviations.

        Single frames (T = 1) show no motion, so it is left out for them.
        """
        guess = self.net(self.kept.pop().float()).view_as(scenes)
        error = guess - (scenes - self.mean) / self.spread
        return error[..., : -PARTS[-1] if scenes.shape[1] == 1 else None].square().mean()
