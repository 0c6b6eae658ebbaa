"""Attention heads that look along the motion: their targets, their first weights, and their loss.

What moves with the noise is for the transformer to find in the noise alone, token by token. Six of
its heads get that task: each looks in the frame before its own, or the one after, for the token
with the same noise.
"""

from __future__ import annotations

from collections.abc import Callable
from math import cos, sin
from typing import Any

import numpy as np
import torch
from clips import Layer, whereabouts
from diffusers import WanTransformer3DModel
from pooled import SPATIAL, TEMPORAL
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import conv2d, pad
from train_common import FRAMES, SIZE

TOKEN = 2 * SPATIAL  # pixels per side
GRID = SIZE // TOKEN
# Block, head, and the frame (before or after its own) in which this head looks for its token.
FOLLOWING = ((0, 0, -1), (0, 1, 1), (1, 2, -1), (2, 1, 1), (3, 1, -1), (4, 0, 1))


def token_centers() -> np.ndarray:
    """Return the pixel coordinates (x, y) of the middle of each token, [8, 8, 2]."""
    y, x = np.mgrid[0:SIZE:TOKEN, 0:SIZE:TOKEN] + (TOKEN - 1) / 2
    return np.stack([x, y], -1)


def token_paths(layers: list[Layer]) -> np.ndarray:
    """Return where each token's center moves: fp16 [5, 5, 64, 2], (x, y) in tokens.

    It is NaN where the center is covered.
    """
    paths = whereabouts(layers, token_centers().reshape(-1, 2), range(0, FRAMES, TEMPORAL))
    return ((paths - (TOKEN - 1) / 2) / TOKEN).astype(np.float16)


def follow_targets(paths: Tensor) -> Tensor:
    """Return which tokens of other frames show what a token shows.

    The result is weights [B, 320, 320] whose rows sum to 1. ``paths`` [B, 5, 5, 64, 2] are those of
    ``token_paths``; between tokens the weights are bilinear. Rows of tokens that are seen in no
    other frame are 0.
    """
    grid = torch.arange(GRID, device=paths.device)
    x, y = (1 - (paths.float()[..., None] - grid).abs()).clamp_min(0).nan_to_num(0).unbind(-2)
    weights = (y[..., :, None] * x[..., None, :]).flatten(-2)  # [B, 5, 5, 64, 64]
    own = torch.eye(paths.shape[1], dtype=torch.bool, device=paths.device)
    weights = weights * ~own[..., None, None]
    weights = weights.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    total = weights.sum(-1, keepdim=True)
    return torch.where(total > 0.5, weights / total.clamp_min(1e-6), 0.0)


def toward(follow: Tensor, step: int) -> Tensor:
    """Return the targets ``follow`` that are ``step`` frames away, scaled to sum to 1 again."""
    frames = follow.unflatten(2, (-1, GRID**2)).unflatten(1, (-1, GRID**2))  # [B, 5, 64, 5, 64]
    at = torch.arange(frames.shape[1], device=follow.device)
    chosen = (at[None] - at[:, None] == step).view(1, len(at), 1, len(at), 1)
    kept = (frames * chosen).flatten(3).flatten(1, 2)
    total = kept.sum(-1, keepdim=True)
    return torch.where(total > 0.05, kept / total.clamp_min(1e-6), 0.0)


def smooth_tokens(latents: Tensor) -> Tensor:
    """Return latents [B, 12, 5, 16, 16] smoothed by a Gaussian, as tokens [B, 320, 48].

    The Gaussian has a width of one latent pixel, and the result has variance 1. Of all widths and
    other features that were tried, this one separates tokens of warped noise best.
    """
    batch, channels, frames = latents.shape[:3]
    tap = torch.exp(-(torch.arange(-3, 4, device=latents.device) ** 2) / 2)
    tap /= tap.sum()
    x = pad(latents.transpose(1, 2).reshape(-1, 1, *latents.shape[3:]), (3,) * 4, "replicate")
    x = conv2d(conv2d(x, tap.view(1, 1, 1, -1)), tap.view(1, 1, -1, 1))
    x = x.view(batch, frames, channels, GRID, 2, GRID, 2).permute(0, 1, 3, 5, 4, 6, 2)
    return (x / x.std()).reshape(batch, frames * GRID**2, -1)


def start_of_head(features: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Return queries and keys [64, N] of a head from ``features`` [48, N], before rotation.

    The bias is the last feature. Logits are 10 times the mean product of the features. Constants
    add 8 cos(d), and less of slower cosines, for a distance of d frames from the wanted one, and
    subtract a quarter of the squared distance in tokens.
    """
    width = 64
    axes = (width - 4 * (width // 6), 2 * (width // 6), 2 * (width // 6))  # time, height, width
    constants = ((8.0, 6.0, 4.0), (0.4, 1.5), (0.4, 1.5))  # logits, of the fastest pairs
    query, key = (features.new_zeros(width, features.shape[1]) for _ in range(2))
    first, free = 0, []
    for axis, (size, logits) in enumerate(zip(axes, constants, strict=True)):
        for pair in range(size // 2):
            place = first + 2 * pair
            if pair >= len(logits):
                free += [place, place + 1]
                continue
            angle = step * 10_000.0 ** (-2 * pair / size) if axis == 0 else 0.0
            radius = (logits[pair] * width**0.5) ** 0.5
            query[place, -1] = radius
            key[place, -1], key[place + 1, -1] = radius * cos(angle), -radius * sin(angle)
        first += size
    content = features * (10.0 * width**0.5 / len(features)) ** 0.5
    query[free[: len(features)]] = content
    key[free[: len(features)]] = content
    return query, key


class FollowingHeads:
    """Heads that are taught to attend along the motion, to the frame before or the one after.

    Such a head passes on what a token's pixels look like there, wherever they are. Without help,
    training finds heads that look at the same place instead, and never leaves them: a token must be
    recognized by noise that is smoothed beyond its edges, and softmax gives no gradient that leads
    there. So ``begin`` gives these heads queries and keys that roughly follow the motion, and a
    loss keeps them there.
    """

    def __init__(self, transformer: WanTransformer3DModel) -> None:
        self.transformer, self.kept = transformer, {}
        for block in {block for block, _, _ in FOLLOWING}:
            attention = transformer.blocks[block].attn1
            for name in ("norm_q", "norm_k"):
                attention.get_submodule(name).register_forward_hook(self._keep(block, name))

    def _keep(self, block: int, name: str) -> Callable[[Module, Any, Tensor], None]:
        def hook(module: Module, args: Any, output: Tensor) -> None:
            self.kept[block, name] = output

        return hook

    def _logits(self, turn: Tensor, block: int, head: int) -> Tensor:
        """Return the head's logits in the last call, [B, 320, 320]; ``turn`` rotates its pairs."""
        pairs = turn.shape[-1]
        q, k = (
            torch.view_as_real(
                turn * torch.view_as_complex(
                    self.kept[block, name].float().unflatten(2, (-1, pairs, 2))[:, :, head]
                )
            ).flatten(2)
            for name in ("norm_q", "norm_k")
        )  # fmt: skip
        return q @ k.transpose(1, 2) * (2 * pairs) ** -0.5

    def loss(self, latents: Tensor, follow: Tensor) -> Tensor:
        """Return the mean over heads of the cross entropy of their attention in the last call."""
        real, imaginary = (x.float() for x in self.transformer.rope(latents))
        turn = torch.complex(real[..., 0::2], imaginary[..., 1::2])[:, :, 0]
        targets, losses = {step: toward(follow, step) for step in (-1, 1)}, []
        for block, head, step in FOLLOWING:
            target = targets[step]
            taken = self._logits(turn, block, head).log_softmax(-1)
            losses.append(-(target * taken).sum() / target.sum().clamp_min(1))
        return torch.stack(losses).mean()

    def _input(self, attention: Module, noisy: Tensor, times: Tensor, text: Tensor) -> Tensor:
        """Return the input of ``attention``, [B, 320, 192], in a call of the transformer."""
        seen: list[Tensor] = []
        hook = attention.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        self.transformer(noisy, timestep=times * 1000, encoder_hidden_states=text)
        hook.remove()
        return seen[0]

    @torch.no_grad()
    def begin(self, noisy: Tensor, times: Tensor, text: Tensor) -> None:
        """Set the queries and keys of these heads, from their inputs for ``noisy``.

        ``noisy`` [B, 12, 5, 16, 16] is at ``times`` [B], with prompt embeddings ``text``.

        Pairs of slow rotary frequencies take the smoothed latents, the others a constant: those of
        time favor the wanted frame, those of place favor near tokens.
        """
        wanted = smooth_tokens(noisy)
        for block, head, step in FOLLOWING:
            attention = self.transformer.blocks[block].attn1
            x = self._input(attention, noisy, times, text).float().flatten(0, 1)
            x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
            ridge = 1e-3 * len(x) * torch.eye(x.shape[1], device=x.device)
            solved = torch.linalg.solve(x.T @ x + ridge, x.T @ wanted.flatten(0, 1)).T
            query, key = start_of_head(solved, step)
            rows = slice(head * len(query), (head + 1) * len(query))
            for linear, norm, start in (
                (attention.to_q, attention.norm_q, query),
                (attention.to_k, attention.norm_k, key),
            ):
                # The norm is over all heads: keep this one's part of it, and undo the norm's.
                before = linear(x[:, :-1])
                made = x @ start.T
                size = (before[:, rows].square().mean() / made.square().mean()).sqrt()
                linear.weight[rows], linear.bias[rows] = start[:, :-1] * size, start[:, -1] * size
                norm.weight[rows] = before.square().mean(1).sqrt().mean() / size
