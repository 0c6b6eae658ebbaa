"""Quantized attention as a public op: check the call, decide what runs, run it.

Layout [B, H, T, D]; what each precision means is defined in ``kernels/reference.py``. In a graph
the call is one functional ``torch.library`` op with a fake, so ``torch.compile(fullgraph=True)``
sees one opaque node.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from accel.kernels import reference, shared_keys, sparse, torch_lse
from accel.kernels.attention_call import PLAIN, AttentionCall, Options, check
from accel.kernels.cpu import attention as cpu
from accel.kernels.dispatch import Decision, decide
from accel.kernels.gpu import support
from accel.kernels.masks import additive_mask, seen_keys, valid_keys

Precision = Literal["int8", "int6", "int4", "full"]
ImplName = Literal["auto", "reference", "cpu", "gpu"]

BITS: dict[str, int] = {"int8": 8, "int6": 6, "int4": 4}
INT4_CLIP = 0.92  # least error of 15 levels on N(0, 1) with 64 and 128 channels; also in csrc
QUERY_BITS = {8: 7, 6: 6, 4: 4}  # the CPU kernel's products need unsigned queries of 7 bits
_PRECISIONS = get_args(Precision)
_sdpa = torch.nn.functional.scaled_dot_product_attention


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    precision: Precision = "int8",
    impl: ImplName = "auto",
    attn_mask: Tensor | None = None,
    key_lengths: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    smooth_q: bool = False,
    smooth_v: bool = False,
    hadamard: bool = False,
    return_lse: bool = False,
    kept_share: float | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Compute softmax attention with Q, K held in ``precision`` and P, V in eight bits.

    q ``[B, H, Tq, D]``, k ``[B, Hk, Tk, D]``, v ``[B, Hk, Tk, Dv]``: fp32, bf16 or fp16 (fp64 for
    "full"), any strides, never modified. Hk = H, or a divisor of H with ``enable_gqa``. Returns
    ``[B, H, Tq, Dv]`` in q's dtype and memory layout, and with ``return_lse`` also the natural
    log-sum-exp ``[B, H, Tq]`` in fp32.

    ``attn_mask`` broadcasts to ``[B, H, Tq, Tk]``: boolean (True keeps) or additive in logit units.
    ``key_lengths`` int ``[B]``: keys from there on are padding. ``is_causal`` is aligned top left.
    All masks combine; a fully masked row gives zeros (log-sum-exp -inf). ``scale`` defaults to
    D^-1/2.

    ``impl="auto"`` takes the fastest for the call, which for few tokens is torch's own attention at
    full precision, and INT8 on a card without tensor cores for the asked precision; a named one
    runs as asked. ``precision="full"`` with "auto" is torch's own attention. ``smooth_q``,
    ``smooth_v``, ``hadamard``: see ``kernels/reference.py`` (SageAttention2, arXiv 2411.10958,
    section 3). Eager calls that torch's own attention computes have a gradient, others none.

    ``kept_share``, above 0 and at most 1: leave out blocks of keys that by estimate hold the rest
    of the softmax (``kernels/sparse.py``). All blocks are computed at full precision, where
    ``sparse.why_dense`` has a reason, and with "auto" in calls too short to gain.

    Raises ValueError for shapes, dtypes or options that do not fit, RuntimeError when a named
    ``impl`` cannot run here (with the reason).
    """
    if precision not in _PRECISIONS:
        raise ValueError(f"precision must be one of {_PRECISIONS}, got {precision!r}")
    check(q, k, v, attn_mask, key_lengths, enable_gqa)
    if kept_share is not None and not 0.0 < kept_share <= 1.0:
        raise ValueError(f"kept_share must be above 0 and at most 1, got {kept_share}")
    runs: str = precision
    by: str = impl
    if not torch.compiler.is_compiling():
        options = PLAIN
        if smooth_q or smooth_v or hadamard or return_lse or kept_share is not None:
            options = Options(smooth_q, smooth_v, hadamard, return_lse, kept_share)
        call = AttentionCall(q, k, v, attn_mask, key_lengths, is_causal, scale, options)
        decision = decide(call, precision, impl)
        if decision.impl == "torch" and not return_lse:
            return _torch(call)
        if not _needs_gradient(q, k, v):
            out, lse = run(call, decision)
            return out if lse is None else (out, lse)
        if decision.impl != "torch":
            runs, by = decision.precision, decision.impl
    # The op is for graphs, and says clearly that it has no gradient.
    out, lse = torch.ops.accel.attention(
        q, k, v, runs, by, attn_mask, key_lengths, is_causal, scale, smooth_q, smooth_v, hadamard,
        return_lse, kept_share,
    )  # fmt: skip
    return (out, lse) if return_lse else out


def run(call: AttentionCall, decision: Decision) -> tuple[Tensor, Tensor | None]:
    """Compute a call as it was decided.

    Returns the output [B, H, Tq, Dv], and log-sum-exp [B, H, Tq] if asked for. For callers that are
    an op themselves or take the decision themselves.
    """
    if call.block_mask is not None and (decision.impl == "gpu" or decision.precision == "full"):
        raise ValueError(f"a block mask is not for {decision.precision} by {decision.impl}")
    if decision.impl == "torch":
        if call.options.return_lse:
            mask = _additive(call, torch.float32) if call.masked else None
            return torch_lse.attention(call, mask)
        return _torch(call), None
    if decision.impl == "gpu":
        return _gpu(call, decision)
    valid = None
    if decision.precision != "full":
        valid = seen_keys(call.attn_mask, call.key_lengths, call.k)
        call = sparse.with_block_mask(call, decision.kept_share, valid)
    if decision.impl == "cpu":
        return cpu.attention(call, BITS[decision.precision], valid)
    return _reference(call, decision.precision, valid)


def with_blocks(call: AttentionCall, decision: Decision) -> AttentionCall:
    """Return the call with the blocks that ``run`` would compute, for callers that count them."""
    if decision.kept_share >= sparse.DENSE:
        return call
    valid = seen_keys(call.attn_mask, call.key_lengths, call.k)
    return sparse.with_block_mask(call, decision.kept_share, valid)


def _gpu(call: AttentionCall, decision: Decision) -> tuple[Tensor, Tensor | None]:
    """Run on tensor cores; nothing here waits for the card."""
    from accel.kernels.gpu import attention as gpu  # brings in Triton

    assert decision.tile is not None
    values = support.value_format(support.capability(call.q.device), decision.precision)
    valid, masks = None, (call.attn_mask, call.key_lengths)
    if call.masked:
        # Packed keys are found again by this very tensor.
        valid = shared_keys.find("valid", (call.k,), masks, lambda: valid_keys(*masks, call.k))
    return gpu.attention(call, tile=decision.tile, values=values, key_valid=valid)


def _torch(call: AttentionCall) -> Tensor:
    """Return torch's attention, with zeros in fully masked rows."""
    q, k, v = call.q, call.k, call.v
    if k.shape[1] != q.shape[1]:
        k, v = (_match_heads(x, q.shape[1]) for x in (k, v))
    if not call.masked:
        return _sdpa(q, k, v, is_causal=call.is_causal, scale=call.scale)
    given = call.attn_mask
    # Torch adds a mask in fp32 to queries in half precision: rounding it first can cost much.
    dtype = q.dtype if given is None or given.dtype in (torch.bool, q.dtype) else _wide(call)
    mask = _additive(call, dtype)
    assert mask is not None
    mask = mask if mask.dim() > 1 else mask[None]  # torch takes no [Tk]
    out = _sdpa(q, k, v, attn_mask=mask, scale=call.scale)
    empty = (mask == -math.inf).all(-1, keepdim=True)
    return out.masked_fill(empty, 0)


def _reference(
    call: AttentionCall, precision: str, valid: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Run the specification; at full precision in fp32, or fp64 for fp64 inputs."""
    q, heads, options = call.q, call.q.shape[1], call.options
    k, v = _match_heads(call.k, heads), _match_heads(call.v, heads)
    mask, scale = _additive(call, _wide(call)), call.softmax_scale
    if precision == "full":
        q, k, v = (x.to(_wide(call)) for x in (q, k, v))
        out, lse = reference.full_attention(q, k, v, scale=scale, mask=mask)
    else:
        spec = spec_of(precision, q.device, options)
        out, lse = reference.quantized_attention(
            q, k, v, spec, scale=scale, mask=mask, valid=valid, blocks=call.block_mask
        )
    return out.to(call.q.dtype), lse.float() if options.return_lse else None


def spec_of(precision: str, device: torch.device, options: Options) -> reference.QuantSpec:
    """Return what ``precision`` means on a device, as the reference computes it."""
    bits = BITS[precision]
    if device.type == "cuda":
        return reference.QuantSpec(
            qk_bits=bits,
            values=support.value_format(support.capability(device), precision),
            smooth_q=options.smooth_q,
            smooth_v=options.smooth_v,
            hadamard=options.hadamard,
        )
    return reference.QuantSpec(
        qk_bits=bits,
        q_bits=QUERY_BITS[bits],
        values="int7",
        weight_levels=127 if bits > 4 else 63,
        clip=1.0 if bits > 4 else INT4_CLIP,
        smooth_q=options.smooth_q,
        smooth_v=options.smooth_v,
        hadamard=options.hadamard,
        block_q=sparse.QUERY_BLOCK,
    )


@torch.library.custom_op("accel::attention", mutates_args=())
def _attention_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    precision: str,
    impl: str,
    attn_mask: Tensor | None,
    key_lengths: Tensor | None,
    is_causal: bool,
    scale: float | None,
    smooth_q: bool,
    smooth_v: bool,
    hadamard: bool,
    return_lse: bool,
    kept_share: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Run a call inside a graph, decided when it runs; log-sum-exp is empty unless asked for."""
    options = Options(smooth_q, smooth_v, hadamard, return_lse, kept_share)
    call = AttentionCall(q, k, v, attn_mask, key_lengths, is_causal, scale, options)
    out, lse = run(call, decide(call, precision, impl))
    return out.contiguous(), q.new_empty(0, dtype=torch.float32) if lse is None else lse


@_attention_op.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    precision: str,
    impl: str,
    attn_mask: Tensor | None,
    key_lengths: Tensor | None,
    is_causal: bool,
    scale: float | None,
    smooth_q: bool,
    smooth_v: bool,
    hadamard: bool,
    return_lse: bool,
    kept_share: float | None = None,
) -> tuple[Tensor, Tensor]:
    lse = q.new_empty(q.shape[:-1] if return_lse else (0,), dtype=torch.float32)
    return q.new_empty(*q.shape[:-1], v.shape[-1]), lse


def _match_heads(x: Tensor, heads: int) -> Tensor:
    """Repeat key or value heads [B, Hk, T, D] to ``heads`` (grouped-query attention)."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def _needs_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def _wide(call: AttentionCall) -> torch.dtype:
    return torch.float64 if call.q.dtype == torch.float64 else torch.float32


def _additive(call: AttentionCall, dtype: torch.dtype) -> Tensor | None:
    """Return all masks of a call as one tensor, None if there is none."""
    return additive_mask(
        call.shape,
        attn_mask=call.attn_mask,
        key_lengths=call.key_lengths,
        is_causal=call.is_causal,
        device=call.q.device,
        dtype=dtype,
    )
