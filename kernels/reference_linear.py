"""Eager definition of 8-bit linear layers: the specification that fast code is tested against.

y = activation(x W^T + bias) for x [M, K] and W [N, K], held as follows (SmoothQuant, arXiv
2211.10438, is the smoothing; LLM.int8(), arXiv 2208.07339, the columns kept apart):

1. outliers (option): columns o of x and W are taken out, and their product is added unquantized.
2. smooth (option): x_k <- x_k f_k and w_k <- w_k / f_k, f = 1 / smooth; the product stays.
3. Hadamard (option): rows of x and W are rotated by one orthogonal matrix, block by block of the
   largest 2^k that divides K; the product stays, and loud columns spread over their block.
4. each row of x, and each row of W (an output channel), has a scale: its peak, at least 1e-30, over
   127, or over 448 for E4M3. Codes are the nearest integers (half to even) or E4M3 values of the
   row times 1 / scale, all in fp32. The peak is the largest magnitude; with ``grouped``, that of a
   channel is the largest sum of the positive, or of the negative, values in {0, 1, 4, 5} or
   {2, 3, 6, 7} of any eight consecutive columns, which sums in 16 bits need (``csrc/linear.h``).
5. y = (codes of x times codes of W) * scale * scale + bias + outliers, exactly; the activation of
   that is the result.

Rows do not see each other. A row of x with a value that is not finite gives NaN in that row; a
channel of W gives NaN in that channel. Steps 1 to 4 are single fp32 operations per element in a
fixed order, so fast code has the same codes bit for bit; step 5 is in fp64, in which integer sums
are exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from accel.kernels.reference_formats import E4M3_MAX, SCALE_FLOOR, round_e4m3

LEVELS = 127.0


@dataclass(frozen=True)
class LinearSpec:
    """How a linear layer is quantized: integers within +-127, or E4M3."""

    values: Literal["int", "e4m3"] = "int"
    grouped: bool = False
    hadamard: bool = False


@dataclass(frozen=True)
class Codes:
    """Rows as integers: ``values`` fp32 [R, K], ``scale`` fp32 [R, 1], ``kept`` fp32 [R, O]."""

    values: Tensor
    scale: Tensor
    kept: Tensor


def rotate(x: Tensor) -> Tensor:
    """Return x [R, K] times the orthogonal Walsh-Hadamard matrix of each block, in fp32.

    By butterflies, whose order of additions does not depend on the number of rows.
    """
    rows, columns = x.shape
    block = columns & -columns
    half = 1
    while half < block:
        pairs = x.reshape(rows, columns // (2 * half), 2, half)
        u, w = pairs[:, :, 0], pairs[:, :, 1]
        x = torch.stack((u + w, u - w), 2).reshape(rows, columns)
        half *= 2
    norm = torch.tensor(block, dtype=torch.float32, device=x.device).sqrt().reciprocal()
    return x * norm if columns else x


def group_peak(x: Tensor) -> Tensor:
    """Return the peak [R, 1] of rows x [R, K] as ``grouped`` defines it (step 4)."""
    eight = torch.nn.functional.pad(x, (0, -x.shape[1] % 8)).unflatten(1, (-1, 2, 2, 2))
    sums = []
    for part in (eight.clamp_min(0), (-eight).clamp_min(0)):  # [R, K / 8, step, group, 2]
        pairs = part[..., 0] + part[..., 1]
        sums.append((pairs[:, :, 0] + pairs[:, :, 1]).flatten(1).amax(1, keepdim=True))
    return torch.maximum(*sums)


def quantize_rows(
    x: Tensor,
    spec: LinearSpec,
    factor: Tensor | None,
    outliers: Tensor | None,
    *,
    grouped: bool = False,
) -> Codes:
    """Return the codes of rows x [R, K] (steps 1 to 4); ``factor`` fp32 [K] multiplies x."""
    x = x.float().clone()
    kept = x.new_empty(x.shape[0], 0)
    if outliers is not None:
        kept = x[:, outliers]
        x[:, outliers] = 0
    if factor is not None:
        x = x * factor
    if spec.hadamard:
        x = rotate(x)
    peak = x.abs().amax(1, keepdim=True) if x.shape[1] else x.new_zeros(x.shape[0], 1)
    if grouped and x.shape[1]:
        peak = torch.where(peak.isfinite(), group_peak(x), peak)
    most = E4M3_MAX if spec.values == "e4m3" else LEVELS
    scale = peak.clamp_min(SCALE_FLOOR) / most
    x = x * scale.reciprocal()
    codes = round_e4m3(x) if spec.values == "e4m3" else x.round().clamp(-most, most)
    return Codes(codes, scale, kept)


def quantize_weight(
    weight: Tensor, spec: LinearSpec, smooth: Tensor | None, outliers: Tensor | None
) -> Codes:
    """Return the codes of the channels of weight [N, K]."""
    factor = None
    if smooth is not None:  # division by 1 / smooth
        weight = weight.float().clone()
        kept = weight[:, outliers] if outliers is not None else None
        weight = weight / smooth.float().reciprocal()
        if kept is not None:
            weight[:, outliers] = kept
    return quantize_rows(weight, spec, factor, outliers, grouped=spec.grouped)


def activate(y: Tensor, activation: str | None) -> Tensor:
    """Return y after ``activation``: "gelu", "gelu_tanh", "silu" or None."""
    if activation == "gelu":
        return torch.nn.functional.gelu(y)
    if activation == "gelu_tanh":
        return torch.nn.functional.gelu(y, approximate="tanh")
    return torch.nn.functional.silu(y) if activation == "silu" else y


def multiply(x: Codes, weight: Codes, bias: Tensor | None, activation: str | None) -> Tensor:
    """Return the result [M, N] in fp64 from codes (step 5)."""
    y = x.values.double() @ weight.values.double().T
    y = y * x.scale.double() * weight.scale.double().T
    if bias is not None:
        y = y + bias.double()
    for o in range(x.kept.shape[1]):  # one by one, so that rows stay independent
        y = y + x.kept[:, o : o + 1].double() * weight.kept[:, o].double()
    return activate(y, activation)


def quantized_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    spec: LinearSpec,
    *,
    smooth: Tensor | None = None,
    outliers: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """Return the quantized linear layer of x [M, K] in fp64 [M, N], as the module says."""
    factor = None if smooth is None else smooth.float().reciprocal()
    codes = quantize_rows(x, spec, factor, outliers)
    return multiply(codes, quantize_weight(weight, spec, smooth, outliers), bias, activation)


def error_bound(x: Codes, weight: Codes) -> Tensor:
    """Return the most that rounding to integers can move each result, fp64 [M, N].

    Half a step of each code at the magnitudes that the other side has, and both halves together.
    """
    x_size = x.values.double().abs().sum(1, keepdim=True)
    w_size = weight.values.double().abs().sum(1, keepdim=True).T
    steps = 0.5 * x_size + 0.5 * w_size + 0.25 * x.values.shape[1]
    return steps * x.scale.double() * weight.scale.double().T


def smoothing(peaks: Tensor, weight: Tensor, strength: float = 0.5) -> Tensor:
    """Return SmoothQuant's divisor of each column, fp32 [K].

    ``peaks`` [K]: largest magnitudes of x's columns on typical inputs; weight [N, K]. It is
    peaks^strength / max|w_k|^(1 - strength), over its geometric mean; 1 where a column is zero.
    """
    x_peak, w_peak = peaks.double(), weight.double().abs().amax(0)
    used = (x_peak > 0) & (w_peak > 0) & x_peak.isfinite() & w_peak.isfinite()
    if not used.any():
        return torch.ones_like(peaks, dtype=torch.float32)
    log = strength * x_peak[used].log() - (1 - strength) * w_peak[used].log()
    result = torch.ones_like(x_peak)
    result[used] = (log - log.mean()).clamp(-math.log(1e4), math.log(1e4)).exp()
    return result.float()
