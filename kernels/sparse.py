"""Block-sparse attention without training: which blocks of keys a block of queries needs.

Method (SpargeAttn, arXiv 2502.18137, section 3: softmax over pooled blocks, and the smallest set of
blocks that holds a given share of it). What is ours: the pools are finer than the kernel's blocks,
``POOL`` queries by ``POOL`` keys, so that a block is judged by what lies inside it, and nothing has
to be known of how alike a block's tokens are. One head, kept share c:

1. q_i, k_j: means over POOL consecutive queries and POOL consecutive keys, n_j the keys of pool j.
2. w_ij = softmax_j(tau q_i k_j + log n_j), an estimate of what pool i spends on pool j; summed over
   the pools of a key block.
3. Every pool of queries needs the fewest key blocks, heaviest first, that together hold c of its
   weight. A query block needs what any of its pools needs, and under a causal mask also the first
   key block, which all of its rows see.

The kernel leaves out all other blocks: the softmax is over the kept ones. Every query block keeps a
key block, and no positions are known or needed: texts, pictures and videos are treated alike.

Trade-off: of a block that is left out nothing remains. Adding it as its mean key and value was
tried and did not change the error (``tests/bench/bench_sparse.py``). The estimate costs 1/1024 of
the products of the logits, and a sort of [Tq / POOL, Tk / KEY_BLOCK] numbers a head.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from accel.kernels.attention_call import AttentionCall

QUERY_BLOCK, KEY_BLOCK = 96, 128  # of the native kernel, as in csrc/attention.h
POOL = 32  # divides both
MIN_TOKENS = 2048  # fewest queries and fewest keys from which leaving out blocks pays
BUDGET = 1 << 22  # pooled logits held at a time: 16 MiB in fp32
DENSE = 1.0  # a kept share: every block


def block_mask(
    q: Tensor,
    k: Tensor,
    kept_share: float,
    *,
    scale: float,
    is_causal: bool = False,
    valid: Tensor | None = None,
    rows: int = QUERY_BLOCK,
) -> Tensor:
    """Return the blocks to compute, uint8 ``[B, H, ceil(Tq / rows), ceil(Tk / KEY_BLOCK)]``.

    q ``[B, H, Tq, D]``, k ``[B, Hk, Tk, D]``, H a multiple of Hk; any float dtype and strides.
    ``kept_share``: share of the estimated softmax that the kept blocks hold for each pool of
    queries, above 0 and below 1. ``valid`` bool ``[B, Tk]``: False for keys that no query sees.
    ``rows``: queries of a block, a multiple of ``POOL``.
    """
    queries, _ = _pooled(q, None)
    keys, count = _pooled(k, valid)
    heads, key_heads = q.shape[1], k.shape[1]
    pools, width = queries.shape[2], keys.shape[2]
    kept = q.new_empty(*q.shape[:2], -(-pools // (rows // POOL)), blocks(k), dtype=torch.uint8)
    step = max(1, BUDGET // max(1, pools * width))
    bias = count.log()
    if is_causal:
        at = torch.arange(max(pools, width), dtype=torch.int64, device=q.device) * POOL
        hidden = at[None, :width] > at[:pools, None] + POOL - 1
    for b in range(q.shape[0]):
        for first in range(0, heads, step):
            which = slice(first, min(first + step, heads))
            near = torch.arange(which.start, which.stop, dtype=torch.int64, device=q.device)
            near = near // (heads // key_heads)
            logits = queries[b, which] @ keys[b, near].mT * scale + bias[b]
            if is_causal:
                logits = logits.masked_fill(hidden, -math.inf)
            kept[b, which] = _needed(logits.softmax(-1), kept_share, rows // POOL)
    if is_causal:
        kept[..., 0] = 1
    return kept


def blocks(k: Tensor) -> int:
    """Return the number of key blocks of k ``[B, Hk, Tk, D]``."""
    return -(-k.shape[2] // KEY_BLOCK)


def _pooled(x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return means of POOL tokens of x [B, H, T, D], fp32 [B, H, n, D], and their number [B, n]."""
    tokens = x.shape[2]
    count = torch.ones(x.shape[0], tokens, dtype=torch.float32, device=x.device)
    if valid is not None:
        x, count = x.masked_fill(~valid[:, None, :, None], 0), count * valid
    whole = tokens // POOL * POOL
    sums = x[:, :, :whole].unflatten(2, (-1, POOL)).sum(3, dtype=torch.float32)
    if whole < tokens:
        rest = x[:, :, whole:].sum(2, keepdim=True, dtype=torch.float32)
        sums = torch.cat([sums, rest], 2)
    count = pad(count, (0, -tokens % POOL)).unflatten(1, (-1, POOL)).sum(2)
    return sums / count.clamp_min(1)[:, None, :, None], count


def _needed(weights: Tensor, kept_share: float, group: int) -> Tensor:
    """Return the key blocks that ``group`` consecutive pools of queries need.

    ``weights`` [H, pools of queries, pools of keys], rows of sum 1. Returns bool
    [H, ceil(pools / group), key blocks].
    """
    per_block = KEY_BLOCK // POOL
    weights = pad(weights, (0, -weights.shape[2] % per_block)).unflatten(2, (-1, per_block)).sum(3)
    heaviest, order = weights.sort(-1, descending=True)
    # A block is needed if those before it do not hold the share yet: always the first one.
    needed = heaviest.cumsum(-1) - heaviest < kept_share
    needed[..., 0] = True
    needed = torch.zeros_like(needed).scatter_(-1, order, needed)
    needed = pad(needed, (0, 0, 0, -needed.shape[1] % group))
    return needed.unflatten(1, (-1, group)).any(2)


def why_dense(call: AttentionCall) -> str:
    """Return why all blocks of a call are computed whatever share is asked for, or ""."""
    mask = call.attn_mask
    if mask is not None and mask.dtype != torch.bool:
        return "an additive mask"
    if mask is not None and any(size > 1 for size in (1, *mask.shape)[-3:-1]):
        return "a mask that differs by query or head"
    return "" if call.q.is_cpu else "no block-sparse kernel for this device"


def share(call: AttentionCall, least: int = 1) -> float:
    """Return the share of the softmax that a call's kept blocks hold, ``DENSE`` for all blocks.

    ``least``: fewest queries and fewest keys of a call that leaves out blocks.
    """
    asked = call.options.kept_share
    if asked is None or min(call.shape[2:]) < least or why_dense(call):
        return DENSE
    return asked


def with_block_mask(call: AttentionCall, kept_share: float, valid: Tensor | None) -> AttentionCall:
    """Return the call with the blocks that hold ``kept_share``; as it is if it has a block mask.

    ``valid`` bool [B, Tk] or None, as in ``block_mask``.
    """
    if call.block_mask is not None or kept_share >= DENSE:
        return call
    chosen = block_mask(
        call.q, call.k, kept_share, scale=call.softmax_scale, is_causal=call.is_causal, valid=valid
    )
    return replace(call, block_mask=chosen)


def computed(call: AttentionCall) -> float:
    """Return the share of a call's blocks that are computed, of those its causal mask leaves."""
    if call.block_mask is None:
        return 1.0
    if not call.is_causal:
        return float(call.block_mask.float().mean())
    columns = torch.arange(call.block_mask.shape[3], dtype=torch.int64) * KEY_BLOCK
    last = (torch.arange(call.block_mask.shape[2], dtype=torch.int64) + 1) * QUERY_BLOCK - 1
    seen = (columns <= last[:, None]).to(call.block_mask.device)
    return float(call.block_mask[..., seen].float().mean())
