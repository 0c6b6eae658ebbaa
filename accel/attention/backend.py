"""Quantized attention as a backend of diffusers: the kernels alone, without a patch.

    accel.register_backend()
    pipe.transformer.set_attention_backend("accel")

Layout [B, T, H, D], as diffusers' backends have it. A call that no kernel takes, or that is too
short to profit, goes to torch's attention; the reason is counted in ``record`` and logged once. A
result that is not finite is computed again by torch. There are no sites, rules by step, or
comparisons with full precision here: those are what ``accel.patch`` is for.

With ``return_lse=True`` the natural log-sum-exp comes along, [B, T, H] in fp32, so diffusers can
merge the parts of a ring. In a graph a call is one opaque op that decides when it runs.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from accel.attention import sdpa
from accel.attention.call import finite
from accel.attention.guard import failed
from accel.core import diffusers_backends as bridge
from accel.kernels.attention import run
from accel.kernels.attention_call import AttentionCall, Options, check
from accel.kernels.dispatch import decide

# Names of the backends, and the precision each asks the kernels for.
BACKENDS = {"accel": "int8", "accel_int6": "int6", "accel_int4": "int4", "accel_full": "full"}
logger = logging.getLogger("accel")

# ------------------------------------------------------------------------------------------- State


@dataclass
class BackendRecord:
    """What ran since the last ``clear``, over all models and threads of the process.

    ``ran`` counts quantized calls by precision and implementation, ``kept`` those at full precision
    by reason, ``recomputed`` those that torch computed after a kernel, by reason.
    """

    ran: Counter[tuple[str, str]] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    recomputed: Counter[str] = field(default_factory=Counter)

    def clear(self) -> None:
        """Forget all counts, and log reasons again."""
        for counter in (self.ran, self.kept, self.recomputed):
            counter.clear()

    def keep(self, reason: str) -> None:
        """Count a call at full precision; the first one for a reason is logged."""
        if reason not in self.kept:
            logger.info("attention backend: at full precision: %s", reason)
        self.kept[reason] += 1

    def recompute(self, reason: str) -> None:
        """Count a call that torch computed again; the first one for a reason is a warning."""
        if reason not in self.recomputed:
            logger.warning("attention backend: computed again at full precision: %s", reason)
        self.recomputed[reason] += 1


record = BackendRecord()

# -------------------------------------------------------------------------------------------- Hook


def compute(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool,
    scale: float | None, enable_gqa: bool, return_lse: bool, precision: str,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Compute one call without gradients, here and now.

    query [B, Tq, H, D], key [B, Tk, Hk, D], value [B, Tk, Hk, Dv]; ``attn_mask`` boolean or
    additive, broadcastable to [B, H, Tq, Tk]. Returns the output [B, Tq, H, Dv], and log-sum-exp
    [B, Tq, H] in fp32 if asked for.

    Raises ValueError for a log-sum-exp of arguments that torch's attention alone takes.
    """
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    call = AttentionCall(q, k, v, attn_mask, None, is_causal, scale, Options(return_lse=return_lse))

    def by_torch() -> Tensor:
        return sdpa.original()(
            q, k, v, attn_mask=attn_mask, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
        )

    if why := _why_not(call, enable_gqa):
        if return_lse:
            raise ValueError(f"no log-sum-exp for this call: {why}")
        record.keep(why)
        return by_torch().transpose(1, 2), None
    out, lse = _quantized(call, precision)
    if out is None and return_lse:
        out, lse = run(call, decide(call, "full", "auto"))
    out = by_torch() if out is None else out
    return out.transpose(1, 2), None if lse is None else lse.transpose(1, 2).contiguous()


def _why_not(call: AttentionCall, enable_gqa: bool) -> str:
    """Return why a call is left to torch, which may take or refuse it, or ""."""
    try:
        check(call.q, call.k, call.v, call.attn_mask, None, enable_gqa)
    except ValueError as error:
        return str(error)
    if call.attn_mask is not None and call.is_causal:
        return "a mask beside is_causal"
    return ""


def _quantized(call: AttentionCall, precision: str) -> tuple[Tensor | None, Tensor | None]:
    """Return a quantized result [B, H, Tq, Dv], and log-sum-exp [B, H, Tq] if asked for.

    (None, None), and the reason in ``record``, where it is to be computed at full precision.
    """
    what = "choosing a kernel"
    try:
        decision = decide(call, precision, "auto")
        if decision.precision == "full":
            record.keep(decision.why or "full precision by name")
            return None, None
        what = f"{decision.precision} by {decision.impl}"
        out, lse = run(call, decision)
        if _checks(out) and not finite(out):
            record.recompute(f"{what}: result not finite")
            return None, None
    except Exception as error:  # whatever fails in a kernel of ours, torch computes the call
        record.recompute(failed(what, error))
        return None, None
    record.ran[(decision.precision, decision.impl)] += 1
    return out, lse


def _checks(out: Tensor) -> bool:
    """Return whether a result may be waited for: not while a CUDA graph is captured."""
    return not (out.is_cuda and torch.cuda.is_current_stream_capturing())


@torch.library.custom_op("accel::backend_attention", mutates_args=())
def _backend_op(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool,
    scale: float | None, enable_gqa: bool, return_lse: bool, precision: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Run ``compute`` inside a compiled graph; log-sum-exp is empty unless asked for."""
    out, lse = compute(
        query, key, value, attn_mask, is_causal, scale, enable_gqa, return_lse, precision
    )
    return out.contiguous(), query.new_empty(0, dtype=torch.float32) if lse is None else lse


@_backend_op.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool,
    scale: float | None, enable_gqa: bool, return_lse: bool, precision: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    lse = query.new_empty(query.shape[:-1] if return_lse else (0,), dtype=torch.float32)
    return query.new_empty(*query.shape[:-1], value.shape[-1]), lse


def make_backend(precision: str) -> Callable[..., Any]:
    """Return the function that diffusers calls for attention in ``precision``."""

    def attend(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool,
        scale: float | None, enable_gqa: bool, return_lse: bool,
    ) -> Any:  # fmt: skip
        given = query, key, value, attn_mask, is_causal, scale, enable_gqa, return_lse, precision
        given = sdpa.autocast(*given)
        if torch.compiler.is_compiling():
            out, lse = torch.ops.accel.backend_attention(*given)
        else:
            out, lse = compute(*given)
        return (out, lse) if return_lse else out

    def accel_attention(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
        dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
        enable_gqa: bool = False, return_lse: bool = False, _parallel_config: Any = None,
    ) -> Any:  # fmt: skip
        """Compute attention of [B, T, H, D], as diffusers' other backends do."""
        training = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
        if training or dropout_p > 0.0:
            return _left_to_torch(
                "needs gradients" if training else "has dropout", return_lse, _parallel_config,
                query, key, value, attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal,
                scale=scale, enable_gqa=enable_gqa,
            )  # fmt: skip
        attn_mask = _of_keys(attn_mask, query.shape[0], key.shape[1])
        given = query, key, value, attn_mask, is_causal, scale, enable_gqa, return_lse
        if _parallel_config is None:
            return attend(*given)
        return bridge.context_parallel(attend, *given, _parallel_config)

    return accel_attention


def _left_to_torch(
    reason: str, return_lse: bool, parallel: Any, *tensors: Tensor, **options: Any
) -> Tensor:
    """Return what diffusers' native backend makes of a call.

    Raises ValueError where that needs the log-sum-exp, which torch does not give with gradients.
    """
    if return_lse or bridge.rings(parallel):
        raise ValueError(
            f"no log-sum-exp, as a ring needs it, for a call that {reason}; use torch.no_grad(), "
            "ulysses_degree instead of ring_degree, or another backend"
        )
    if not torch.compiler.is_compiling():
        record.keep(reason)
    return bridge.native(*tensors, **options, _parallel_config=parallel)


def _of_keys(mask: Tensor | None, batch: int, keys: int) -> Tensor | None:
    """Return a mask [B, Tk] as [B, 1, 1, Tk], as diffusers' native backend reads it."""
    if mask is not None and mask.shape == (batch, keys):
        return mask[:, None, None]
    return mask


# ------------------------------------------------------------------------------------------- apply

_registered: set[str] = set()


def register_backend() -> None:
    """Let diffusers' models take ``set_attention_backend("accel")``; nothing if they do already.

    "accel" runs INT8 where calls are long enough, on a card where it wins when it is timed;
    "accel_int6" and "accel_int4" are the other precisions, "accel_full" is torch's attention, with
    the log-sum-exp that a ring needs.

    Raises:
        ValueError: diffusers has a backend of one of these names itself.
    """
    for name, precision in BACKENDS.items():
        if name not in _registered:
            bridge.add_backend(name, make_backend(precision))
            _registered.add(name)


def unregister_backend() -> None:
    """Undo ``register_backend``; models that use the backend have to be set to another one first.

    ``model.reset_attention_backend()`` does that.
    """
    while _registered:
        bridge.remove_backend(_registered.pop())


def enable_parallelism(model: nn.Module, config: Any, plan: Any = None) -> None:
    """Split a model's tokens over the processes of ``torch.distributed``, also on CPUs.

    It is diffusers' ``model.enable_parallelism(config=config, cp_plan=plan)``, which in 0.42 fails
    where torch sees no accelerator.

    Args:
        model: A model of diffusers whose backend is set.
        config: A ``diffusers.ContextParallelConfig``.
        plan: What is split where; the model's own without it.

    Raises:
        ValueError: A ring on a patched model: a patch has the native backend run, which gives no
            log-sum-exp.
        RuntimeError: ``torch.distributed`` is not initialized.
    """
    if bridge.rings(config) and any(sdpa.has_site(module) for module in model.modules()):
        raise ValueError(
            "a ring on a patched model: call accel.unpatch(pipe), "
            'model.set_attention_backend("accel"), enable parallelism, then accel.patch(pipe)'
        )
    bridge.enable_parallelism(model, config, plan)
