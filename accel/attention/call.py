"""One attention call: what torch would make of it, how to save it, and how far off a result is."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from accel.attention import sdpa
from accel.kernels.attention_call import AttentionCall, Options, why_not_plain

TINY = 1e-300  # keeps a quotient of fp64 sums defined, and lies below the sums of any fp32 values


@dataclass(frozen=True, slots=True)
class Call:
    """Arguments of torch's attention: query [..., Tq, D], key [..., Tk, D], value [..., Tk, Dv]."""

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None
    is_causal: bool
    scale: float | None
    enable_gqa: bool

    def full(self, query: Tensor | None = None, attn_mask: Tensor | None = None) -> Tensor:
        """Run what would have run without us; for given query rows and their mask, or for all."""
        query, attn_mask = (self.query, self.attn_mask) if query is None else (query, attn_mask)
        return sdpa.original()(
            query, self.key, self.value, attn_mask=attn_mask, is_causal=self.is_causal,
            scale=self.scale, enable_gqa=self.enable_gqa,
        )  # fmt: skip

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the query rows ``index`` and the mask that belongs to them."""
        mask, tokens = self.attn_mask, self.query.shape[-2]
        if mask is not None and mask.dim() > 1 and mask.shape[-2] == tokens and tokens > 1:
            mask = mask[..., index, :]
        return self.query[..., index, :], mask

    def at(self, index: Tensor) -> Tensor:
        """Return the result of the query rows ``index``, computed without us."""
        query, mask = self.rows(index)
        if not self.is_causal:
            return self.full(query, mask)
        keys = torch.arange(self.key.shape[-2], dtype=index.dtype, device=index.device)
        seen = index[:, None] >= keys  # the causal mask of these rows, aligned top left
        return replace(self, query=query, attn_mask=seen, is_causal=False).full()

    def wide(self) -> Call:
        """Return this call in fp32."""
        mask = self.attn_mask
        mask = mask.float() if mask is not None and mask.is_floating_point() else mask
        q, k, v = (x.float() for x in (self.query, self.key, self.value))
        return replace(self, query=q, key=k, value=v, attn_mask=mask)

    def for_kernels(self, options: Options) -> AttentionCall:
        """Return this call as the kernels take it; only where ``why_not_ours`` is ""."""
        return AttentionCall(
            self.query, self.key, self.value, self.attn_mask, None, self.is_causal, self.scale,
            options,
        )  # fmt: skip

    def why_not_ours(self) -> str:
        """Return the reason why no kernel of ours takes this call, or ""."""
        q, k, v = self.query, self.key, self.value
        if q.is_meta:
            return "meta tensors"
        if q.dim() != 4 or k.dim() != 4 or v.dim() != 4:
            return f"{q.dim()} dimensions, need [B, H, T, D]"
        mask = self.attn_mask
        if why := why_not_plain(q, k, v, mask):
            return why
        if mask is not None and (mask.dim() < 2 or mask.dim() > 4):
            return f"a mask of {mask.dim()} dimensions"
        if mask is not None and self.is_causal:
            return "a mask beside is_causal, which torch may refuse"
        if mask is not None and mask.dtype != torch.bool and not mask.is_floating_point():
            return f"a mask of {str(mask.dtype).removeprefix('torch.')}"
        groups = self.enable_gqa and k.shape[1] and q.shape[1] % k.shape[1] == 0
        if q.shape[0] != k.shape[0] or k.shape[:3] != v.shape[:3]:
            return "shapes that broadcast"
        if q.shape[1] != k.shape[1] and not groups:
            return "shapes that broadcast"
        return ""


def finite(out: Tensor) -> bool:
    """Return whether every element is finite.

    A sum shows it in one pass; only a sum that is not finite is looked into, since finite values
    can overflow it.
    """
    return math.isfinite(out.sum(dtype=torch.float32).item()) or bool(torch.isfinite(out).all())


def compare(out: Tensor, exact: Tensor) -> tuple[float, float, float]:
    """Return relative L1, cosine, relative squared L2 of ``out`` against ``exact``, same shape."""
    mine, exact = out.double(), exact.double()
    difference, size = mine - exact, exact.square().sum()
    error = float(difference.abs().sum() / exact.abs().sum().clamp_min(TINY))
    likeness = float(cosine(mine, exact))
    return error, likeness, float(difference.square().sum() / size.clamp_min(TINY))


def cosine(mine: Tensor, exact: Tensor) -> Tensor:
    """Return the cosine of the angle between two tensors of one shape, fp64, without reading it."""
    norms = (mine.square().sum() * exact.square().sum()).sqrt().clamp_min(TINY)
    return (mine * exact).sum() / norms
