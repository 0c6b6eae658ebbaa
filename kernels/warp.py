"""Noise carried along an optical flow that stays exactly Gaussian.

The method is Go-with-the-Flow (Burgert et al. 2025, arXiv 2501.08331). Each frame's noise
q [C, H, W] is i.i.d. N(0, 1); the density rho [H, W] says how much source noise a pixel holds. One
step from frame to frame:

1. Integer flows: forward floor(f + u), backward -floor(-b + u), with one offset u per frame.
   "dither" moves u along a golden-ratio sequence, so sub-pixel motion is unbiased and neighbors
   with equal flow stay together. "round" fixes u = 1/2 (the released code's rounding, which loses
   slow motion).
2. Edges: from every source pixel to its target in the forward flow, and for every target without
   one, from the pixel that the backward flow names (expansion). A target without any edge is a hole
   and gets fresh noise.
3. Split: a source with d edges sends Y = q / sqrt(d) + (Z - mean Z) with fresh Z. The copies are
   independent, have unit variance, and still sum to sqrt(d) q. All edges of a source are split
   together.
4. Merge: r = rho / d per edge, q' = sum sqrt(r) Y / sqrt(sum r), rho' = sum r. These weights
   conserve the integral noise sqrt(rho) q, so expansion followed by contraction returns the source
   (with the published weights r it does not).

A copied pixel (one edge out, one edge in) is copied bit for bit. Without a backward flow its
fixed-point inverse is used: the published b = -f loses half of the correlation in a zoom. Random
numbers depend on seed, frame, channel and pixel only, so the bytes are the same for any
implementation, number of threads, and split into channels or calls.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

from accel.kernels import reference_warp
from accel.kernels.cpu import warp as cpu
from accel.kernels.dispatch import CPU, WARP, resolve
from accel.kernels.flow import inverse_flow as inverse_flow
from accel.kernels.gpu.support import why_not_gpu

Mode = Literal["dither", "round"]
Impl = Literal["auto", "reference", "cpu", "gpu"]

_PHI = (math.sqrt(5) - 1) / 2
_MAX_PIXELS = 2**29  # pixel and edge numbers are 32-bit


def warp_noise(
    flow: Tensor,
    *,
    channels: int,
    seed: int,
    backward: Tensor | None = None,
    mode: Mode = "dither",
    impl: Impl = "auto",
) -> Tensor:
    """Return noise that moves with ``flow``, every frame i.i.d. N(0, 1) over pixels and channels.

    The method is Go-with-the-Flow (arXiv 2501.08331); the module docstring says how it differs.

    Args:
        flow: Float [F, 2, H, W], pixels (dx, dy) from each frame to the next, on the earlier
            frame's grid.
        channels: Channels of the noise, at least 1.
        seed: Same seed and flow, same noise.
        backward: Float [F, 2, H, W], from the next frame back, on the later grid; computed if None.
        mode: "dither" moves without bias at sub-pixel speeds, "round" rounds to whole pixels.
        impl: "auto", or one of "reference", "cpu" and "gpu".

    Returns:
        Noise fp32 [F + 1, channels, H, W], on the flow's GPU where the GPU kernels run, else on the
        CPU.

    Raises:
        ValueError: A wrong shape, a non-finite flow, no channel, or an unknown mode.
        RuntimeError: ``impl`` cannot run here.

    Example::

        flow = torch.zeros(16, 2, 60, 104)
        flow[:, 0] = 1.5  # 1.5 pixels to the right per frame
        noise = accel.kernels.warp.warp_noise(flow, channels=16, seed=0)  # [17, 16, 60, 104]
    """
    check_flow("flow", flow)
    if backward is not None:
        check_flow("backward", backward)
        if backward.shape != flow.shape:
            raise ValueError(
                f"backward must have flow's shape {tuple(flow.shape)}, got {tuple(backward.shape)}"
            )
    height, width = flow.shape[-2:]
    warper = NoiseWarper(
        channels, height, width, seed=seed, mode=mode, impl=impl, device=flow.device
    )
    frames = warper.noise.new_empty(flow.shape[0] + 1, channels, height, width)
    frames[0] = warper.noise
    for i in range(flow.shape[0]):
        warper.advance(flow[i], None if backward is None else backward[i], out=frames[i + 1])
    return frames


class NoiseWarper:
    """The same warp frame by frame (streaming).

    ``noise`` is the current frame, fp32 [C, H, W], and must not be written to. It is on ``device``
    where the GPU kernels run there, else on the CPU.
    """

    def __init__(
        self, channels: int, height: int, width: int, *, seed: int, mode: Mode = "dither",
        impl: Impl = "auto", device: torch.device = CPU,
    ) -> None:  # fmt: skip
        if mode not in ("dither", "round"):
            raise ValueError(f"mode must be 'dither' or 'round', got {mode!r}")
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}")
        if not 1 <= height * width <= _MAX_PIXELS:
            raise ValueError(f"a frame must have 1 to {_MAX_PIXELS} pixels, got {height} x {width}")
        if impl != "gpu" and why_not_gpu(device):
            device = CPU
        self.impl = resolve(WARP, impl, device)
        self.seed, self.mode, self.frame = seed & (2**64 - 1), mode, 0
        self._rho = torch.ones(height, width, dtype=torch.float32, device=device)
        self.noise = torch.empty(channels, height, width, dtype=torch.float32, device=device)
        if self.impl == "reference":
            self.noise.copy_(
                reference_warp.normal(
                    torch.arange(height * width, dtype=torch.int64, device="cpu"), channels,
                    seed=self.seed, frame=0, stream=reference_warp.FRESH,
                ).view(self.noise.shape)
            )  # fmt: skip
        else:
            _kernels(self.impl).fresh(self.noise, seed=self.seed, frame=0)

    @property
    def density(self) -> Tensor:
        """How much source noise each pixel holds, fp32 [H, W]; 1 where nothing moved."""
        return self._rho

    def step(self, flow: Tensor, backward: Tensor | None = None) -> Tensor:
        """Advance one frame along ``flow [2, H, W]`` and return the new frame's noise.

        Raises ValueError for a flow of another shape or with values that are not finite.
        """
        for name, field in (("flow", flow), ("backward", backward)):
            if field is not None:
                check_flow(name, field[None])
                if field.shape[1:] != self.noise.shape[1:]:
                    raise ValueError(
                        f"{name} must be [2, {self.noise.shape[1]}, {self.noise.shape[2]}], got "
                        f"{tuple(field.shape)}"
                    )
        return self.advance(flow, backward, out=torch.empty_like(self.noise))

    def advance(self, flow: Tensor, backward: Tensor | None, *, out: Tensor) -> Tensor:
        """Do what ``step`` does, without its checks, into ``out`` fp32 [C, H, W].

        ``out`` must be contiguous; it becomes ``noise``.
        """
        self.frame += 1
        device = self.noise.device
        forward = flow.detach().to(device, torch.float32)
        back = None if backward is None else backward.detach().to(device, torch.float32)
        u, key = rounding_offset(self.frame, self.mode), {"seed": self.seed, "frame": self.frame}
        if self.impl == "reference":
            offset = torch.tensor(u, dtype=torch.float32, device="cpu")
            noise, self._rho = reference_warp.step(
                self.noise, self._rho, forward, back, offset, **key
            )
            out.copy_(noise)
        else:
            self._rho = _kernels(self.impl).step(
                self.noise, self._rho, forward, back, u, out=out, **key
            )
        self.noise = out
        return out


def _kernels(impl: str) -> ModuleType:
    """Return an implementation's module with ``fresh`` and ``step``; Triton only if needed."""
    if impl == "cpu":
        return cpu
    from accel.kernels.gpu import warp as gpu

    return gpu


def rounding_offset(frame: int, mode: Mode) -> tuple[float, float]:
    """Return the rounding offset (x, y) in [0, 1), the same for the whole frame."""
    if mode == "round":
        return 0.5, 0.5
    return (frame * _PHI + 0.5) % 1.0, (frame * _PHI * _PHI + 0.25) % 1.0


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
