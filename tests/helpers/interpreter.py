"""Triton's interpreter, with three of its conversions made like the hardware's.

``conftest.py`` imports this first: Triton decides on import whether to interpret its own functions
and ours. The variable is set only that long, so other tests see a machine without it. The
interpreter of Triton 3.x (checked: 3.9.0) drops the carry when rounding to E4M3 makes the mantissa
overflow, so 1 value in 170 comes out at about half, multiplies the bit patterns of bf16 operands as
integers, and reads the E4M3 scales of NVFP4 as powers of two. Tensor cores round to nearest even
and saturate, as torch's cast does; here all three go through torch. Older interpreters (3.7.1) know
no products with scales at all: ``SCALED``.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"

from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

_convert, _dot = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot
SCALED = hasattr(interpreter, "_dot_scaled_scale_to_f32")
_scale = interpreter._dot_scaled_scale_to_f32 if SCALED else None


def convert(data: Any, source: Any, target: Any, rounding: Any) -> Any:
    """fp32 to E4M3 as the hardware does it, everything else as the interpreter does it."""
    if source == tl.float32 and target == tl.float8e4nv:
        values = torch.from_numpy(np.ascontiguousarray(data).view(np.float32)).clamp(-448, 448)
        return values.to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    return _convert(data, source, target, rounding)


def create_dot(self: Any, a: Any, b: Any, d: Any, precision: Any, imprecise: Any) -> Any:
    """A product of bf16 operands in fp32, every other one as the interpreter does it."""
    if a.dtype == b.dtype == tl.bfloat16:
        a, b = (
            interpreter.TensorHandle(
                (x.data.view(np.uint16).astype(np.uint32) << 16).view(np.float32), tl.float32
            )
            for x in (a, b)
        )
    return _dot(self, a, b, d, precision, imprecise)


def scale_to_f32(handle: Any, compute_type: Any) -> Any:
    """E4M3 scales decoded as such, other scales as the interpreter does it."""
    if handle.dtype == tl.float8e4nv:
        return torch.from_numpy(handle.data.copy()).view(torch.float8_e4m3fn).float().numpy()
    return _scale(handle, compute_type)


if SCALED:
    interpreter._dot_scaled_scale_to_f32 = scale_to_f32
interpreter._convert_float = convert
interpreter.InterpreterBuilder.create_dot = create_dot

from accel.kernels.gpu import attention, linear, warp  # noqa: E402, F401

del os.environ["TRITON_INTERPRET"]
