"""Eager definition of the noise warp, step by step: the specification of kernels/cpu/warp.py.

Noise q is [C, N] with N = H * W pixels in row order, density rho [N]. Every arithmetic step is one
IEEE fp32 operation, sums run in the order of the edges (forward ones by source, then backward ones
by target), and random numbers are looked up, not streamed. So a fast implementation can match this
bit for bit.

Random numbers: Philox 4x32 with 10 rounds (Salmon et al., SC 2011), key = seed, counter = (pixel,
frame, stream, channel // 4). A call gives the normals of four neighboring channels, so the noise of
a channel depends neither on the number of channels nor on the flow elsewhere. Streams: fresh noise
of a pixel; the draw of the forward edge that leaves it; the draw of the backward edge that enters
it. Normals come from Box and Muller's transform with the polynomials below (error below 3e-7),
because libraries differ in the last bits of log, sin and cos.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from accel.kernels.flow import find_edges, inverse_flow

DENSITY = (1e-6, 1e6)
FRESH, FORWARD, BACKWARD = 0, 1, 2

_LOG = (  # ln(1 + x) = x - x^2 / 2 + x^3 P(x) for sqrt(1/2) <= 1 + x < sqrt(2); Cephes logf
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
    -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip
_SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)  # sin x = x + x^3 P(x^2), |x| <= pi/4
_COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)  # ... x^4 P(x^2)
_LN2 = (0.693359375, -2.12194440e-4)  # high and low part


def step(
    q: Tensor, rho: Tensor, forward: Tensor, backward: Tensor | None, u: Tensor, *, seed: int,
    frame: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return noise [C, H, W] and density [H, W] of frame ``frame``, one step of the warp.

    Args:
        q: Noise of the frame before, fp32 [C, H, W].
        rho: Density of the frame before, fp32 [H, W].
        forward: Flow to this frame, fp32 [2, H, W] pixels.
        backward: Flow back from this frame, fp32 [2, H, W] pixels; computed if None.
        u: The frame's rounding offset, fp32 [2].
        seed: Seed of the random numbers.
        frame: Number of this frame.
    """
    back = inverse_flow(forward) if backward is None else backward
    offset = u.view(2, 1, 1)
    edges = find_edges(torch.floor(forward + offset), -torch.floor(-back + offset))
    noise, density = _transport(q.flatten(1), rho.flatten(), *edges, seed=seed, frame=frame)
    return noise.view(q.shape), density.view(rho.shape)


def _transport(
    q: Tensor, rho: Tensor, source: Tensor, target: Tensor, forward: int, *, seed: int, frame: int
) -> tuple[Tensor, Tensor]:
    """Split noise over the edges and merge it at their targets: noise [C, N], density [N]."""
    channels, pixels = q.shape
    degree = torch.bincount(source, minlength=pixels)
    shared = degree[source] > 1
    first = torch.arange(source.numel(), dtype=torch.int64, device="cpu") < forward
    z = q.new_empty(channels, int(shared.sum()))
    for stream, chosen, pixel in ((FORWARD, first, source), (BACKWARD, ~first, target)):
        z[:, chosen[shared]] = normal(
            pixel[shared & chosen], channels, seed=seed, frame=frame, stream=stream
        )
    origin, count = source[shared], degree[source[shared]].float()
    total = q.new_zeros(channels, pixels).index_add_(1, origin, z)[:, origin]
    y = q[:, source]
    y[:, shared] = q[:, origin] / _sqrt(count) + (z - total / count)
    r = rho[source] / degree[source].float()
    arrivals = torch.bincount(target, minlength=pixels)
    density = rho.new_zeros(pixels).index_add_(0, target, r)
    merged = q.new_zeros(channels, pixels).index_add_(1, target, _sqrt(r) * y)
    noise = merged / _sqrt(density.clamp_min(DENSITY[0]))
    single = arrivals[target] == 1
    noise[:, target[single]] = y[:, single]
    holes = (arrivals == 0).nonzero()[:, 0]
    noise[:, holes] = normal(holes, channels, seed=seed, frame=frame, stream=FRESH)
    density[holes] = 1.0
    return noise, density.clamp(*DENSITY)


def _sqrt(x: Tensor) -> Tensor:
    """Return the correctly rounded square root; torch's own may be off by one bit."""
    return torch.from_numpy(np.sqrt(x.numpy()))


def normal(pixel: Tensor, channels: int, *, seed: int, frame: int, stream: int) -> Tensor:
    """Return N(0, 1) fp32 [channels, P] for the pixel indices ``pixel [P]``."""
    groups = np.arange((channels + 3) // 4, dtype=np.uint64)[:, None]
    index = pixel.numpy().astype(np.uint64)[None]
    shape = np.broadcast_shapes(groups.shape, index.shape)
    counter = [np.broadcast_to(np.uint64(c), shape) for c in (0, frame, stream, 0)]
    counter[0], counter[3] = np.broadcast_to(index, shape), np.broadcast_to(groups, shape)
    words = philox(counter, seed)
    pairs = [box_muller(words[0], words[1]), box_muller(words[2], words[3])]
    values = np.stack([value for pair in pairs for value in pair], 1)  # [G, 4, P]
    return torch.from_numpy(values.reshape(4 * len(groups), index.shape[1])[:channels])


def philox(counter: list[np.ndarray], seed: int) -> list[np.ndarray]:
    """Return the four words of Philox 4x32-10 for four counter words.

    Each word has 32 bits in a uint64 array.
    """
    low = np.uint64(0xFFFFFFFF)
    c = list(counter)
    key = [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF]
    for _ in range(10):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        shift = np.uint64(32)
        c = [
            b >> shift ^ c[1] ^ np.uint64(key[0]), b & low,
            a >> shift ^ c[3] ^ np.uint64(key[1]), a & low,
        ]  # fmt: skip
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def box_muller(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return two fp32 normals from two uniform words of 32 bits.

    The radius is sqrt(-2 ln u) for u from ``first``; the angle comes from ``second``.
    """
    f = np.float32
    u = (first >> np.uint64(1)).astype(f) * f(2.0**-31) + f(2.0**-32)  # in (0, 1]
    radius = np.sqrt(f(-2) * _log(u))
    # The angle is a quarter turn (two top bits) plus -1/8 .. 1/8 of a turn (30 bits).
    quarter = second >> np.uint64(30)
    rest = (second & np.uint64(0x3FFFFFFF)).astype(np.int64) - 2**29
    x = rest.astype(f) * f(np.pi / 2 * 2.0**-30)
    s = x * x
    sine = x + x * s * _horner(_SIN, s)
    cosine = f(1) - f(0.5) * s + s * s * _horner(_COS, s)
    swap, minus_cos, minus_sin = quarter & 1 == 1, (quarter + 1) & 2 == 2, quarter & 2 == 2
    across, up = np.where(swap, sine, cosine), np.where(swap, cosine, sine)
    return (
        radius * np.where(minus_cos, -across, across),
        radius * np.where(minus_sin, -up, up),
    )


def _log(u: np.ndarray) -> np.ndarray:
    """Return the natural logarithm of fp32 ``u`` in (0, 1]."""
    f = np.float32
    bits = u.view(np.int32) - np.int32(0x3F3504F3)  # exponent 0 for sqrt(1/2) <= u < sqrt(2)
    exponent = (bits >> 23).astype(f)
    x = ((bits & np.int32(0x7FFFFF)) + np.int32(0x3F3504F3)).view(f) - f(1)
    s = x * x
    tail = x * s * _horner(_LOG, x) + exponent * f(_LN2[1]) - f(0.5) * s
    return x + tail + exponent * f(_LN2[0])


def _horner(coefficients: tuple[float, ...], x: np.ndarray) -> np.ndarray:
    """Return a polynomial, highest coefficient first; multiply and add round separately."""
    value = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + np.float32(coefficient)
    return value
