"""Row quantization as a public op: validate, choose, call."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from accel.kernels import reference_formats
from accel.kernels.cpu import quantize as cpu
from accel.kernels.dispatch import QUANTIZE, resolve


def quantize_rows(
    x: Tensor, bits: int = 8, *, impl: Literal["auto", "reference", "cpu"] = "auto"
) -> tuple[Tensor, Tensor]:
    """Return symmetric integers of ``x [..., D]`` with one scale per row (token).

    Args:
        x: Float tensor [..., D], any strides.
        bits: Bits of an integer with its sign, 2 to 8.
        impl: "auto", or one of "reference" and "cpu".

    Returns:
        Codes int8 [..., D] in [-(2^(bits-1) - 1), 2^(bits-1) - 1] and scale fp32 [..., 1].
        ``codes * scale`` approximates ``x`` within half a scale. An all-zero row gives zero codes.

    Raises:
        ValueError: Other bits, or a tensor that is not float.
        RuntimeError: ``impl`` cannot run here.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"bits must be 2 to 8, got {bits}")
    if not x.is_floating_point() or x.dim() == 0:
        raise ValueError(f"x must be a float tensor [..., D], got {x.dtype} {tuple(x.shape)}")
    if resolve(QUANTIZE, impl, x.device) == "cpu":
        return cpu.quantize_rows(x, 2 ** (bits - 1) - 1, reference_formats.SCALE_FLOOR)
    flat = x.float().reshape(-1, x.shape[-1])
    codes, scale = reference_formats.quantize(
        flat, bits, torch.arange(flat.shape[0], dtype=torch.int64, device="cpu")
    )
    return codes.to(torch.int8).view(x.shape), scale.view(*x.shape[:-1], 1)
