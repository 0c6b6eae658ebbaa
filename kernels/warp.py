"""Noise carried along an optical flow, still exactly Gaussian (Go-with-the-Flow, arXiv 2501.08331).

Each frame's noise q [C, H, W] is i.i.d. N(0, 1); the density rho [H, W] says how much source noise
a pixel holds. One step from frame to frame:

1. Integer flows: forward floor(f + u), backward -floor(-b + u), with one offset u per frame.
   "dither" walks u along a golden-ratio sequence, so sub-pixel motion is unbiased and neighbours
   with equal flow stay together; "round" fixes u = 1/2 (the released code's rounding, which loses
   slow motion).
2. Edges: every source pixel to where the forward flow puts it; every target nobody reached, to the
   pixel the backward flow names (expansion). A target without an edge is a hole and gets fresh
   noise.
3. Split: a source with d edges sends Y = q / sqrt(d) + (Z - mean Z), Z fresh: the copies are
   independent, unit variance and still sum to sqrt(d) q. All edges of a source are split together.
4. Merge: r = rho / d per edge, q' = sum sqrt(r) Y / sqrt(sum r), rho' = sum r. These weights
   conserve the integral noise sqrt(rho) q, so expansion followed by contraction gives the source
   back (the published weights r do not).

A copied pixel (one edge out, one edge in) is copied bit for bit. Without a backward flow its
fixed-point inverse is used: the published b = -f loses half of the correlation in a zoom.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Mode = Literal["dither", "round"]

_PHI = (math.sqrt(5) - 1) / 2
_DENSITY = (1e-6, 1e6)
_INVERSE_STEPS = 8


def warp_noise(
    flow: Tensor,
    *,
    channels: int,
    seed: int,
    backward: Tensor | None = None,
    mode: Mode = "dither",
) -> Tensor:
    """Noise that moves with ``flow``.

    ``flow`` float ``[F, 2, H, W]``: pixels (dx, dy) from each frame to the next, given on the
    earlier frame's grid. ``backward``, same shape: from the next frame back, on the later grid;
    computed when None. Returns noise fp32 ``[F + 1, channels, H, W]``; every frame is N(0, 1),
    i.i.d. over pixels and channels. Same seed and flow, same noise.

    Raises ValueError for a wrong shape, a non-finite flow, no channel, or an unknown mode.
    """
    check_flow("flow", flow)
    if backward is not None:
        check_flow("backward", backward)
        if backward.shape != flow.shape:
            raise ValueError(
                f"backward must have flow's shape {tuple(flow.shape)}, got {tuple(backward.shape)}"
            )
    if channels < 1:
        raise ValueError(f"channels must be at least 1, got {channels}")
    warper = NoiseWarper(channels, flow.shape[-2], flow.shape[-1], seed=seed, mode=mode)
    frames = [warper.noise]
    for i in range(flow.shape[0]):
        frames.append(warper.step(flow[i], None if backward is None else backward[i]))
    return torch.stack(frames)


class NoiseWarper:
    """The same warp frame by frame (streaming): ``noise`` is the current frame [C, H, W]."""

    def __init__(
        self, channels: int, height: int, width: int, *, seed: int, mode: Mode = "dither"
    ) -> None:
        if mode not in ("dither", "round"):
            raise ValueError(f"mode must be 'dither' or 'round', got {mode!r}")
        self.shape = (channels, height, width)
        self.seed, self.mode, self.frame = seed, mode, 0
        self._q = self._fresh(height * width, 0)
        self._rho = torch.ones(height * width)

    @property
    def noise(self) -> Tensor:
        """Noise of the current frame, fp32 [C, H, W]."""
        return self._q.T.reshape(self.shape)

    def step(self, flow: Tensor, backward: Tensor | None = None) -> Tensor:
        """Advance one frame along ``flow [2, H, W]`` and return the new frame's noise."""
        self.frame += 1
        flow = flow.detach().to("cpu", torch.float32)
        back = (
            inverse_flow(flow) if backward is None else backward.detach().to("cpu", torch.float32)
        )
        u = _offset(self.frame, self.mode)
        source, target = _edges(torch.floor(flow + u), -torch.floor(-back + u))
        self._q, self._rho = self._transport(source, target)
        return self.noise

    def _fresh(self, count: int, stream: int) -> Tensor:
        """N(0, 1) of [count, C], from a counter-based generator keyed by seed, frame and stream."""
        key = np.random.SeedSequence([self.seed & (2**64 - 1), self.frame, stream])
        values = np.random.Generator(np.random.Philox(key)).standard_normal(
            (count, self.shape[0]), dtype=np.float32
        )
        return torch.from_numpy(values)

    def _transport(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Split over the edges and merge at their targets; returns noise [N, C] and density [N]."""
        pixels = self._rho.numel()
        degree = torch.bincount(source, minlength=pixels)
        share = degree[source]
        y = self._q[source]
        shared = share > 1
        z = self._fresh(int(shared.sum()), 1)
        origin = source[shared]
        mean = torch.zeros(pixels, self.shape[0]).index_add_(0, origin, z)[origin]
        count = share[shared][:, None].float()
        y[shared] = y[shared] / count.sqrt() + (z - mean / count)
        r = self._rho[source] / share
        arrivals = torch.bincount(target, minlength=pixels)
        density = torch.zeros(pixels).index_add_(0, target, r)
        merged = torch.zeros_like(self._q).index_add_(0, target, r.sqrt()[:, None] * y)
        noise = merged / density.clamp_min(_DENSITY[0]).sqrt()[:, None]
        single = arrivals[target] == 1
        noise[target[single]] = y[single]
        holes = arrivals == 0
        noise[holes] = self._fresh(int(holes.sum()), 2)
        density = density.masked_fill(holes, 1.0).clamp(*_DENSITY)
        return noise, density


def inverse_flow(flow: Tensor, steps: int = _INVERSE_STEPS) -> Tensor:
    """Backward flow of ``flow [2, H, W]`` by the fixed point b <- -f(p + b(p)), bilinear, edges
    clamped.
    """
    _, height, width = flow.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    grid = torch.stack([x, y]).to(flow.dtype)
    size = torch.tensor([max(width - 1, 1), max(height - 1, 1)], dtype=flow.dtype).view(2, 1, 1)
    back = -flow
    for _ in range(steps):
        where = ((grid + back) / size * 2 - 1).permute(1, 2, 0)[None]
        back = -F.grid_sample(flow[None], where, padding_mode="border", align_corners=True)[0]
    return back


def _offset(frame: int, mode: Mode) -> Tensor:
    """Rounding offset [2, 1, 1] in [0, 1), the same for the whole frame."""
    if mode == "round":
        return torch.full((2, 1, 1), 0.5)
    u = ((frame * _PHI + 0.5) % 1.0, (frame * _PHI * _PHI + 0.25) % 1.0)
    return torch.tensor(u).view(2, 1, 1)


def _edges(forward: Tensor, backward: Tensor) -> tuple[Tensor, Tensor]:
    """Edges (source, target) as flat pixel indices, from integer flows [2, H, W]."""
    _, height, width = forward.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    here = torch.arange(height * width)

    def land(shift: Tensor) -> tuple[Tensor, Tensor]:
        far = float(height + width)
        moved = shift.clamp(-far, far).long()
        tx, ty = (x + moved[0]).flatten(), (y + moved[1]).flatten()
        inside = (tx >= 0) & (tx < width) & (ty >= 0) & (ty < height)
        return ty * width + tx, inside

    there, inside = land(forward)
    source, target = here[inside], there[inside]
    reached = torch.zeros(height * width, dtype=torch.bool)
    reached[target] = True
    origin, inside = land(backward)
    grown = inside & ~reached
    return torch.cat([source, origin[grown]]), torch.cat([target, here[grown]])


def check_flow(name: str, flow: Tensor) -> None:
    """Raise ValueError, naming ``name``, unless ``flow`` is a finite float tensor [F, 2, H, W]."""
    if flow.dim() != 4 or flow.shape[1] != 2 or 0 in flow.shape[2:]:
        raise ValueError(
            f"{name} must be [F, 2, H, W] pixels (dx, dy) between frames, got {tuple(flow.shape)}"
        )
    if not flow.is_floating_point():
        raise ValueError(f"{name} must be a float tensor, got {flow.dtype}")
    if not torch.isfinite(flow).all():
        bad = int((~torch.isfinite(flow)).sum())
        raise ValueError(f"{name} has {bad} NaN or infinite values; replace them, for example by 0")
