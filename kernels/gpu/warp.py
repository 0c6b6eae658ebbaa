# mypy: disable-error-code="no-untyped-def,untyped-decorator"
"""Noise warp for GPUs, with the same bytes as ``kernels/reference_warp.py``, which defines it.

Torch finds and sorts the edges on the GPU. One program per block of target pixels and four channels
(one call of the random generator) then walks the edges that arrive there in the order of the
reference, so that sums round alike: no atomics. Split noise is not stored but drawn again where it
is needed, twice an edge. Fused multiply-add is off; division and root are the correctly rounded
ones.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from accel.kernels.flow import find_edges, inverse_flow

BLOCK = 128
EXACT = {"num_warps": 4, "enable_fp_fusion": False}
# Triton turns an integer of 1 into a constant, and compiles again for multiples of 16.
NUMBERS = ["forward", "channels", "pixels", "frame", "seed_low", "seed_high"]
FRESH, FORWARD, BACKWARD = (tl.constexpr(n) for n in range(3))  # streams of random numbers
LEAST, MOST = tl.constexpr(1e-6), tl.constexpr(1e6)  # density
# Polynomials for log (Cephes), sine and cosine, each rounded to fp32 when it meets fp32.
L0, L1, L2 = (tl.constexpr(c) for c in (7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1))
L3, L4, L5 = (tl.constexpr(c) for c in (-1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1))
L6, L7, L8 = (tl.constexpr(c) for c in (2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1))
S0, S1, S2 = (tl.constexpr(c) for c in (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1))
C0, C1 = tl.constexpr(2.443315711809948e-5), tl.constexpr(-1.388731625493765e-3)
C2 = tl.constexpr(4.166664568298827e-2)
LN2_HIGH, LN2_LOW = tl.constexpr(0.693359375), tl.constexpr(-2.12194440e-4)
TURN = tl.constexpr(1.5707963267948966 * 2.0**-30)
HALF_BITS = tl.constexpr(0x3F3504F3)  # bits of sqrt(1/2)


@triton.jit
def natural_log(u):
    """Return the natural logarithm of fp32 u in (0, 1]."""
    bits = u.to(tl.int32, bitcast=True) - HALF_BITS
    exponent = (bits >> 23).to(tl.float32)
    x = ((bits & 0x7FFFFF) + HALF_BITS).to(tl.float32, bitcast=True) - 1.0
    s = x * x
    p = ((((((((L0 * x + L1) * x + L2) * x + L3) * x + L4) * x + L5) * x + L6) * x) + L7) * x + L8
    tail = x * s * p + exponent * LN2_LOW - 0.5 * s
    return x + tail + exponent * LN2_HIGH


@triton.jit
def box_muller(first, second):
    """Return two fp32 normals from two words of 32 bits."""
    u = (first >> 1).to(tl.float32) * 4.656612873077393e-10 + 2.3283064365386963e-10
    radius = tl.sqrt_rn(-2.0 * natural_log(u))
    quarter = (second >> 30).to(tl.int32)
    x = ((second & 0x3FFFFFFF).to(tl.int32) - 0x20000000).to(tl.float32) * TURN
    s = x * x
    sine = x + x * s * ((S0 * s + S1) * s + S2)
    cosine = 1.0 - 0.5 * s + s * s * ((C0 * s + C1) * s + C2)
    swap = (quarter & 1) == 1
    across, up = tl.where(swap, sine, cosine), tl.where(swap, cosine, sine)
    return (
        radius * tl.where(((quarter + 1) & 2) == 2, -across, across),
        radius * tl.where((quarter & 2) == 2, -up, up),
    )


@triton.jit
def normals(pixel, group, frame, stream, seed_low, seed_high):
    """Return normals of channels 4 group ... 4 group + 3 at ``pixel`` [P], four times fp32 [P]."""
    seed = (seed_high.to(tl.uint32, bitcast=True).to(tl.uint64) << 32) | seed_low.to(
        tl.uint32, bitcast=True
    ).to(tl.uint64)
    p = pixel.to(tl.uint32)
    zero = p * 0
    a, b, c, d = tl.philox(seed, p, zero + frame, zero + stream, zero + group)
    n0, n1 = box_muller(a, b)
    n2, n3 = box_muller(c, d)
    return n0, n1, n2, n3


@triton.jit
def _edge_noise(edge, forward, source, target, group, frame, seed_low, seed_high):
    """Return the draw of edges, keyed by a forward edge's source or a backward edge's target."""
    ahead = edge < forward
    pixel = tl.where(ahead, source, target)
    stream = tl.where(ahead, FORWARD, BACKWARD).to(tl.uint32)
    return normals(pixel, group, frame, stream, seed_low, seed_high)


@triton.jit
def _store4(ptr, group, channels, pixels, pixel, mask, n0, n1, n2, n3):
    """Store four channels [P] of an array [C, N], except those past the last channel."""
    left = pixel * 0 + (channels - group * 4)
    at = ptr + (group * 4).to(tl.int64) * pixels + pixel
    tl.store(at, n0, mask=mask)
    tl.store(at + pixels, n1, mask=mask & (left > 1))
    tl.store(at + 2 * pixels.to(tl.int64), n2, mask=mask & (left > 2))
    tl.store(at + 3 * pixels.to(tl.int64), n3, mask=mask & (left > 3))


@triton.jit
def _load4(ptr, group, channels, pixels, pixel, mask):
    """Load four channels [P] of an array [C, N]; 0 past the last channel."""
    left = pixel * 0 + (channels - group * 4)
    at = ptr + (group * 4).to(tl.int64) * pixels + pixel
    n0 = tl.load(at, mask=mask, other=0.0)
    n1 = tl.load(at + pixels, mask=mask & (left > 1), other=0.0)
    n2 = tl.load(at + 2 * pixels.to(tl.int64), mask=mask & (left > 2), other=0.0)
    n3 = tl.load(at + 3 * pixels.to(tl.int64), mask=mask & (left > 3), other=0.0)
    return n0, n1, n2, n3


@triton.jit(do_not_specialize=NUMBERS)
def _fresh(out_ptr, channels, pixels, frame, seed_low, seed_high, BLOCK: tl.constexpr):
    """Store fresh noise of a frame, [C, N]."""
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    group = tl.program_id(1)
    n0, n1, n2, n3 = normals(pixel, group, frame, FRESH, seed_low, seed_high)
    _store4(out_ptr, group, channels, pixels, pixel, pixel < pixels, n0, n1, n2, n3)


@triton.jit
def _edges_of_block(start_ptr, count_ptr, pixels, BLOCK: tl.constexpr):
    """Return this program's pixels, which are in the picture, and where their edges are.

    The latter are the first edge in the order and the number of edges, each [BLOCK].
    """
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    start = tl.load(start_ptr + pixel, mask=inside, other=0)
    return pixel, inside, start, tl.load(count_ptr + pixel, mask=inside, other=0)


@triton.jit(do_not_specialize=NUMBERS)
def _totals(
    out_ptr, target_ptr, order_ptr, start_ptr, degree_ptr, forward, channels, pixels, frame,
    seed_low, seed_high, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store the sum of the draws of all edges that leave a source, [C, N]; 0 for fewer than two."""
    origin, inside, start, degree = _edges_of_block(start_ptr, degree_ptr, pixels, BLOCK)
    group = tl.program_id(1)
    degree = tl.where(degree > 1, degree, 0)
    t0 = tl.zeros([BLOCK], tl.float32)
    t1, t2, t3 = t0, t0, t0
    for i in range(tl.max(degree, 0)):
        live = i < degree
        edge = tl.load(order_ptr + start + i, mask=live, other=0)
        target = tl.load(target_ptr + edge, mask=live, other=0)
        n0, n1, n2, n3 = _edge_noise(
            edge, forward, origin, target, group, frame, seed_low, seed_high
        )
        t0, t1 = tl.where(live, t0 + n0, t0), tl.where(live, t1 + n1, t1)
        t2, t3 = tl.where(live, t2 + n2, t2), tl.where(live, t3 + n3, t3)
    _store4(out_ptr, group, channels, pixels, origin, inside, t0, t1, t2, t3)


@triton.jit
def _split(q, z, total, count, root):
    """Return what one edge carries: a copy of ``q``, or its share plus centered noise."""
    return tl.where(count > 1.0, tl.div_rn(q, root) + (z - tl.div_rn(total, count)), q)


@triton.jit(do_not_specialize=NUMBERS)
def _merge(
    out_ptr, density_out_ptr, q_ptr, rho_ptr, total_ptr, source_ptr, order_ptr, start_ptr,
    arrivals_ptr, degree_ptr, forward, channels, pixels, frame, seed_low, seed_high,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Store noise [C, N] and density [N] of the new frame."""
    target, inside, start, arrivals = _edges_of_block(start_ptr, arrivals_ptr, pixels, BLOCK)
    group = tl.program_id(1)
    density = tl.zeros([BLOCK], tl.float32)
    m0 = tl.zeros([BLOCK], tl.float32)
    m1, m2, m3, l0, l1, l2, l3 = m0, m0, m0, m0, m0, m0, m0
    for i in range(tl.max(arrivals, 0)):
        live = i < arrivals
        edge = tl.load(order_ptr + start + i, mask=live, other=0)
        source = tl.load(source_ptr + edge, mask=live, other=0)
        count = tl.load(degree_ptr + source, mask=live, other=1).to(tl.float32)
        n0, n1, n2, n3 = _edge_noise(
            edge, forward, source, target, group, frame, seed_low, seed_high
        )
        q0, q1, q2, q3 = _load4(q_ptr, group, channels, pixels, source, live)
        t0, t1, t2, t3 = _load4(total_ptr, group, channels, pixels, source, live)
        root = tl.sqrt_rn(count)
        y0, y1 = _split(q0, n0, t0, count, root), _split(q1, n1, t1, count, root)
        y2, y3 = _split(q2, n2, t2, count, root), _split(q3, n3, t3, count, root)
        r = tl.div_rn(tl.load(rho_ptr + source, mask=live, other=0.0), count)
        w = tl.sqrt_rn(r)
        density = tl.where(live, density + r, density)
        m0, m1 = tl.where(live, m0 + w * y0, m0), tl.where(live, m1 + w * y1, m1)
        m2, m3 = tl.where(live, m2 + w * y2, m2), tl.where(live, m3 + w * y3, m3)
        l0, l1 = tl.where(live, y0, l0), tl.where(live, y1, l1)
        l2, l3 = tl.where(live, y2, l2), tl.where(live, y3, l3)
    root = tl.sqrt_rn(tl.maximum(density, LEAST))
    f0, f1, f2, f3 = normals(target, group, frame, FRESH, seed_low, seed_high)
    hole, single = arrivals == 0, arrivals == 1
    _store4(
        out_ptr, group, channels, pixels, target, inside,
        tl.where(hole, f0, tl.where(single, l0, tl.div_rn(m0, root))),
        tl.where(hole, f1, tl.where(single, l1, tl.div_rn(m1, root))),
        tl.where(hole, f2, tl.where(single, l2, tl.div_rn(m2, root))),
        tl.where(hole, f3, tl.where(single, l3, tl.div_rn(m3, root))),
    )  # fmt: skip
    density = tl.minimum(tl.maximum(tl.where(hole, 1.0, density), LEAST), MOST)
    tl.store(density_out_ptr + target, density, mask=inside & (target * 0 + group == 0))


def fresh(out: Tensor, *, seed: int, frame: int) -> None:
    """Fill ``out`` fp32 [C, H, W], contiguous, with the fresh noise of a frame."""
    channels, pixels = out.shape[0], out[0].numel()
    grid = (triton.cdiv(pixels, BLOCK), triton.cdiv(channels, 4))
    _fresh[grid](out, channels, pixels, frame, *_words(seed), BLOCK=BLOCK, **EXACT)


def step(
    q: Tensor, rho: Tensor, forward: Tensor, backward: Tensor | None, u: tuple[float, float], *,
    seed: int, frame: int, out: Tensor,
) -> Tensor:  # fmt: skip
    """Write one frame's noise to ``out`` and return its density fp32 [H, W].

    q and ``out`` fp32 [C, H, W], rho fp32 [H, W], all contiguous; flows fp32 [2, H, W] pixels; all
    on one device.
    """
    back = inverse_flow(forward) if backward is None else backward
    offset = torch.tensor(u, dtype=torch.float32, device=forward.device).view(2, 1, 1)
    source, target, ahead = find_edges(torch.floor(forward + offset), -torch.floor(-back + offset))
    channels, pixels = q.shape[0], rho.numel()
    grid = (triton.cdiv(pixels, BLOCK), triton.cdiv(channels, 4))
    leaving, degree, first = _by_pixel(source, pixels)
    arriving, arrivals, start = _by_pixel(target, pixels)
    source, target = source.int(), target.int()
    key = (frame, *_words(seed))
    total, density = torch.empty_like(q), torch.empty_like(rho)
    _totals[grid](
        total, target, leaving, first, degree, ahead, channels, pixels, *key, BLOCK=BLOCK, **EXACT,
    )  # fmt: skip
    _merge[grid](
        out, density, q, rho, total, source, arriving, start, arrivals, degree, ahead, channels,
        pixels, *key, BLOCK=BLOCK, **EXACT,
    )  # fmt: skip
    return density


def _by_pixel(end: Tensor, pixels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sort edges by one end, in their own order there: int32 order [E], counts and starts [N]."""
    order = torch.argsort(end, stable=True).int()
    count = torch.bincount(end, minlength=pixels)
    return order, count.int(), (count.cumsum(0) - count).int()


def _words(seed: int) -> tuple[int, int]:
    """Return the two halves of a 64-bit seed as signed 32-bit numbers."""
    low, high = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    return low - (low >> 31 << 32), high - (high >> 31 << 32)
