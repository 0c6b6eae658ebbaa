"""Block-sparse attention without training: which blocks of keys a block of queries needs.

Method (SpargeAttn, arXiv 2502.18137, section 3: softmax over pooled blocks, and the smallest set of
blocks that holds a given share of it). What is ours: the pools are finer than the kernel's blocks,
``POOL`` queries by ``POOL`` keys, so that a block is judged by what lies inside it; and step 4
instead of a threshold of how alike a block's tokens are. One head, kept share c:

1. q_i, k_j: means over POOL consecutive queries and POOL consecutive keys, n_j the keys of pool j.
2. w_ij = softmax_j(tau q_i k_j + log n_j), an estimate of what pool i spends on pool j; summed over
   the pools of a key block.
3. Every pool of queries needs the fewest key blocks, heaviest first, that together hold c of its
   weight.
4. A mean hides a single key that draws all queries (a sink). In each pool the key farthest from the
   mean is judged by itself: its block is needed where it holds more than 1 - c.
5. A query block needs what any of its pools needs, and under a causal mask also the first key
   block, which all of its rows see.

The kernel leaves out all other blocks: the softmax is over the kept ones. Every query block keeps a
key block, and no positions are known or needed: texts, pictures and videos are treated alike. Where
the tokens of a pool differ much, means are short, the estimate is flat, and hardly any block is
left out.

Trade-off: of a block that is left out nothing remains. Adding it as its mean key and value was
tried and did not change the error (``tests/bench/bench_sparse.py --estimates``). The estimate costs
2/1024 of the products of the logits, and a sort of [Tq / POOL, Tk / KEY_BLOCK] numbers a head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from accel.kernels.attention_call import AttentionCall

QUERY_BLOCK, KEY_BLOCK = 96, 128  # of the native kernel, as in csrc/attention.h
POOL = 32  # divides both
PER_BLOCK = KEY_BLOCK // POOL
# Fewest queries and fewest keys from which leaving out blocks pays: on AVX-512-VNNI, heads of 64, a
# share of 0.95 is 0.98 times as fast as all blocks at 1,536 tokens and 1.18 times at 2,048
# (tests/bench/bench_sparse.py --short).
MIN_TOKENS = 2048
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
    group = q.shape[1] // k.shape[1]
    size = -(-q.shape[2] // rows), blocks(k)
    kept = torch.empty(*q.shape[:2], *size, dtype=torch.uint8, device=q.device)
    for b in range(q.shape[0]):
        seen = None if valid is None else valid[b]
        for h in range(k.shape[1]):
            keys = _key_pools(k[b, h], seen)
            for head in range(h * group, (h + 1) * group):
                queries = _query_means(q[b, head])
                needed = _needed(queries, keys, kept_share, scale, is_causal)
                kept[b, head] = _any_of(needed, rows // POOL, 0)
    if is_causal:
        kept[..., 0] = 1
    return kept


def blocks(k: Tensor) -> int:
    """Return the number of key blocks of k ``[B, Hk, Tk, D]``."""
    return -(-k.shape[2] // KEY_BLOCK)


@dataclass(frozen=True)
class _Pools:
    """Pools of a head's keys: mean and farthest key, fp32 [n, D], and the number of keys [n]."""

    mean: Tensor
    farthest: Tensor
    number: Tensor


def _split(x: Tensor) -> Tensor:
    """Return tokens x [T, D] in pools [ceil(T / POOL), POOL, D], filled up with zeros."""
    missing = -x.shape[0] % POOL
    return (pad(x, (0, 0, 0, missing)) if missing else x).unflatten(0, (-1, POOL))


def _query_means(q: Tensor) -> Tensor:
    """Return the means of the pools of queries [T, D], fp32 [n, D]."""
    means = _split(q).sum(1, dtype=torch.float32) / POOL
    means[-1] *= POOL / (q.shape[0] - (len(means) - 1) * POOL)
    return means


def _key_pools(k: Tensor, valid: Tensor | None) -> _Pools:
    """Return the pools of keys [T, D], of those that are ``valid`` [T] if given."""
    inside = torch.ones(k.shape[0], dtype=torch.bool, device=k.device) if valid is None else valid
    inside, tokens = _split(inside[:, None]).squeeze(2), _split(k).float()
    if valid is not None:
        tokens = tokens.masked_fill(~inside[..., None], 0)
    number = inside.sum(1, dtype=torch.float32)
    mean = tokens.sum(1) / number.clamp_min(1)[:, None]
    away = torch.linalg.vector_norm(tokens - mean[:, None], dim=2).masked_fill(~inside, -1)
    at = torch.arange(len(mean), dtype=torch.int64, device=k.device)
    return _Pools(mean, tokens[at, away.argmax(1)], number)


def _needed(
    queries: Tensor, keys: _Pools, kept_share: float, scale: float, is_causal: bool
) -> Tensor:
    """Return the key blocks that each pool of ``queries`` [n, D] needs, bool [n, key blocks]."""
    logits = queries @ keys.mean.T * scale + keys.number.log()
    alone = (queries @ keys.farthest.T * scale).masked_fill(keys.number == 0, -math.inf)
    if is_causal:
        rows, columns = logits.shape
        at = torch.arange(max(rows, columns), dtype=torch.int64, device=logits.device)
        logits = logits.masked_fill(at[:columns] > at[:rows, None], -math.inf)
        alone = alone.masked_fill(at[:columns] > at[:rows, None], -math.inf)
    outlier = alone - logits.logsumexp(1, keepdim=True) > math.log(1 - kept_share)
    weights = pad(logits.softmax(1), (0, -logits.shape[1] % PER_BLOCK))
    heaviest, order = weights.unflatten(1, (-1, PER_BLOCK)).sum(2).sort(1, descending=True)
    # A block is needed if those before it do not hold the share yet: always the first one.
    needed = heaviest.cumsum(1) - heaviest < kept_share
    needed[:, 0] = True
    return torch.zeros_like(needed).scatter_(1, order, needed) | _any_of(outlier, PER_BLOCK, 1)


def _any_of(x: Tensor, count: int, dim: int) -> Tensor:
    """Return whether any of ``count`` consecutive elements along ``dim`` of x [n, m] is true."""
    missing = -x.shape[dim] % count
    return (
        pad(x, (0, missing) if dim else (0, 0, 0, missing)).unflatten(dim, (-1, count)).any(dim + 1)
    )


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
    rows, columns = call.block_mask.shape[2:]
    at = torch.arange(max(rows, columns), dtype=torch.int64, device=call.block_mask.device)
    seen = at[:columns] * KEY_BLOCK < (at[:rows, None] + 1) * QUERY_BLOCK
    return float(call.block_mask[..., seen].float().mean())
