# mypy: disable-error-code="no-untyped-def,untyped-decorator"
"""Queries, keys and values made ready for tensor cores: smoothing and quantization, fused.

Method (SageAttention2, arXiv 2411.10958, sections 3.1-3.3; exact definitions in
``kernels/reference.py``). ``_statistics`` reads K and V once and leaves, per chunk of tokens, the
sums of K and of V and the least and largest V of each channel; ``_fold`` makes means and scales of
those. ``_pack`` reads K and V a second time and writes

    K codes  int8  [B, Hk, N, Dk]    K - mean; one scale per token, thread or block
    K scale  fp32  [B, Hk, N]        written out per token, so the attention kernel knows one layout
    V codes  E4M3  [B, Hk, Dv', N]   tokens innermost: 8-bit tensor cores read V that way only; of
                                     16 tokens the order is 0 1 8 9 2 3 10 11 ... 6 7 14 15, in
                                     which a thread holds P after Q K and needs it for P V
          or fp16  [B, Hk, N, Dv']
    V scale, V mean, K mean  fp32 [B, Hk, Dv' or Dk]

N is Tk rounded up to 128, Dk and Dv' are the head sizes rounded up to a power of two. The padding
is zero, so the attention kernel loads whole tiles. With values "e2m1" all is NVFP4
(``gpu/fp4.py``): codes uint8, two in a byte along the contracted axis ([B, Hk, N, Dk / 2],
[B, Hk, Dv', N / 2]), and an E4M3 scale for each 16. The least and largest V give the peak of
V - mean without a third pass. ``_pack_queries`` reads Q once and writes

    Q codes  int8  [B, H, M, Dk]     Q, less the mean of its 128 rows if smoothed
    Q scale  fp32  [B, H, M]         times softmax scale and log2(e)
    Q mean   fp32  [B, H, M / 128, Dk], and what smoothing K took from each logit, [B, H, M]

with M = Tq rounded up to 128. Offsets between tokens and heads are 64-bit: views of a fused QKV
buffer span more than 2^31 elements. Queries are not quantized by the attention kernel itself,
although it reads each once: compiled for Blackwell that version spilled 448 bytes a thread.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from accel.kernels.gpu.fp4 import to_fp4
from accel.kernels.gpu.layout import TOKENS, Packed, Queries, padded_dim, padded_tokens

GROUP = tl.constexpr(64)  # keys that share a scale at granularity "block"
MAX_CHUNKS = 64  # partial sums per head
FLOOR = tl.constexpr(1e-30)  # as SCALE_FLOOR of the reference
E4M3, FP4_PEAK = torch.float8_e4m3fn, 2688.0  # 448 * 6, see ``gpu/fp4.py``
ROUND = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding and subtracting it rounds half to even


@triton.jit
def row_scales(x, qmax, ROWS: tl.constexpr, GRANULARITY: tl.constexpr, IS_KEY: tl.constexpr):
    """Return the scale [ROWS] of each row of x [ROWS, D]; it is not finite where x is not.

    GRANULARITY "token"; "thread": rows {i, i+8, i+16, i+24} of 32 queries, {2j, 2j+1} of each 8 in
    64 keys; "block": 64 keys, or all ROWS queries.
    """
    # A maximum drops NaN; the sum times zero brings it back.
    peak = tl.max(tl.abs(x), 1) + tl.sum(x, 1) * 0.0
    if GRANULARITY == "block":
        grid = tl.reshape(peak, [ROWS // GROUP, GROUP] if IS_KEY else [1, ROWS])
        top = tl.max(grid, 1) + tl.sum(grid, 1) * 0.0
        peak = tl.reshape(tl.broadcast_to(top[:, None], grid.shape), [ROWS])
    elif GRANULARITY == "thread":
        if IS_KEY:
            grid = tl.reshape(peak, [ROWS // 64, 8, 4, 2])
            top = tl.max(tl.max(grid, 3), 1) + tl.sum(tl.sum(grid, 3), 1) * 0.0
            top = tl.broadcast_to(top[:, None, :, None], [ROWS // 64, 8, 4, 2])
        else:
            grid = tl.reshape(peak, [ROWS // 32, 4, 8])
            top = tl.max(grid, 1) + tl.sum(grid, 1) * 0.0
            top = tl.broadcast_to(top[:, None, :], [ROWS // 32, 4, 8])
        peak = tl.reshape(top, [ROWS])
    # Written so that NaN stays: max(NaN, floor) is the floor.
    return tl.where(peak < FLOOR, FLOOR, peak) / qmax


@triton.jit
def to_codes(x, scale):
    """Return the nearest integers of x [T, D] / scale [T], half to even, as int8."""
    return ((x / scale[:, None] + ROUND) - ROUND).to(tl.int8)


@triton.jit
def _store_codes(
    codes_ptr, groups_ptr, x, scale, rows,
    ROWS: tl.constexpr, DIM: tl.constexpr, FP4: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    """Store x [ROWS, DIM] / scale [ROWS] at ``rows`` [ROWS] as int8, or as NVFP4."""
    if FP4:
        codes, groups = to_fp4(x / scale[:, None], ROWS, DIM, NATIVE)
        half, sixteenth = tl.arange(0, DIM // 2), tl.arange(0, DIM // 16)
        tl.store(codes_ptr + rows[:, None] * (DIM // 2) + half[None, :], codes)
        tl.store(groups_ptr + rows[:, None] * (DIM // 16) + sixteenth[None, :], groups)
    else:
        d = tl.arange(0, DIM)
        tl.store(codes_ptr + rows[:, None] * DIM + d[None, :], to_codes(x, scale))


@triton.jit(do_not_specialize=["heads", "tokens", "chunks", "rounds"])
def _statistics(
    k_ptr, v_ptr, valid_ptr, partial_ptr,
    heads, tokens, dim, value_dim, chunks, rounds,
    k_sb, k_sh, k_st, k_sd, v_sb, v_sh, v_st, v_sd,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, ROWS: tl.constexpr, HAS_VALID: tl.constexpr,
):  # fmt: skip
    """Store partial statistics of a chunk of a head: [B * Hk, chunks, 4, max(DIM, VALUE_DIM)]."""
    head, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    b, h = head // heads, head % heads
    d, dv = tl.arange(0, DIM), tl.arange(0, VALUE_DIM)
    k_ptr += b * k_sb + h * k_sh
    v_ptr += b * v_sb + h * v_sh
    # Row by row of a tile, folded once in the end: a reduction over rows crosses warps.
    k_sum = tl.zeros([ROWS, DIM], tl.float32)
    v_sum = tl.zeros([ROWS, VALUE_DIM], tl.float32)
    v_low = tl.full([ROWS, VALUE_DIM], float("inf"), tl.float32)
    v_high = tl.full([ROWS, VALUE_DIM], float("-inf"), tl.float32)
    for i in range(rounds):
        t = (chunk * rounds + i) * ROWS + tl.arange(0, ROWS)
        seen = t < tokens
        if HAS_VALID:
            seen = seen & (tl.load(valid_ptr + b * tokens + t, mask=seen, other=0) != 0)
        t = t.to(tl.int64)[:, None]
        seen = seen[:, None]
        k_sum += tl.load(
            k_ptr + t * k_st + d[None, :] * k_sd, mask=seen & (d < dim)[None, :], other=0.0
        ).to(tl.float32)  # fmt: skip
        v = tl.load(
            v_ptr + t * v_st + dv[None, :] * v_sd, mask=seen & (dv < value_dim)[None, :], other=0.0
        ).to(tl.float32)  # fmt: skip
        v_sum += v
        v_low = tl.minimum(v_low, tl.where(seen, v, float("inf")))
        v_high = tl.maximum(v_high, tl.where(seen, v, float("-inf")))
    WIDE: tl.constexpr = max(DIM, VALUE_DIM)
    base = partial_ptr + (head * chunks + chunk) * 4 * WIDE
    tl.store(base + d, tl.sum(k_sum, 0))
    tl.store(base + WIDE + dv, tl.sum(v_sum, 0))
    tl.store(base + 2 * WIDE + dv, tl.min(v_low, 0))
    tl.store(base + 3 * WIDE + dv, tl.max(v_high, 0))


@triton.jit(do_not_specialize=["heads", "tokens", "chunks"])
def _fold(
    count_ptr, partial_ptr, k_mean_ptr, v_mean_ptr, v_scale_ptr, heads, tokens, chunks,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, CHUNKS: tl.constexpr, HAS_VALID: tl.constexpr,
    VALUES: tl.constexpr, SMOOTH_V: tl.constexpr,
):  # fmt: skip
    """Store means of K and V and scales of V of one head, from its partial statistics."""
    head = tl.program_id(0).to(tl.int64)
    d, dv, c = tl.arange(0, DIM), tl.arange(0, VALUE_DIM), tl.arange(0, CHUNKS)
    WIDE: tl.constexpr = max(DIM, VALUE_DIM)
    base = partial_ptr + head * chunks * 4 * WIDE + (c * 4 * WIDE)[:, None]
    real = (c < chunks)[:, None]
    count = tl.load(count_ptr + head // heads) if HAS_VALID else tokens.to(tl.float32)
    k_mean = tl.sum(tl.load(base + d[None, :], mask=real, other=0.0), 0) / count
    v_mean = tl.sum(tl.load(base + WIDE + dv[None, :], mask=real, other=0.0), 0) / count
    low = tl.load(base + 2 * WIDE + dv[None, :], mask=real, other=float("inf"))
    high = tl.load(base + 3 * WIDE + dv[None, :], mask=real, other=float("-inf"))
    poison = v_mean * 0.0  # NaN where V is not finite, which a maximum would hide
    if not SMOOTH_V:
        v_mean = tl.zeros([VALUE_DIM], tl.float32)
    peak = tl.maximum(tl.max(high, 0) - v_mean, v_mean - tl.min(low, 0))
    peak = tl.where(peak < FLOOR, FLOOR, peak) + poison
    if VALUES == "e4m3":
        v_scale = peak / 448.0
    elif VALUES == "e2m1":
        v_scale = peak / 2688.0
    else:  # a power of two: fp16 values keep their bits, bf16 values beyond 65504 fit
        bits = (peak.to(tl.int32, bitcast=True) + 0x7FFFFF) & 0x7F800000
        v_scale = bits.to(tl.float32, bitcast=True) + poison
    tl.store(k_mean_ptr + head * DIM + d, k_mean)
    tl.store(v_mean_ptr + head * VALUE_DIM + dv, v_mean)
    tl.store(v_scale_ptr + head * VALUE_DIM + dv, v_scale)


@triton.jit(do_not_specialize=["heads", "tokens"])
def _pack(
    k_ptr, v_ptr, valid_ptr, k_mean_ptr, v_mean_ptr, v_scale_ptr,
    k_codes_ptr, k_scale_ptr, v_codes_ptr, k_groups_ptr, v_groups_ptr,
    heads, tokens, padded, dim, value_dim, qmax,
    k_sb, k_sh, k_st, k_sd, v_sb, v_sh, v_st, v_sd,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, ROWS: tl.constexpr, HAS_VALID: tl.constexpr,
    GRANULARITY: tl.constexpr, VALUES: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    """Store the codes of ROWS tokens of one head."""
    head, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    b, h = head // heads, head % heads
    d, dv = tl.arange(0, DIM), tl.arange(0, VALUE_DIM)
    k_mean = tl.load(k_mean_ptr + head * DIM + d)
    v_mean = tl.load(v_mean_ptr + head * VALUE_DIM + dv)
    v_scale = tl.load(v_scale_ptr + head * VALUE_DIM + dv)
    t = block * ROWS + tl.arange(0, ROWS)
    seen = t < tokens
    if HAS_VALID:
        seen = seen & (tl.load(valid_ptr + b * tokens + t, mask=seen, other=0) != 0)
    far = t.to(tl.int64)[:, None]
    k = tl.load(
        k_ptr + b * k_sb + h * k_sh + far * k_st + d[None, :] * k_sd,
        mask=seen[:, None] & (d < dim)[None, :], other=0.0,
    )  # fmt: skip
    k = tl.where(seen[:, None], k.to(tl.float32) - k_mean[None, :], 0.0)
    k_scale = row_scales(k, qmax, ROWS, GRANULARITY, True)
    out = head * padded + t.to(tl.int64)
    tl.store(k_scale_ptr + out, k_scale)
    _store_codes(k_codes_ptr, k_groups_ptr, k, k_scale, out, ROWS, DIM, VALUES == "e2m1", NATIVE)

    v = tl.load(
        v_ptr + b * v_sb + h * v_sh + far * v_st + dv[None, :] * v_sd,
        mask=seen[:, None] & (dv < value_dim)[None, :], other=0.0,
    ).to(tl.float32)  # fmt: skip
    v = tl.where(seen[:, None] & (dv < value_dim)[None, :], v - v_mean[None, :], 0.0)
    v = v / v_scale[None, :]
    if VALUES == "e4m3":
        codes = tl.reshape(tl.trans(v.to(tl.float8e4nv)), [VALUE_DIM, ROWS // 16, 2, 4, 2])
        codes = tl.reshape(tl.permute(codes, [0, 1, 3, 2, 4]), [VALUE_DIM, ROWS])
        place = (head * VALUE_DIM + dv.to(tl.int64))[:, None] * padded + t[None, :]
        tl.store(v_codes_ptr + place, codes)
    elif VALUES == "e2m1":
        codes, groups = to_fp4(tl.trans(v), VALUE_DIM, ROWS, NATIVE)
        row = (head * VALUE_DIM + dv.to(tl.int64))[:, None]
        half = block * ROWS // 2 + tl.arange(0, ROWS // 2)
        sixteenth = block * ROWS // 16 + tl.arange(0, ROWS // 16)
        tl.store(v_codes_ptr + row * (padded // 2) + half[None, :], codes)
        tl.store(v_groups_ptr + row * (padded // 16) + sixteenth[None, :], groups)
    else:
        tl.store(v_codes_ptr + out[:, None] * VALUE_DIM + dv[None, :], v.to(tl.float16))


@triton.jit(do_not_specialize=["heads", "group", "tokens"])
def _pack_queries(
    q_ptr, k_mean_ptr, codes_ptr, scale_ptr, mean_ptr, shift_ptr, groups_ptr,
    heads, group, tokens, padded, dim, scale, qmax,
    q_sb, q_sh, q_st, q_sd,
    DIM: tl.constexpr, ROWS: tl.constexpr, GRANULARITY: tl.constexpr, SMOOTH: tl.constexpr,
    SHIFT: tl.constexpr, FP4: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    """Store the codes of ROWS queries of one head; ``scale`` is softmax scale times log2(e)."""
    head, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    b, h = head // heads, head % heads
    t, d = block * ROWS + tl.arange(0, ROWS), tl.arange(0, DIM)
    far = t.to(tl.int64)[:, None]
    q = tl.load(
        q_ptr + b * q_sb + h * q_sh + far * q_st + d[None, :] * q_sd,
        mask=(t < tokens)[:, None] & (d < dim)[None, :], other=0.0,
    )  # fmt: skip
    q = q.to(tl.float32)
    out = head * padded + t.to(tl.int64)
    if SHIFT:
        key_head = b * (heads // group) + h // group
        center = tl.load(k_mean_ptr + key_head * DIM + d)[None, :]
        tl.store(shift_ptr + out, tl.sum(q * center, 1) * scale)
    if SMOOTH:
        mean = tl.sum(q, 0) / tl.minimum(tokens - block * ROWS, ROWS)
        tl.store(mean_ptr + (head * (padded // ROWS) + block) * DIM + d, mean)
        q = tl.where((t < tokens)[:, None], q - mean[None, :], 0.0)
    q_scale = row_scales(q, qmax, ROWS, GRANULARITY, False)
    tl.store(scale_ptr + out, q_scale * scale)
    _store_codes(codes_ptr, groups_ptr, q, q_scale, out, ROWS, DIM, FP4, NATIVE)


def _codes(x: Tensor, padded: int, wide: int, fp4: bool) -> Tensor:
    """Return an empty tensor for the codes of Q or K [B, H, T, D]."""
    shape = (*x.shape[:2], padded, wide // 2 if fp4 else wide)
    return x.new_empty(shape, dtype=torch.uint8 if fp4 else torch.int8)


def pack_queries(
    q: Tensor,
    keys: Packed,
    *,
    scale: float,
    qmax: int = 127,
    granularity: str = "token",
    smooth: bool = False,
    with_shift: bool = False,
) -> Queries:
    """Quantize q ``[B, H, Tq, D]``, any strides; ``scale`` is softmax scale times log2(e)."""
    batch, heads, tokens, dim = q.shape
    padded, wide, fp4 = padded_tokens(tokens), keys.k_mean.shape[-1], keys.values == "e2m1"
    new = q.new_empty
    made = Queries(
        codes=_codes(q, padded, wide, fp4),
        scale=new(batch, heads, padded, dtype=torch.float32),
        mean=new(batch, heads, padded // TOKENS, wide, dtype=torch.float32) if smooth else None,
        shift=new(batch, heads, padded, dtype=torch.float32) if with_shift else None,
        groups=new(batch, heads, padded, wide // 16, dtype=E4M3) if fp4 else None,
    )
    _pack_queries[(batch * heads, padded // TOKENS)](
        q, keys.k_mean, made.codes, made.scale,
        q if made.mean is None else made.mean, q if made.shift is None else made.shift,
        q if made.groups is None else made.groups,
        heads, heads // keys.k_codes.shape[1], tokens, padded, dim, scale,
        FP4_PEAK if fp4 else float(qmax), *q.stride(), DIM=wide, ROWS=TOKENS,
        GRANULARITY=granularity, SMOOTH=smooth, SHIFT=with_shift, FP4=fp4,
        NATIVE=q.device.type == "cuda",
        num_warps=8,
    )  # fmt: skip
    return made


def pack(
    k: Tensor,
    v: Tensor,
    *,
    values: str,
    qmax: int = 127,
    granularity: str = "token",
    smooth_v: bool = False,
    valid: Tensor | None = None,
) -> Packed:
    """Quantize k ``[B, Hk, Tk, D]`` and v ``[B, Hk, Tk, Dv]``, any strides, never modified.

    ``values`` "e4m3", "fp16" or "e2m1"; ``valid`` bool [B, Tk], False for keys that no query sees.
    """
    batch, heads, tokens, dim = k.shape
    value_dim = v.shape[-1]
    fp4, e4m3 = values == "e2m1", values == "e4m3"
    least = 64 if fp4 else 32
    wide, value_wide, padded = padded_dim(dim, least), padded_dim(value_dim), padded_tokens(tokens)
    widest = max(wide, value_wide)
    rows = 2048 // widest
    rounds = triton.cdiv(triton.cdiv(tokens, rows), MAX_CHUNKS)
    chunks = triton.cdiv(tokens, rows * rounds)
    new = k.new_empty
    partial = new(batch * heads, chunks, 4, widest, dtype=torch.float32)
    count = partial  # not read
    if valid is not None:
        valid, count = valid.contiguous(), valid.sum(-1).float()
    packed = Packed(
        k_codes=_codes(k, padded, wide, fp4),
        k_scale=new(batch, heads, padded, dtype=torch.float32),
        k_mean=new(batch, heads, wide, dtype=torch.float32),
        v_codes=new(batch, heads, value_wide, padded // 2, dtype=torch.uint8)
        if fp4
        else new(batch, heads, value_wide, padded, dtype=E4M3)
        if e4m3
        else new(batch, heads, padded, value_wide, dtype=torch.float16),
        v_scale=new(batch, heads, value_wide, dtype=torch.float32),
        v_mean=new(batch, heads, value_wide, dtype=torch.float32),
        values=values,
        k_groups=new(batch, heads, padded, wide // 16, dtype=E4M3) if fp4 else None,
        v_groups=new(batch, heads, value_wide, padded // 16, dtype=E4M3) if fp4 else None,
    )
    strides = (*k.stride(), *v.stride())
    shape = {"DIM": wide, "VALUE_DIM": value_wide, "HAS_VALID": valid is not None}
    # An absent tensor is any pointer; its constexpr keeps the kernel from reading it.
    seen = k if valid is None else valid.view(torch.uint8)
    _statistics[(batch * heads, chunks)](
        k, v, seen, partial, heads, tokens, dim, value_dim, chunks, rounds, *strides,
        ROWS=rows, num_warps=4, **shape,
    )  # fmt: skip
    _fold[(batch * heads,)](
        count, partial, packed.k_mean, packed.v_mean, packed.v_scale, heads, tokens, chunks,
        CHUNKS=MAX_CHUNKS, VALUES=values, SMOOTH_V=smooth_v, num_warps=8, **shape,
    )  # fmt: skip
    rows = TOKENS if widest <= 128 else TOKENS // 2
    _pack[(batch * heads, padded // rows)](
        k, v, seen, packed.k_mean, packed.v_mean, packed.v_scale,
        packed.k_codes, packed.k_scale, packed.v_codes,
        k if packed.k_groups is None else packed.k_groups,
        k if packed.v_groups is None else packed.v_groups, heads, tokens, padded, dim, value_dim,
        FP4_PEAK if fp4 else float(qmax), *strides, NATIVE=k.device.type == "cuda",
        ROWS=rows, GRANULARITY=granularity, VALUES=values, num_warps=8, **shape,
    )  # fmt: skip
    return packed
