"""Launcher of the native linear layers; method and packed layout are in ``kernels/csrc/linear.h``.

Memory of a call: the codes of 96 rows per thread, or, where there are fewer rows than work for all
threads, of all rows: one byte per element of x.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from accel.kernels.cpu.attention import NUMBERS, use_torchs_threads
from accel.kernels.cpu.native import require
from accel.kernels.packed_weight import ACTIVATIONS, Packed

PANEL = 16

_POINTERS = [
    "x", "weight", "bias", "out", "smooth", "outliers", "codes", "scale", "correction",
    "outlier_weight", "quantized",
]  # fmt: skip


class _Call(ctypes.Structure):
    """``LinearCall`` of kernels/csrc/linear.h, field by field."""

    _fields_ = [
        *[(name, ctypes.c_void_p) for name in _POINTERS],
        *[(name, ctypes.c_int64) for name in ["rows", "k", "n", "outlier_count"]],
        ("x_stride", ctypes.c_int64 * 2),
        ("weight_stride", ctypes.c_int64 * 2),
        ("bias_stride", ctypes.c_int64),
        *[
            (name, ctypes.c_int32)
            for name in ["dtype", "weight_dtype", "bias_dtype", "activation", "hadamard", "threads"]
        ],
    ]


def pack(weight: Tensor, factor: Tensor | None, outliers: Tensor | None, hadamard: bool) -> Packed:
    """Pack weight [N, K] fp32, bf16 or fp16, any strides, for the instruction set in use.

    ``factor`` fp32 [K] contiguous: 1 / smooth. ``outliers`` int64 [O] contiguous, distinct columns.
    """
    lib = _library()
    channels, inputs = weight.shape
    panels, steps = -(-channels // PANEL), -(-inputs // 4)
    count = 0 if outliers is None else len(outliers)
    cpu = torch.device("cpu")
    codes = torch.empty(panels, steps, PANEL, 4, dtype=torch.int8, device=cpu)
    scale = torch.empty(panels * PANEL, dtype=torch.float32, device=cpu)
    correction = torch.empty(panels * PANEL, dtype=torch.int32, device=cpu)
    outlier_weight = torch.empty(count, panels * PANEL, dtype=torch.float32, device=cpu)
    isa = lib.accel_isa().decode()
    packed = Packed(
        (channels, inputs), "int8", f"cpu-{isa}", codes, scale, correction,
        factor, outliers, outlier_weight if count else None, hadamard,
    )  # fmt: skip
    call = _describe(packed)
    call.outlier_weight = outlier_weight.data_ptr()
    call.weight, call.weight_dtype = weight.data_ptr(), NUMBERS[weight.dtype]
    call.weight_stride[:] = weight.stride()
    _check(lib.accel_linear_pack(ctypes.byref(call)), packed.shape)
    return packed


def linear(x: Tensor, packed: Packed, bias: Tensor | None, activation: str) -> Tensor:
    """Run a layer on x [M, K] fp32, bf16 or fp16, any strides; returns [M, N] in x's dtype.

    ``bias`` [N] in one of these dtypes. Raises RuntimeError where another instruction set packed
    the weight, MemoryError without memory.
    """
    lib, call = _ready(packed), _describe(packed)
    out = x.new_empty(x.shape[0], packed.shape[0])
    _give_rows(call, x)
    _give_result(call, out, bias, activation)
    _check(lib.accel_linear(ctypes.byref(call)), (*out.shape, packed.shape[1]))
    return out


def quantize(x: Tensor, packed: Packed) -> Tensor:
    """Return x [M, K] quantized for ``multiply`` with any weight packed with the same options.

    uint8, about one byte per element of x.
    """
    lib, call = _ready(packed), _describe(packed)
    _give_rows(call, x)
    size = lib.accel_linear_quantized_bytes(ctypes.byref(call))
    quantized = torch.empty(size, dtype=torch.uint8, device=x.device)
    call.quantized = quantized.data_ptr()
    _check(lib.accel_linear_quantize(ctypes.byref(call)), tuple(x.shape))
    return quantized


def multiply(
    quantized: Tensor, x: Tensor, packed: Packed, bias: Tensor | None, activation: str
) -> Tensor:
    """Run a layer on what ``quantize`` made of x; the same bits as ``linear``."""
    lib, call = _ready(packed), _describe(packed)
    out = x.new_empty(x.shape[0], packed.shape[0])
    call.quantized, call.rows = quantized.data_ptr(), x.shape[0]
    _give_result(call, out, bias, activation)
    _check(lib.accel_linear_multiply(ctypes.byref(call)), (*out.shape, packed.shape[1]))
    return out


def _ready(packed: Packed) -> ctypes.CDLL:
    """Return the library.

    Raises RuntimeError where another instruction set packed the weight.
    """
    lib = _library()
    isa = lib.accel_isa().decode()
    if packed.impl != f"cpu-{isa}":
        raise RuntimeError(f"the weight is packed for {packed.impl}, in use is cpu-{isa}; repack")
    return lib


def _give_rows(call: _Call, x: Tensor) -> None:
    call.x, call.rows, call.dtype = x.data_ptr(), x.shape[0], NUMBERS[x.dtype]
    call.x_stride[:] = x.stride()


def _give_result(call: _Call, out: Tensor, bias: Tensor | None, activation: str) -> None:
    call.out, call.dtype = out.data_ptr(), NUMBERS[out.dtype]
    call.activation = ACTIVATIONS.index(activation)
    if bias is not None:
        call.bias, call.bias_dtype = bias.data_ptr(), NUMBERS[bias.dtype]
        call.bias_stride = bias.stride(0)


def _describe(packed: Packed) -> _Call:
    """Return the call with everything that follows from the packed weight."""
    count = 0 if packed.outliers is None else len(packed.outliers)
    return _Call(
        smooth=_address(packed.factor), outliers=_address(packed.outliers),
        codes=packed.codes.data_ptr(), scale=_address(packed.scale),
        correction=_address(packed.correction), outlier_weight=_address(packed.outlier_weight),
        k=packed.shape[1], n=packed.shape[0], outlier_count=count, hadamard=packed.hadamard,
        threads=torch.get_num_threads(),
    )  # fmt: skip


def _address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _library() -> ctypes.CDLL:
    """Return the native library, on torch's threads.

    Raises RuntimeError if its interface does not fit.
    """
    lib = require()
    use_torchs_threads(lib)
    if lib.accel_linear_call_size() != ctypes.sizeof(_Call):
        raise RuntimeError("the native library describes a linear layer differently; reinstall")
    return lib


def _check(failed: int, sizes: tuple[int, ...]) -> None:
    if failed:
        raise MemoryError(f"no memory for an 8-bit linear layer of {sizes}")
