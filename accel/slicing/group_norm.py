"""Group normalization in two passes, so that its input may be sliced.

GroupNorm's mean and variance run over a group's channels and all pixels and frames of a sample.
``group_statistics`` takes them from the whole tensor, one group at a time, with torch's own kernel
in fp32. ``normalize`` then works on any slice: y = x·s + (b - m·s) with s = w / sqrt(v + eps),
where each product and sum is rounded once. On CPUs that is torch's own arithmetic, with the same
bits, except where channels come last in memory: there torch sums statistics in another order.
"""

from __future__ import annotations

import torch
from torch import Tensor


def group_statistics(x: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Return mean and 1/sqrt(variance + eps), fp32 [N, groups], of ``x`` [N, C, ...].

    Scratch memory is that of one group of one sample.
    """
    samples, channels = x.shape[:2]
    size = channels // groups
    mean = x.new_empty(samples, groups, dtype=torch.float32)
    scale = torch.empty_like(mean)
    # On CPUs low precision is not converted, since the kernel sums it in another order than fp32;
    # with weights in fp32 its statistics are fp32.
    low = x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16)
    own = torch.ones(size, dtype=torch.float32, device=x.device) if low else None
    once = x.is_meta  # one group stands for all
    for n in range(1 if once else samples):
        for g in range(1 if once else groups):
            part = x[n : n + 1, g * size : (g + 1) * size].contiguous()
            if own is None:
                part = part.float()
            _, m, r = torch.native_group_norm(part, own, own, 1, size, part.numel() // size, 1, eps)
            mean[n, g], scale[n, g] = m[0, 0], r[0, 0]
    return mean, scale


def normalize(
    x: Tensor, mean: Tensor, scale: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    """Return a slice [N, C, ...] normalized with the statistics [N, groups] of the whole tensor.

    Weight and bias are [C].
    """
    size = x.shape[1] // mean.shape[1]
    factor, shift = (t.repeat_interleave(size, 1) for t in (scale, mean))
    if weight is not None:
        factor = factor * weight.float()
    start = torch.zeros_like(shift) if bias is None else bias.float()
    shift = torch.addcmul(start, factor, shift, value=-1)  # rounds once, like torch's own kernels
    shape = (*factor.shape, *[1] * (x.dim() - 2))
    y = x.to(torch.float32, copy=True)
    place = None if torch.is_grad_enabled() else y
    return torch.addcmul(shift.view(shape), factor.view(shape), y, out=place).to(x.dtype)
