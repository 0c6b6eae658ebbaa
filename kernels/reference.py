"""Eager definitions of the kernels: the specification that fast code is tested against.

Method (SageAttention2, arXiv 2411.10958, sections 3.1-3.4; block-local P scale is ours). One head,
queries Q [Tq, D], keys K and values V [Tk, D], softmax scale tau:

1. smooth K: K <- K - mean_t K. A constant per row of logits vanishes in the softmax, so this is
   exact.
2. smooth Q (option): in blocks of ``block_q`` rows, Q_i <- Q_i - q_i with q_i the block's mean; the
   lost part comes back as one full-precision logit row per block, tau q_i K^T.
3. Hadamard (option): Q and K are rotated by the same orthogonal matrix; products stay, outliers
   spread.
4. Q and K become integers with one scale per token, per thread group or per block.
5. Logits of one key block are integer products times both scales, plus smoothing row and mask, in
   fp32.
6. P = exp(S - m) where m is the row's maximum **inside this key block**, so P always uses its whole
   range; the factor exp(m - m_running) is applied in fp32 when the block is added. (The paper's
   static scale relative to the running maximum flushes late small blocks to zero.)
7. P and V become E4M3 (P x 448), fp16 (V over a power of two) or integers (P x 127, V per block to
   63 or 127), V optionally without its channel means (smooth V; exact because rows of P sum to 1).
   Denominator: fp32 sum of the unrounded P. "int7" takes keys that dominate a row out before it
   rounds (``kernels/reference_sinks.py``).

Layout [B, H, T, D] everywhere. Trade-off: everything is materialized per (query chunk, key block)
in fp32, so this is slow and small in memory, and easy to read against the paper.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from accel.kernels import reference_sinks
from accel.kernels.reference_formats import (
    E4M3_MAX,
    SCALE_FLOOR,
    Granularity,
    group_ids,
    hadamard_matrix,
    nvfp4,
    quantize,
    round_e4m3,
)

ValueFormat = Literal["int7", "int8", "e4m3", "e2m1", "fp16", "full"]

QUERY_ROWS = 1024  # queries handled at a time, to bound memory


@dataclass(frozen=True)
class QuantSpec:
    """How one quantized attention call is computed.

    ``qk_bits`` 8, 6 or 4, symmetric; ``q_bits`` where the queries have fewer (0: the same).
    ``values`` "e2m1" stands for NVFP4 throughout: Q, K and V too, whatever ``qk_bits``.
    ``clip``: largest magnitude that still fits, as a share of the group's maximum; below 1 the few
    largest values are cut for a finer step. ``values`` "int7" and "int8": P in ``weight_levels``
    steps, V with a scale per key block and channel; "e4m3": a scale per channel.
    """

    qk_bits: int = 8
    q_bits: int = 0
    clip: float = 1.0
    values: ValueFormat = "int8"
    weight_levels: int = 127
    granularity: Granularity = "token"
    smooth_k: bool = True
    smooth_q: bool = False
    smooth_v: bool = False
    hadamard: bool = False
    block_q: int = 128
    block_k: int = 128

    def __post_init__(self) -> None:
        if self.qk_bits not in (4, 6, 8) or not 0 <= self.q_bits <= self.qk_bits:
            raise ValueError(
                f"qk_bits must be 4, 6 or 8 and q_bits at most that, got {self.qk_bits} and "
                f"{self.q_bits}"
            )
        if self.block_q % 32 or self.block_k % 64:
            raise ValueError(
                f"block_q must be a multiple of 32 and block_k of 64, got {self.block_q} and "
                f"{self.block_k}"
            )


def _masked_mean(x: Tensor, valid: Tensor | None) -> Tensor:
    """Mean over tokens of x [B, H, T, D] as [B, H, 1, D], over the valid ones if given."""
    if valid is None:
        return x.mean(-2, keepdim=True)
    count = valid.sum(-1).view(-1, 1, 1, 1)
    return x.masked_fill(~valid[:, None, :, None], 0).sum(-2, keepdim=True) / count


def _slice_mask(mask: Tensor | None, rows: slice, columns: slice) -> Tensor | None:
    """Part of a broadcastable mask [..., Tq or 1, Tk or 1]."""
    if mask is None:
        return None
    if mask.shape[-1] != 1:
        mask = mask[..., columns]
    if mask.dim() > 1 and mask.shape[-2] != 1:
        mask = mask[..., rows, :]
    return mask


def full_attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Softmax attention in the dtype of the inputs (fp64 for an oracle). Same heads in q, k and v.

    Returns output [B, H, Tq, Dv] and natural log-sum-exp [B, H, Tq]; a fully masked row gives zeros
    and -inf.
    """
    outputs, sums = [], []
    for start in range(0, q.shape[-2], QUERY_ROWS):
        rows = slice(start, start + QUERY_ROWS)
        logits = q[..., rows, :] @ k.transpose(-1, -2) * scale
        part = _slice_mask(mask, rows, slice(None))
        if part is not None:
            logits = logits + part
        lse = logits.logsumexp(-1)
        p = (logits - lse[..., None]).exp().masked_fill(lse[..., None] == -math.inf, 0)
        outputs.append(p @ v)
        sums.append(lse)
    if not outputs:
        return q.new_zeros(*q.shape[:-1], v.shape[-1]), q.new_zeros(q.shape[:-1])
    return torch.cat(outputs, -2), torch.cat(sums, -1)


def _quantize_tokens(x: Tensor, spec: QuantSpec, *, is_key: bool) -> tuple[Tensor, Tensor]:
    """Codes of Q or K [B, H, T, D] and their scale [B, H, T, 1]."""
    if spec.values == "e2m1":
        return nvfp4(x, x.abs().amax(-1, keepdim=True))
    block = spec.block_k if is_key else spec.block_q
    groups = group_ids(x.shape[-2], spec.granularity, block, is_key=is_key)
    bits = spec.qk_bits if is_key else spec.q_bits or spec.qk_bits
    return quantize(x, bits, groups, spec.clip)


def _quantize_values(
    v: Tensor, spec: QuantSpec, valid: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of V, their scale [.., T, D] (V ~ codes * scale + mean), its mean [.., 1, D]."""
    mean = _masked_mean(v, valid) if spec.smooth_v else torch.zeros_like(v[..., :1, :])
    v = v - mean
    if valid is not None:
        v = v.masked_fill(~valid[:, None, :, None], 0)
    if spec.values == "full":
        return v, torch.ones_like(v), mean
    if spec.values == "e4m3":
        scale = v.abs().amax(-2, keepdim=True).clamp_min(SCALE_FLOOR).expand_as(v) / E4M3_MAX
        return round_e4m3(v / scale), scale, mean
    if spec.values == "e2m1":  # groups of 16 tokens
        peak = v.abs().amax(-2, keepdim=True)
        codes, scale = nvfp4(v.transpose(-1, -2), peak.transpose(-1, -2))
        return codes.transpose(-1, -2), scale.transpose(-1, -2).expand_as(v), mean
    if spec.values == "fp16":  # over the power of two next to the channel's peak
        fraction, exponent = torch.frexp(v.abs().amax(-2, keepdim=True).clamp_min(SCALE_FLOOR))
        exponent = exponent - (fraction == 0.5).int()
        scale = torch.ldexp(torch.ones_like(fraction), exponent).expand_as(v)
        return (v / scale).half().float(), scale, mean
    blocks = v.split(spec.block_k, dim=-2)
    peaks = [block.abs().amax(-2, keepdim=True).expand_as(block) for block in blocks]
    scale = torch.cat(peaks, -2).clamp_min(SCALE_FLOOR) / (63 if spec.values == "int7" else 127)
    return (v / scale).round(), scale, mean


def _round_weights(p: Tensor, spec: QuantSpec) -> Tensor:
    """P in [0, 1] as it is held for the second product."""
    if spec.values in ("int7", "int8"):
        return (p * spec.weight_levels).round() / spec.weight_levels
    if spec.values == "fp16":
        return p.half().float()
    if spec.values == "e2m1":
        codes, scale = nvfp4(p, torch.ones_like(p[..., :1]))
        return codes * scale
    return round_e4m3(p * E4M3_MAX) / E4M3_MAX if spec.values == "e4m3" else p


def quantized_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spec: QuantSpec,
    *,
    scale: float,
    mask: Tensor | None = None,
    valid: Tensor | None = None,
    blocks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Quantized attention as specified in the module docstring.

    q [B, H, Tq, D], k [B, H, Tk, D], v [B, H, Tk, Dv], same number of heads, fp32; ``mask``
    additive and broadcastable to [B, H, Tq, Tk]; ``blocks`` [B, H, ceil(Tq / block_q),
    ceil(Tk / block_k)], 0 where a block of queries leaves out a block of keys. Returns output
    [B, H, Tq, Dv] fp32 and the natural log-sum-exp of the unsmoothed logits [B, H, Tq], over the
    keys that are not left out. A fully masked row gives zeros and -inf.
    """
    q, k, v = q.float(), k.float(), v.float()
    queries, keys = q.shape[-2], k.shape[-2]
    k_mean = _masked_mean(k, valid) if spec.smooth_k else torch.zeros_like(k[..., :1, :])
    shift = scale * (q @ k_mean.transpose(-1, -2)).squeeze(
        -1
    )  # what smoothing K took from each logit
    k = k - k_mean
    if valid is not None:
        k = k.masked_fill(~valid[:, None, :, None], 0)
    if spec.hadamard:
        rotation = hadamard_matrix(q.shape[-1], device=q.device, dtype=q.dtype)
        q, k = q @ rotation, k @ rotation
    k_codes, k_scale = _quantize_tokens(k, spec, is_key=True)
    v_codes, v_scale, v_mean = _quantize_values(v, spec, valid)
    exact = v - v_mean
    outputs, sums = [], []
    step = max(spec.block_q, QUERY_ROWS // spec.block_q * spec.block_q)
    for start in range(0, queries, step):
        rows = slice(start, min(start + step, queries))
        q_part, q_mean = _smooth_queries(q[..., rows, :], spec)
        q_codes, q_scale = _quantize_tokens(q_part, spec, is_key=False)
        top = torch.full(q_part.shape[:-1], -math.inf, dtype=torch.float32, device=q.device)
        total, out = torch.zeros_like(top), top.new_zeros(*top.shape, v.shape[-1])
        loss = reference_sinks.Loss(total, total, total)
        for first in range(0, keys, spec.block_k):
            columns = slice(first, min(first + spec.block_k, keys))
            logits = q_codes @ k_codes[..., columns, :].transpose(-1, -2)
            logits = logits * (q_scale * scale) * k_scale[..., columns, :].transpose(-1, -2)
            if spec.smooth_q:
                logits = logits + scale * (q_mean @ k[..., columns, :].transpose(-1, -2))
            part = _slice_mask(mask, rows, columns)
            if part is not None:
                logits = logits + part
            if blocks is not None:
                some = blocks[..., start // spec.block_q :, first // spec.block_k]
                kept = some.repeat_interleave(spec.block_q, -1)[..., : logits.shape[-2]]
                logits = logits.masked_fill(kept[..., None] == 0, -math.inf)
            peak = logits.amax(-1)
            p = (logits - peak[..., None]).exp().masked_fill(peak[..., None] == -math.inf, 0)
            new_top = torch.maximum(top, peak)
            safe = new_top.masked_fill(new_top == -math.inf, 0)
            keep, gain = (top - safe).exp(), (peak - safe).exp()
            total = total * keep + p.sum(-1) * gain
            codes, steps = v_codes[..., columns, :], v_scale[..., columns, :]
            if spec.values == "int7":
                block = reference_sinks.Block(exact[..., columns, :], codes, steps, columns.stop)
                product, loss = reference_sinks.product(
                    p, block, spec.weight_levels, loss.times(keep), gain, total
                )
            else:  # one scale per block and channel
                product = _round_weights(p, spec) @ codes * steps[..., :1, :]
            out = out * keep[..., None] + product * gain[..., None]
            top = new_top
        empty = total == 0
        out = out / total.masked_fill(empty, 1)[..., None] + v_mean
        outputs.append(out.masked_fill(empty[..., None], 0))
        sums.append(top + total.log() + shift[..., rows])
    if not outputs:
        return q.new_zeros(*q.shape[:-1], v.shape[-1]), q.new_zeros(q.shape[:-1])
    return torch.cat(outputs, -2), torch.cat(sums, -1)


def _smooth_queries(q: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """Q without its block means, and the means repeated to each row ([.., T, D] both)."""
    if not spec.smooth_q:
        return q, torch.zeros_like(q)
    means = [
        block.mean(-2, keepdim=True).expand_as(block) for block in q.split(spec.block_q, dim=-2)
    ]
    mean = torch.cat(means, -2)
    return q - mean, mean
