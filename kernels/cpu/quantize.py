"""Pointer-level launcher of the native row quantizer."""

from __future__ import annotations

import torch
from torch import Tensor

from accel.kernels.cpu.native import require


def quantize_rows(x: Tensor, qmax: int, floor: float) -> tuple[Tensor, Tensor]:
    """Quantize ``x [..., D]`` per row: codes int8 ``[..., D]``, scale fp32 ``[..., 1]``.

    Codes are in [-qmax, qmax]; ``floor`` is the least largest magnitude of a row. Raises
    RuntimeError without the native library.
    """
    lib = require()
    x = x.to(torch.float32).contiguous()
    codes = torch.empty_like(x, dtype=torch.int8)
    scale = x.new_empty((*x.shape[:-1], 1))
    columns = x.shape[-1]
    rows = x.numel() // columns if columns else 0
    lib.accel_quantize_rows(
        x.data_ptr(), rows, columns, qmax, floor, codes.data_ptr(), scale.data_ptr()
    )
    return codes, scale
