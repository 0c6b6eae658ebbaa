"""Quantized attention as a public op: validate, choose an implementation, call it.

Layout [B, H, T, D]; what each precision means is defined in ``kernels/reference.py``. The call is
one functional ``torch.library`` op with a fake, so ``torch.compile(fullgraph=True)`` sees one
opaque node.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from accel.kernels import masks, reference, shared_keys
from accel.kernels.cpu import attention as cpu
from accel.kernels.dispatch import ATTENTION, FULL, resolve, runs_as, why_not_worth
from accel.kernels.gpu import support

Precision = Literal["int8", "int6", "int4", "full"]
ImplName = Literal["auto", "reference", "cpu", "gpu"]

BITS: dict[str, int] = {"int8": 8, "int6": 6, "int4": 4}
INT4_CLIP = 0.92  # least error of 15 levels on N(0, 1) with 64 and 128 channels; also in csrc
QUERY_BITS = {8: 7, 6: 6, 4: 4}  # the CPU kernel's products need unsigned queries of 7 bits
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
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax attention with Q, K held in ``precision`` and P, V in eight bits.

    q ``[B, H, Tq, D]``, k ``[B, Hk, Tk, D]``, v ``[B, Hk, Tk, Dv]``: fp32, bf16 or fp16 (fp64 for
    "full"), any strides, never modified. Hk = H, or a divisor of H with ``enable_gqa``. Returns
    ``[B, H, Tq, Dv]``, contiguous, in q's dtype, and with ``return_lse`` also the natural
    log-sum-exp ``[B, H, Tq]`` in fp32.

    ``attn_mask`` broadcasts to ``[B, H, Tq, Tk]``: boolean (True keeps) or additive in logit units.
    ``key_lengths`` int ``[B]``: keys from there on are padding. ``is_causal`` is aligned top left.
    All masks combine; a fully masked row gives zeros (log-sum-exp -inf). ``scale`` defaults to
    D^-1/2.

    ``impl="auto"`` takes the fastest for the call, which for few tokens is torch's own attention at
    full precision, and INT8 on a card without tensor cores for the asked precision; a named one
    runs as asked. ``precision="full"`` with "auto" is torch's own
    attention. ``smooth_q``, ``smooth_v``, ``hadamard``: see ``kernels/reference.py``
    (SageAttention2, arXiv 2411.10958, section 3).

    Raises ValueError for shapes, dtypes or options that do not fit, RuntimeError when a named
    ``impl`` cannot run here (with the reason).
    """
    if impl == "auto" and precision in BITS and not return_lse:
        masked = attn_mask is not None or key_lengths is not None
        small = not masked and not torch.compiler.is_compiling() and _fit(q, k, v)
        if small and why_not_worth(q, k, v, precision):
            # Such calls take microseconds, so they go by the shortest way.
            return _sdpa(q, k, v, is_causal=is_causal, scale=scale).contiguous()
    _validate(q, k, v, precision, attn_mask, key_lengths, enable_gqa)
    arguments = (
        q, k, v, precision, impl, attn_mask, key_lengths, is_causal,
        q.shape[-1] ** -0.5 if scale is None else float(scale),
        smooth_q, smooth_v, hadamard, return_lse,
    )  # fmt: skip
    # The op is for graphs, and says clearly that it has no gradient; eager calls save its overhead.
    gradient = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    as_op = gradient or torch.compiler.is_compiling()
    out, lse = torch.ops.accel.attention(*arguments) if as_op else run(*arguments)
    return (out, lse) if return_lse else out


def _fit(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether shapes and dtypes are plainly right; the check that has messages costs more."""
    return (
        q.dim() == 4
        and q.shape[:2] == k.shape[:2]
        and k.shape[:3] == v.shape[:3]
        and q.shape[3] == k.shape[3]
        and q.dtype == k.dtype == v.dtype
    )


def _validate(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    precision: str,
    attn_mask: Tensor | None,
    key_lengths: Tensor | None,
    enable_gqa: bool,
) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if precision not in get_args(Precision):
        raise ValueError(f"precision must be one of {get_args(Precision)}, got {precision!r}")
    if q.dim() != 4 or k.dim() != 4 or v.dim() != 4:
        raise ValueError(f"q, k and v must be [B, H, T, D], got {shapes}")
    if q.shape[-1] != k.shape[-1] or k.shape[:-1] != v.shape[:-1] or q.shape[0] != k.shape[0]:
        raise ValueError(f"q, k and v do not fit together: {shapes}")
    if not q.dtype == k.dtype == v.dtype or not q.is_floating_point():
        raise ValueError(f"q, k, v need one float dtype, got {q.dtype}, {k.dtype}, {v.dtype}")
    if not q.device == k.device == v.device:
        raise ValueError(f"q, k, v need one device, got {q.device}, {k.device}, {v.device}")
    if q.shape[1] != k.shape[1] and (not enable_gqa or k.shape[1] == 0 or q.shape[1] % k.shape[1]):
        raise ValueError(
            f"query heads {q.shape[1]} against key heads {k.shape[1]}: equal, or a multiple with "
            "enable_gqa=True"
        )
    full = (q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    if attn_mask is not None:
        shape = attn_mask.shape
        ends = zip(reversed(shape), reversed(full), strict=False)
        if len(shape) > 4 or any(m not in (1, f) for m, f in ends):
            raise ValueError(f"attn_mask {tuple(shape)} does not broadcast to {full}")
        if attn_mask.dtype != torch.bool and not attn_mask.is_floating_point():
            raise ValueError(f"attn_mask must be boolean or float, got {attn_mask.dtype}")
    if key_lengths is not None and (
        key_lengths.shape != q.shape[:1] or key_lengths.is_floating_point()
    ):
        raise ValueError(
            f"key_lengths must be integers [{q.shape[0]}], got {key_lengths.dtype} "
            f"{tuple(key_lengths.shape)}"
        )


def run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    precision: str,
    impl: str,
    attn_mask: Tensor | None,
    key_lengths: Tensor | None,
    is_causal: bool,
    scale: float,
    smooth_q: bool,
    smooth_v: bool,
    hadamard: bool,
    return_lse: bool,
) -> tuple[Tensor, Tensor]:
    """``attention`` without its checks: output [B, H, Tq, Dv], log-sum-exp [B, H, Tq] (empty unless
    asked for). For callers that are an op themselves.
    """
    none = q.new_empty(0, dtype=torch.float32)
    quantized = precision != "full"
    if impl == "auto" and quantized and why_not_worth(q, k, v, precision):
        quantized = False
    name = resolve(ATTENTION if quantized else FULL, impl, q.device)
    if name == "gpu":
        return _gpu(
            q, k, v, precision, impl, attn_mask, key_lengths, is_causal, scale, smooth_q, smooth_v,
            hadamard, return_lse,
        )  # fmt: skip
    valid = masks.seen_keys(attn_mask, key_lengths, k) if quantized else None
    if name == "cpu":
        mask = (
            attn_mask if attn_mask is None or attn_mask.dtype == torch.bool else attn_mask.float()
        )
        out, lse = cpu.attention(
            q, k, v, bits=BITS[precision], scale=scale, mask=mask, key_lengths=key_lengths,
            key_valid=valid, is_causal=is_causal, smooth_q=smooth_q, smooth_v=smooth_v,
            hadamard=hadamard, return_lse=return_lse,
        )  # fmt: skip
        return out, none if lse is None else lse
    wide = q.dtype == torch.float64
    mask = masks.additive_mask(
        (q.shape[0], q.shape[1], q.shape[2], k.shape[2]),
        attn_mask=attn_mask,
        key_lengths=key_lengths,
        is_causal=is_causal,
        device=q.device,
        dtype=q.dtype if wide else torch.float32,
    )
    k, v = _match_heads(k, q.shape[1]), _match_heads(v, q.shape[1])
    if not quantized and impl == "auto" and not return_lse:
        return _full_sdpa(q, k, v, mask, scale), none
    if not quantized:
        dtype = q.dtype if wide else torch.float32
        out, lse = reference.full_attention(
            q.to(dtype), k.to(dtype), v.to(dtype), scale=scale, mask=mask
        )
    else:
        spec = spec_of(precision, q.device, smooth_q=smooth_q, smooth_v=smooth_v, hadamard=hadamard)
        out, lse = reference.quantized_attention(q, k, v, spec, scale=scale, mask=mask, valid=valid)
    return out.to(q.dtype), lse.float() if return_lse else none


def _gpu(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    precision: str,
    impl: str,
    attn_mask: Tensor | None,
    key_lengths: Tensor | None,
    is_causal: bool,
    scale: float,
    smooth_q: bool,
    smooth_v: bool,
    hadamard: bool,
    return_lse: bool,
) -> tuple[Tensor, Tensor]:
    """``run`` on tensor cores; nothing here waits for the card."""
    from accel.kernels.gpu import attention as gpu  # brings in Triton

    runs, why = runs_as(precision, "gpu", q)
    if impl != "auto" and why:
        raise RuntimeError(f"precision {precision!r} cannot run on this card: {why}; use {runs!r}")
    values = support.value_format(support.capability(q.device), runs)
    valid, given = None, (attn_mask, key_lengths)
    if attn_mask is not None or key_lengths is not None:
        # Packed keys are found again by this very tensor.
        valid = shared_keys.find("valid", (k,), given, lambda: masks.valid_keys(*given, k))
    out, lse = gpu.attention(
        q, k, v, tile=gpu.choose(q, k, v.shape[-1], runs).tile, values=values, scale=scale,
        mask=None if attn_mask is None else attn_mask.to(q.device),
        key_lengths=None if key_lengths is None else key_lengths.to(q.device),
        key_valid=valid, is_causal=is_causal, smooth_q=smooth_q, smooth_v=smooth_v,
        hadamard=hadamard, return_lse=return_lse,
    )  # fmt: skip
    return out, q.new_empty(0, dtype=torch.float32) if lse is None else lse


def spec_of(
    precision: str, device: torch.device, *, smooth_q: bool, smooth_v: bool, hadamard: bool
) -> reference.QuantSpec:
    """What ``precision`` means on a device, as the reference computes it."""
    bits = BITS[precision]
    if device.type == "cuda":
        return reference.QuantSpec(
            qk_bits=bits,
            values=support.value_format(support.capability(device), precision),
            smooth_q=smooth_q,
            smooth_v=smooth_v,
            hadamard=hadamard,
        )
    return reference.QuantSpec(
        qk_bits=bits,
        q_bits=QUERY_BITS[bits],
        values="int7",
        weight_levels=127 if bits > 4 else 63,
        clip=1.0 if bits > 4 else INT4_CLIP,
        smooth_q=smooth_q,
        smooth_v=smooth_v,
        hadamard=hadamard,
        block_q=96,
    )


_attention_op = torch.library.custom_op("accel::attention", run, mutates_args=())


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
    scale: float,
    smooth_q: bool,
    smooth_v: bool,
    hadamard: bool,
    return_lse: bool,
) -> tuple[Tensor, Tensor]:
    lse = q.new_empty(q.shape[:-1] if return_lse else (0,), dtype=torch.float32)
    return q.new_empty(*q.shape[:-1], v.shape[-1]), lse


def _match_heads(x: Tensor, heads: int) -> Tensor:
    """Repeat key or value heads [B, Hk, T, D] to ``heads`` (grouped-query attention)."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def _full_sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """torch's attention, contiguous, with zeros in fully masked rows."""
    if mask is not None:
        mask = mask.to(q.dtype)
    out = _sdpa(q, k, v, attn_mask=mask, scale=scale)
    if mask is not None:
        empty = (mask == -math.inf).all(-1, keepdim=True)
        out = out.masked_fill(empty, 0)
    return out.contiguous()
