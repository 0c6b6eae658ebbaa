"""Masks of an attention call: all of them as one tensor, and the keys that some query sees.

Used by the op and by tests of the specification; a mask is no part of how numbers are rounded.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

HIDDEN = -1000.0  # an additive mask hides a key from here down: models write -10000 or -inf


def additive_mask(
    shape: tuple[int, int, int, int],
    *,
    attn_mask: Tensor | None,
    key_lengths: Tensor | None,
    is_causal: bool,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor | None:
    """Return all masks as one additive tensor, or None if nothing is masked.

    It is broadcastable to ``shape`` = (B, H, Tq, Tk). Boolean masks keep
    where True; causal is aligned top left, as in torch.
    """
    batch, _, queries, keys = shape
    bias: Tensor | None = None

    def add(term: Tensor) -> None:
        nonlocal bias
        bias = term if bias is None else bias + term

    def keep(where: Tensor) -> Tensor:
        zero = torch.zeros(where.shape, device=device, dtype=dtype)
        return zero.masked_fill(~where.to(device), -math.inf)

    if attn_mask is not None:
        boolean = attn_mask.dtype == torch.bool
        add(keep(attn_mask) if boolean else attn_mask.to(device=device, dtype=dtype))
    if key_lengths is not None:
        position = torch.arange(keys, dtype=torch.int64, device=device)
        add(keep(position < key_lengths.to(device).view(batch, 1, 1, 1)))
    if is_causal:
        add(keep(torch.ones(queries, keys, dtype=torch.bool, device=device).tril()))
    return bias


def unexpanded(mask: Tensor) -> Tensor:
    """Return a mask with size 1 where it repeats one element, to read it where it lies."""
    for dim, stride in enumerate(mask.stride()):
        if stride == 0 and mask.shape[dim] > 1:
            mask = mask.narrow(dim, 0, 1)
    return mask


def valid_keys(attn_mask: Tensor | None, key_lengths: Tensor | None, k: Tensor) -> Tensor:
    """Return boolean [B, Tk], False for keys ``k [B, H, Tk, D]`` that no query sees.

    Only the others have a part in means and scales: padding can hold anything. A batch entry
    without any key left counts as seeing all, and so does one where a query has no key above
    ``HIDDEN`` but some above minus infinity: its softmax is over all of those.
    """
    batch, keys = k.shape[0], k.shape[2]
    valid = torch.ones(batch, keys, dtype=torch.bool, device=k.device)
    if attn_mask is not None:
        mask = attn_mask.to(k.device).view(*[1] * (4 - attn_mask.dim()), *attn_mask.shape)
        keep = mask if mask.dtype == torch.bool else mask > HIDDEN
        seen = keep.any(1).any(1)
        if mask.dtype != torch.bool:
            top = mask.amax(-1)
            seen = seen | ((top <= HIDDEN) & (top > -math.inf)).any(1).any(1)[:, None]
        valid &= seen.expand(batch, keys)
    if key_lengths is not None:
        valid &= (
            torch.arange(keys, dtype=torch.int64, device=k.device)
            < key_lengths.to(k.device)[:, None]
        )
    return valid | ~valid.any(-1, keepdim=True)


def seen_keys(attn_mask: Tensor | None, key_lengths: Tensor | None, k: Tensor) -> Tensor | None:
    """Return ``valid_keys``, or None where every key is seen.

    Waits for the device if masked.
    """
    if attn_mask is None and key_lengths is None:
        return None
    valid = valid_keys(attn_mask, key_lengths, k)
    return None if bool(valid.all()) else valid
