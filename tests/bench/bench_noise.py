"""How much of the first frame's noise do latents still hold where motion has carried it?

    python tests/bench/bench_noise.py [--size 256] [--frames 49] [--json FILE]

The first frame's noise is taken as constant over each sample, and its integral over the places that
a zoom brings to each latent pixel is computed exactly. Printed is its correlation with the latents'
noise of the last frame, by samples a pixel and side, with equal weights and with the square roots
of the densities.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from rows import append, flat

from accel.kernels.warp import NoiseWarper
from accel.pipelines.motion.flows import open_motion
from accel.pipelines.motion.grid import Grid
from accel.pipelines.motion.latents import pooled

CHANNELS, CELL = 8, 8


def covered(size: int, scale: int, zoom: float) -> torch.Tensor:
    """What share of each sample [size * scale] lies in each latent pixel's origin, along a side."""
    center, cells = (size - 1) / 2, size // CELL
    edges = np.arange(cells + 1) * CELL - 0.5
    origin = (center + (edges - center) / zoom + 0.5) * scale
    samples = np.arange(size * scale)
    low = np.maximum(origin[:-1, None], samples)
    high = np.minimum(origin[1:, None], samples + 1)
    return torch.from_numpy(np.maximum(high - low, 0)).float()


def kept(zoom: float, frames: int, size: int, scale: int) -> tuple[float, float]:
    """Correlation with the exactly moved noise: equal weights, and weighted."""
    grid = Grid(size, size, scale)
    moving = open_motion({"camera": {"zoom": zoom}}, frames=frames, height=size, width=size)
    warper = NoiseWarper(CHANNELS, *grid.shape, seed=1)
    first = warper.noise.clone()
    for step in moving.steps(grid, frames):
        flows = (torch.from_numpy(flow).permute(2, 0, 1) for flow in step)
        warper.advance(*flows, out=torch.empty_like(first))
    whole = zoom ** (frames - 1)
    share = covered(size, scale, whole)
    exact = torch.einsum("ia,cab,jb->cij", share, first, share)
    exact = exact / share.square().sum(1).sqrt()[:, None] / share.square().sum(1).sqrt()
    edge = 4 if whole >= 1 else int(size // CELL * (1 - whole) / 2) + 3
    inner = (slice(None), slice(edge, -edge), slice(edge, -edge))
    found = [pooled(warper, CELL * scale, weighted=weighted) for weighted in (False, True)]
    return tuple(
        float(torch.corrcoef(torch.stack([exact[inner].flatten(), f[inner].flatten()]))[0, 1])
        for f in found
    )  # type: ignore[return-value]


def main() -> None:
    """Measure and print; with ``--json`` also write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--frames", type=int, default=49)
    parser.add_argument("--zooms", type=float, nargs="+", default=[1.015, 1.003, 0.99])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    result: dict[str, dict[str, float]] = {}
    for zoom in args.zooms:
        result[f"zoom {zoom}"] = values = {}
        for scale in (1, 2, 4):
            equal, weighted = kept(zoom, args.frames, args.size, scale)
            values |= {f"{scale}": weighted, f"{scale} equal weights": equal}
        print(f"zoom {zoom}: " + ", ".join(f"{key} {value:.2f}" for key, value in values.items()))
    if args.json:
        append(args.json, flat(result, "noise", {"": "correlation"}), weights=None)


if __name__ == "__main__":
    main()
