# mypy: disable-error-code="no-untyped-def,untyped-decorator"
"""Fused quantized attention for tensor cores: Q K in INT8, P V in FP8 or FP16.

Method (SageAttention2, arXiv 2411.10958; exact definitions in ``kernels/reference.py``). Inputs
are packed by ``gpu/pack.py`` (K and V for several calls in a context of ``shared_keys.py``).
A program takes BLOCK_M query rows of one head and walks over the keys:

    S = Q codes K codes^T                       int32, exact
    Z = S * scale_q * scale_k (+ smoothing row) (+ mask)     fp32, in log2 units
    FP8:  P = 2^(Z - max of the row in this tile) * 448 -> E4M3;  R = P V in a fresh accumulator,
          O = O * 2^(m - m') + R * 2^(tile max - m')   two-level: tensor cores of cc 89 and 90 keep
          only 22 bits of a running sum, and P always uses its whole range
    FP4:  the same with P * 2688 in NVFP4 (two-level: the row's scale, then one per 16 keys), and Q,
          K and V in NVFP4 too (cc 10 and up; SageAttention3, arXiv 2505.11594)
    FP16: P = 2^(Z - m') -> fp16;  O = O * 2^(m - m') + P V in fp32   (cc 80 to 88 have no FP8)

The denominator sums the unrounded P. Scales of V, its mean and the division come once at the end.

Layout: output [B, H, Tq, Dv] as q lies; grid (query tiles * heads * batch). Trade-off: one kernel
text for all options, each a ``constexpr``, so that an unused one costs nothing.
"""

from __future__ import annotations

import math
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

from accel.kernels import shared_keys
from accel.kernels.attention_call import AttentionCall, new_result
from accel.kernels.gpu.fp4 import to_fp4
from accel.kernels.gpu.layout import TOKENS, Packed, Queries, Tile, with_mask
from accel.kernels.gpu.pack import pack, pack_queries
from accel.kernels.gpu.support import capability, value_format
from accel.kernels.gpu.tuning import Choice
from accel.kernels.gpu.tuning import choose as choose_tile

LOG2_448 = tl.constexpr(8.807354922057604)
LOG2_2688 = tl.constexpr(11.392317422778762)
LN2 = tl.constexpr(0.6931471805599453)
LOWEST = tl.constexpr(-3.4028234663852886e38)
# Numbers that vary from call to call and align nothing: no kernel of their own for 1 and 16 n.
COUNTS = ["heads", "group", "queries", "keys", "first_row", "tiles", "blocks"]
BIAS_BYTES = 256 << 20  # most that the logit rows of smoothed queries take at a time


@triton.jit
def _tiles(
    acc, top, total, q_codes, q_groups, q_scale,
    k_ptr, k_groups_ptr, k_scale_ptr, v_ptr, v_groups_ptr, bias_ptr, mask_ptr,
    first, last, keys, padded, rows, queries, mask_st, mask_sk,
    BLOCK_N: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr, VALUES: tl.constexpr,
    CAUSAL: tl.constexpr, MASK: tl.constexpr, MASK_ROWS: tl.constexpr, SMOOTH_Q: tl.constexpr,
    NATIVE: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    """Key tiles from ``first`` to ``last``; with EDGE some of their keys are out of bounds."""
    d, dv = tl.arange(0, DIM), tl.arange(0, VALUE_DIM)
    log2e: tl.constexpr = 1.4426950408889634
    for start in range(first, last, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        if VALUES == "e2m1":
            k = tl.load(k_ptr + n[None, :] * (DIM // 2) + tl.arange(0, DIM // 2)[:, None])
            sixteenth = tl.arange(0, DIM // 16)[None, :]
            k_groups = tl.load(k_groups_ptr + n[:, None] * (DIM // 16) + sixteenth)
            z = tl.dot_scaled(q_codes, q_groups, "e2m1", k, k_groups, "e2m1")
        else:
            k = tl.load(k_ptr + n[None, :] * DIM + d[:, None])
            z = tl.dot(q_codes, k, out_dtype=tl.int32).to(tl.float32)
        z = z * tl.load(k_scale_ptr + n)[None, :]
        # Scales of rows are positive: the maximum can be taken before they are multiplied in.
        plain: tl.constexpr = not (EDGE or SMOOTH_Q or MASK != "none")
        if plain:
            peak = tl.max(z, 1) * q_scale
            lift = peak
        else:
            z = z * q_scale[:, None]
            if SMOOTH_Q:
                z += tl.load(bias_ptr + n)[None, :]
            if EDGE:
                seen = (n < keys)[None, :]
                if CAUSAL:
                    seen = seen & (n[None, :] <= rows[:, None])
                z = tl.where(seen, z, float("-inf"))
            if MASK != "none":
                if MASK_ROWS:
                    place = mask_ptr + rows.to(tl.int64)[:, None] * mask_st
                    inside = (rows < queries)[:, None] & (n < keys)[None, :]
                    m = tl.load(place + n.to(tl.int64)[None, :] * mask_sk, mask=inside, other=0)
                else:
                    m = tl.load(mask_ptr + n.to(tl.int64) * mask_sk, mask=n < keys, other=0)
                    m = m[None, :]
                if MASK == "bool":
                    z = tl.where(m != 0, z, float("-inf"))
                else:
                    m = m.to(tl.float32)
                    # As load_mask in csrc: finite stays finite, NaN takes its row.
                    term = tl.where(m == float("-inf"), m, tl.maximum(m * log2e, LOWEST))
                    z += tl.where(m != m, float("inf"), term)
            peak = tl.max(z, 1)
            lift = tl.where(peak == float("-inf"), 0.0, peak)
        new_top = tl.maximum(top, peak)
        safe = new_top if plain else tl.where(new_top == float("-inf"), 0.0, new_top)
        keep = tl.exp2(top - safe)
        if VALUES == "e2m1":
            zero = lift - LOG2_2688
        else:
            zero = lift - LOG2_448 if VALUES == "e4m3" else safe
        p = tl.exp2(z * q_scale[:, None] - zero[:, None]) if plain else tl.exp2(z - zero[:, None])
        if VALUES == "e4m3":
            v = tl.load(v_ptr + n[:, None] + dv[None, :] * padded)
            gain = tl.exp2(peak - safe)
            total = total * keep + tl.sum(p, 1) * gain
            # As accumulators lie in registers, in the order of V: nothing moves between threads.
            codes = tl.reshape(p.to(tl.float8e4nv), [p.shape[0], BLOCK_N // 16, 2, 4, 2])
            codes = tl.reshape(tl.permute(codes, [0, 1, 3, 2, 4]), [p.shape[0], BLOCK_N])
            fresh = tl.dot(codes, v)
            acc = acc * keep[:, None] + fresh * gain[:, None]
        elif VALUES == "e2m1":
            half = start // 2 + tl.arange(0, BLOCK_N // 2)
            v = tl.load(v_ptr + half[:, None] + dv[None, :] * (padded // 2))
            sixteenth = start // 16 + tl.arange(0, BLOCK_N // 16)
            v_groups = tl.load(v_groups_ptr + dv[:, None] * (padded // 16) + sixteenth[None, :])
            gain = tl.exp2(peak - safe)
            total = total * keep + tl.sum(p, 1) * gain
            p_codes, p_groups = to_fp4(p, p.shape[0], BLOCK_N, NATIVE)
            fresh = tl.dot_scaled(p_codes, p_groups, "e2m1", v, v_groups, "e2m1")
            acc = acc * keep[:, None] + fresh * gain[:, None]
        else:
            v = tl.load(v_ptr + n[:, None] * VALUE_DIM + dv[None, :])
            total = total * keep + tl.sum(p, 1)
            acc = tl.dot(p.to(tl.float16), v, acc * keep[:, None])
        top = new_top
    return acc, top, total


@triton.jit(do_not_specialize=COUNTS)
def attend(
    q_codes_ptr, q_scale_ptr, shift_ptr, k_codes_ptr, k_scale_ptr, v_codes_ptr, v_scale_ptr,
    v_mean_ptr, q_groups_ptr, k_groups_ptr, v_groups_ptr, bias_ptr, mask_ptr, lengths_ptr, out_ptr,
    lse_ptr,
    heads, group, queries, keys, padded_queries, padded, value_dim, first_row, tiles, blocks,
    mask_sb, mask_sh, mask_st, mask_sk, out_sb, out_sh, out_st,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    VALUES: tl.constexpr, CAUSAL: tl.constexpr, MASK: tl.constexpr, MASK_ROWS: tl.constexpr,
    HAS_LENGTHS: tl.constexpr, SMOOTH_Q: tl.constexpr, LSE: tl.constexpr,
    NATIVE: tl.constexpr,
):  # fmt: skip
    """BLOCK_M rows of one head, out of ``tiles`` such from ``first_row`` on."""
    program = tl.program_id(0)
    tile, head = program % tiles, (program // tiles).to(tl.int64)
    b, h = head // heads, head % heads
    key_head = b * (heads // group) + h // group
    row = first_row + tile * BLOCK_M
    rows = row + tl.arange(0, BLOCK_M)
    d, dv = tl.arange(0, DIM), tl.arange(0, VALUE_DIM)
    inside = tl.arange(0, BLOCK_M)[:, None]  # 64-bit offsets stay scalars: per element they spill
    base = head * padded_queries + row
    if VALUES == "e2m1":
        half, sixteenth = tl.arange(0, DIM // 2)[None, :], tl.arange(0, DIM // 16)[None, :]
        q_codes = tl.load(q_codes_ptr + base * (DIM // 2) + inside * (DIM // 2) + half)
        q_groups = tl.load(q_groups_ptr + base * (DIM // 16) + inside * (DIM // 16) + sixteenth)
        k_ptr = k_codes_ptr + key_head * padded * (DIM // 2)
        v_ptr = v_codes_ptr + key_head * (padded // 2) * VALUE_DIM
        k_groups_ptr += key_head * padded * (DIM // 16)
        v_groups_ptr += key_head * (padded // 16) * VALUE_DIM
    else:
        q_codes = tl.load(q_codes_ptr + base * DIM + inside * DIM + d[None, :])
        q_groups = q_codes  # not read
        k_ptr = k_codes_ptr + key_head * padded * DIM
        v_ptr = v_codes_ptr + key_head * padded * VALUE_DIM
    q_scale = tl.load(q_scale_ptr + base + tl.arange(0, BLOCK_M))
    k_scale_ptr += key_head * padded
    bias_ptr += (head * blocks + tile * BLOCK_M // 128) * padded
    mask_ptr += b * mask_sb + h * mask_sh
    end = keys
    if HAS_LENGTHS:
        end = tl.minimum(tl.load(lengths_ptr + b).to(tl.int32), keys)
    whole = end // BLOCK_N * BLOCK_N  # tiles up to here need no bounds
    if CAUSAL:
        whole = tl.minimum(whole, row // BLOCK_N * BLOCK_N)
        end = tl.minimum(end, row + BLOCK_M)
    acc = tl.zeros([BLOCK_M, VALUE_DIM], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc, top, total = _tiles(
        acc, top, total, q_codes, q_groups, q_scale, k_ptr, k_groups_ptr, k_scale_ptr, v_ptr,
        v_groups_ptr, bias_ptr, mask_ptr,
        0, whole, end, padded, rows, queries, mask_st, mask_sk,
        BLOCK_N, DIM, VALUE_DIM, VALUES, CAUSAL, MASK, MASK_ROWS, SMOOTH_Q, NATIVE,
        False,
    )  # fmt: skip
    acc, top, total = _tiles(
        acc, top, total, q_codes, q_groups, q_scale, k_ptr, k_groups_ptr, k_scale_ptr, v_ptr,
        v_groups_ptr, bias_ptr, mask_ptr,
        whole, end, end, padded, rows, queries, mask_st, mask_sk,
        BLOCK_N, DIM, VALUE_DIM, VALUES, CAUSAL, MASK, MASK_ROWS, SMOOTH_Q, NATIVE,
        True,
    )  # fmt: skip

    empty = total == 0.0
    out = acc / tl.where(empty, 1.0, total)[:, None]
    out = out * tl.load(v_scale_ptr + key_head * VALUE_DIM + dv)[None, :]
    out += tl.load(v_mean_ptr + key_head * VALUE_DIM + dv)[None, :]
    out = tl.where(empty[:, None], 0.0, out)
    real = (rows < queries)[:, None] & (dv < value_dim)[None, :]
    place = out_ptr + b * out_sb + h * out_sh + row.to(tl.int64) * out_st
    place += inside * out_st + dv[None, :]
    tl.store(place, out.to(out_ptr.dtype.element_ty), mask=real)
    if LSE:
        if VALUES == "e4m3":
            total = total / 448.0
        if VALUES == "e2m1":
            total = total / 2688.0
        lse = top + tl.log2(tl.where(empty, 1.0, total))
        lse = (lse + tl.load(shift_ptr + base + tl.arange(0, BLOCK_M))) * LN2
        lse = tl.where(empty, float("-inf"), lse)
        tl.store(lse_ptr + head * queries + rows, lse, mask=rows < queries)


def attention(
    call: AttentionCall,
    *,
    tile: Tile,
    values: str,
    qmax: int = 127,
    granularity: str = "token",
    key_valid: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Run quantized attention on CUDA tensors (or, interpreted, on any).

    Tensors as in ``AttentionCall``, in fp32, bf16 or fp16; masks may be on another device.
    ``values`` "e4m3" (cc 8.9 and up) or "fp16" is how P and V are held, and "e2m1" (cc 10 and up)
    NVFP4 for everything; ``key_valid`` bool [B, Tk], False where no query sees the key. Returns
    output ``[B, H, Tq, Dv]`` in q's layout and, if asked for, log-sum-exp fp32 ``[B, H, Tq]``.
    """
    q, k, v, options, scale = call.q, call.k, call.v, call.options, call.softmax_scale
    out = new_result(q, v.shape[-1])
    lse = q.new_empty(q.shape[:-1], dtype=torch.float32) if options.return_lse else None
    if out.numel() == 0 or k.shape[2] == 0:
        return out.zero_(), None if lse is None else lse.fill_(-math.inf)
    if scale < 0:  # the kernel takes maxima before it multiplies by the scale
        q, scale = -q, -scale
    rotation = _rotation(q.shape[-1], q.device) if options.hadamard else None
    q, keys = _rotated(q, rotation), cache(lambda: _rotated(k, rotation))
    packed = shared_keys.find(
        ("gpu", values, qmax, granularity, options.smooth_v, options.hadamard), (k, v),
        (key_valid,),
        lambda: pack(
            keys(), v, values=values, qmax=qmax, granularity=granularity,
            smooth_v=options.smooth_v, valid=key_valid,
        ),
    )  # fmt: skip
    mask, kind = _mask(call)
    key_lengths = None if call.key_lengths is None else call.key_lengths.to(q.device)
    queries = pack_queries(
        q, packed, scale=scale * math.log2(math.e), qmax=qmax, granularity=granularity,
        smooth=options.smooth_q, with_shift=options.return_lse,
    )  # fmt: skip
    blocks = queries.codes.shape[2] // TOKENS
    step = blocks
    if options.smooth_q:
        row_bytes = 4 * q.shape[0] * q.shape[1] * packed.k_scale.shape[-1]
        step = max(1, min(blocks, BIAS_BYTES // row_bytes))
    for first in range(0, blocks, step):
        count = min(step, blocks - first)
        bias = None
        if queries.mean is not None:
            part = queries.mean[:, :, first : first + count]
            bias = _smoothing_rows(part, keys(), packed, scale, key_valid)
        _launch(
            queries, packed, out, lse, tile=tile, first_block=first, blocks=count, bias=bias,
            mask=mask, mask_kind=kind, key_lengths=key_lengths, keys=k.shape[2],
            is_causal=call.is_causal,
        )  # fmt: skip
    return out, lse


def _mask(call: AttentionCall) -> tuple[Tensor | None, str]:
    """Return the call's mask [B, H, Tq, Tk] as the kernel reads it, and its kind."""
    if call.attn_mask is None:
        return None, "none"
    mask = call.attn_mask.to(call.q.device)
    kind = "bool" if mask.dtype == torch.bool else "add"
    return (mask.view(torch.uint8) if kind == "bool" else mask).expand(call.shape), kind


def choose(call: AttentionCall, precision: str) -> Choice:
    """Find the tile for a call, and whether the kernel beats torch's attention on this card."""
    q, keys = call.q, call.k.shape[2]
    tokens = keys if shared_keys.shares((call.k,)) else min(keys, q.shape[2])
    values = value_format(capability(q.device), precision)

    def run(q: Tensor, k: Tensor, v: Tensor, tile: Tile) -> Tensor:
        with shared_keys.apart():
            return attention(AttentionCall(q, k, v), tile=tile, values=values)[0]

    return choose_tile(q, call.v.shape[-1], tokens, values, run)


def _launch(
    queries: Queries,
    packed: Packed,
    out: Tensor,
    lse: Tensor | None,
    *,
    tile: Tile,
    first_block: int,
    blocks: int,
    bias: Tensor | None,
    mask: Tensor | None,
    mask_kind: str,
    key_lengths: Tensor | None,
    keys: int,
    is_causal: bool,
) -> None:
    """Run ``attend`` over some blocks of 128 queries of every head; writes ``out`` and ``lse``.

    An absent tensor is passed as any pointer; its ``constexpr`` keeps the kernel from reading it.
    """
    batch, heads, padded_queries, _ = queries.codes.shape
    left = min(blocks * TOKENS, out.shape[2] - first_block * TOKENS)
    tiles = triton.cdiv(left, tile.rows)
    absent = queries.scale
    mask_rows = mask is not None and mask.stride(2) != 0 and mask.shape[2] > 1
    tile = with_mask(tile, mask_rows)
    attend[(tiles * batch * heads,)](
        queries.codes, queries.scale, absent if queries.shift is None else queries.shift,
        packed.k_codes, packed.k_scale, packed.v_codes, packed.v_scale, packed.v_mean,
        absent if queries.groups is None else queries.groups,
        absent if packed.k_groups is None else packed.k_groups,
        absent if packed.v_groups is None else packed.v_groups,
        absent if bias is None else bias, absent if mask is None else mask,
        absent if key_lengths is None else key_lengths, out, absent if lse is None else lse,
        heads, heads // packed.k_codes.shape[1], out.shape[2], keys, padded_queries,
        packed.k_scale.shape[-1], out.shape[-1], first_block * TOKENS, tiles, blocks,
        *(mask.stride() if mask is not None else (0, 0, 0, 0)), *out.stride()[:3],
        BLOCK_M=tile.rows, BLOCK_N=tile.keys, DIM=packed.k_mean.shape[-1],
        VALUE_DIM=packed.v_scale.shape[-1], VALUES=packed.values, CAUSAL=is_causal, MASK=mask_kind,
        MASK_ROWS=mask_rows,
        HAS_LENGTHS=key_lengths is not None, SMOOTH_Q=bias is not None, LSE=lse is not None,
        NATIVE=out.device.type == "cuda", num_warps=tile.warps,
        num_stages=tile.stages, enable_fp_fusion=True,
    )  # fmt: skip


def _smoothing_rows(
    means: Tensor,
    k: Tensor,
    packed: Packed,
    scale: float,
    valid: Tensor | None,
) -> Tensor:
    """Return logits of query means [B, H, blocks, Dk] against K less its mean.

    In log2 units, fp32 [B, H, blocks, N]; K is not quantized here.
    """
    group = means.shape[1] // k.shape[1]
    grouped = means[..., : k.shape[-1]].unflatten(1, (k.shape[1], group)).flatten(2, 3)
    logits = grouped @ k.float().transpose(-1, -2)
    logits = logits.unflatten(2, (group, -1)).flatten(1, 2)
    center = packed.k_mean.repeat_interleave(group, 1)[:, :, None, :]
    logits = (logits - (means * center).sum(-1, keepdim=True)) * (scale * math.log2(math.e))
    if valid is not None:
        logits = logits.masked_fill(~valid[:, None, None, :], 0)
    return pad(logits, (0, packed.k_scale.shape[-1] - k.shape[2])).contiguous()


def _rotated(x: Tensor, rotation: Tensor | None) -> Tensor:
    """Return Q or K [B, H, T, D] after the Hadamard rotation [D, D], fp32, if there is one.

    In torch: a dense product in the kernels needs more shared memory than cards have.
    """
    return x if rotation is None else x.float() @ rotation


@cache
def _rotation(dim: int, device: torch.device) -> Tensor:
    """Return orthogonal block-diagonal Sylvester-Hadamard matrix [D, D], as in the reference."""
    block = dim & -dim
    signs = torch.ones(1, 1, dtype=torch.float32, device=device)
    while signs.shape[0] < block:
        signs = torch.cat([torch.cat([signs, signs], 1), torch.cat([signs, -signs], 1)], 0)
    return torch.block_diag(*[signs * block**-0.5] * (dim // block))
