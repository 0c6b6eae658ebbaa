"""Torch's own attention with the log-sum-exp, which its public function does not return.

Context parallel attention merges parts of the keys by their log-sum-exp (Ring Attention, Liu et
al., arXiv 2310.01889), so a part that is too short to be quantized needs it too. Torch's flash
kernels compute it and hand it over for their backward pass. What they do not take stays with the
eager reference: ``why_not`` says why. The part for CUDA has not run on a card yet.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from accel.kernels.attention_call import AttentionCall, why_not_plain

MOST_DIM_CUDA = 256  # channels of a head that torch's flash kernel takes on a card


def why_not(call: AttentionCall) -> str:
    """Return why torch's kernels give no log-sum-exp for a call, or ""."""
    q, k, v = call.q, call.k, call.v
    if why := why_not_plain(q, k, v, call.attn_mask):
        return why
    if v.shape[-1] != q.shape[-1]:
        return f"values of {v.shape[-1]} channels beside queries of {q.shape[-1]}"
    if q.is_cuda:
        return _why_not_cuda(call)
    return "" if q.is_cpu else f"torch has no such kernel for {q.device.type}"


def _why_not_cuda(call: AttentionCall) -> str:
    q = call.q
    if q.dtype not in (torch.float16, torch.bfloat16):
        return f"dtype {str(q.dtype).removeprefix('torch.')}"
    if call.masked:
        return "a mask"
    if call.is_causal and q.shape[2] != call.k.shape[2]:
        return "a causal mask that is not square"  # torch's flash kernel aligns it bottom right
    if q.shape[-1] % 8 or q.shape[-1] > MOST_DIM_CUDA:
        return f"heads of {q.shape[-1]} channels"
    if torch.cuda.get_device_capability(q.device) < (8, 0):
        return "a card older than Ampere"
    return ""


def attention(call: AttentionCall, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compute a call for which ``why_not`` is "".

    Args:
        call: q [B, H, Tq, D], k and v [B, Hk, Tk, D].
        mask: All masks of the call as one additive tensor in fp32, broadcastable to
            [B, H, Tq, Tk], a causal one included. None if no tensor masks.

    Returns:
        Output [B, H, Tq, D] in q's dtype, and natural log-sum-exp [B, H, Tq] in fp32. A row that
        sees no key gives zeros and minus infinity.
    """
    # The kernels read the last dimension as if it were dense.
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (call.q, call.k, call.v))
    if q.is_cuda:
        return _on_card(q, k, v, call)
    if mask is not None:
        mask = mask if mask.dim() in (2, 4) else mask.view(*[1] * (4 - mask.dim()), *mask.shape)
        mask = mask.contiguous()
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, is_causal=call.is_causal and mask is None, attn_mask=mask, scale=call.scale
    )
    lse = lse.contiguous()
    if mask is not None:
        empty = (mask == -math.inf).all(-1).expand(lse.shape)
        out, lse = out.masked_fill(empty[..., None], 0), lse.masked_fill(empty, -math.inf)
    return out, lse


def _on_card(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> tuple[Tensor, Tensor]:
    if k.shape[1] != q.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(
        q, k, v, is_causal=call.is_causal, scale=call.scale
    )
    return out, lse.float().contiguous()
