"""Launcher of the native attention: fills the C call and hands over torch's threads.

The method and its layout are in ``kernels/csrc/attention.h``. Memory: the packed K and V of the
heads in flight, (D + Dv) bytes per key and head, plus scales; nothing of size Tq x Tk. In a context
of ``kernels/shared_keys.py`` all heads are packed at once, for all calls with the same K and V.
"""

from __future__ import annotations

import ctypes
import glob
import os
import weakref
from functools import cache

import torch
from torch import Tensor

from accel.kernels import shared_keys
from accel.kernels.attention_call import DTYPES, AttentionCall, new_result
from accel.kernels.cpu.native import require
from accel.kernels.sparse import KEY_BLOCK, QUERY_BLOCK

NUMBERS = {dtype: n for n, dtype in enumerate(DTYPES)}  # as enum Dtype in csrc/api.h
_Strides = ctypes.c_int64 * 4
_OutStrides = ctypes.c_int64 * 3


_POINTERS = ["q", "k", "v", "out", "lse", "mask", "key_lengths", "key_valid",
             "block_mask"]  # fmt: skip


class _Call(ctypes.Structure):
    """``AttentionCall`` of kernels/csrc/attention.h, field by field."""

    _fields_ = [
        *[(name, ctypes.c_void_p) for name in _POINTERS],
        *[
            (name, ctypes.c_int64)
            for name in ["batch", "heads", "key_heads", "queries", "keys", "dim", "value_dim"]
        ],
        *[(name, _Strides) for name in ["q_stride", "k_stride", "v_stride", "mask_stride"]],
        ("out_stride", _OutStrides),
        *[
            (name, ctypes.c_int32)
            for name in ["dtype", "qk_bits", "mask_kind", "mask_dtype", "causal"]
        ],
        *[(name, ctypes.c_int32) for name in ["smooth_k", "smooth_q", "smooth_v", "hadamard"]],
        ("scale", ctypes.c_float),
        ("threads", ctypes.c_int32),
    ]


def attention(
    call: AttentionCall, bits: int, key_valid: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Run quantized attention on CPU tensors.

    Tensors as in ``AttentionCall``, in fp32, bf16 or fp16; ``bits`` 4, 6 or 8; ``key_valid`` bool
    [B, Tk], False where no query sees the key. Returns output ``[B, H, Tq, Dv]`` in q's layout and,
    if asked for, log-sum-exp fp32 ``[B, H, Tq]``.

    Raises ValueError for a block mask of another size or layout, RuntimeError without the native
    library, MemoryError if scratch memory cannot be allocated.
    """
    lib = require()
    use_torchs_threads(lib)
    q, k, v, options = call.q, call.k, call.v, call.options
    out = new_result(q, v.shape[-1])
    lse = q.new_empty(q.shape[:-1], dtype=torch.float32) if options.return_lse else None
    if out.numel() == 0:
        return out, lse
    native = _describe(q, k, v, bits)
    native.out, native.lse = out.data_ptr(), None if lse is None else lse.data_ptr()
    native.out_stride = _OutStrides(*out.stride()[:3])
    native.scale, native.causal = call.softmax_scale, call.is_causal
    native.smooth_k, native.smooth_q = True, options.smooth_q
    native.smooth_v, native.hadamard = options.smooth_v, options.hadamard
    masks = _point_at_masks(native, call, key_valid)  # kept alive until the call has read them
    _point_at_blocks(native, call)
    if shared_keys.shares((k, v)):
        # By content: every slice of a mask hides keys in a tensor of its own.
        hidden = [None if x is None else x.numpy().tobytes() for x in masks[1:]]
        name = ("cpu", bits, options.smooth_v, options.hadamard)
        packed = shared_keys.find(name, (k, v), hidden, lambda: _Packed(lib, native))
        failed = lib.accel_attention_packed(ctypes.byref(native), packed.handle)
    else:
        failed = lib.accel_attention(ctypes.byref(native))
    if failed:
        raise _no_memory(native)
    return out, lse


def _point_at_masks(
    native: _Call, call: AttentionCall, key_valid: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Fill in mask, key lengths and valid keys; returns what the native call will read."""
    mask, key_lengths = call.attn_mask, call.key_lengths
    if mask is not None:
        boolean = mask.dtype == torch.bool
        mask = mask if boolean or mask.dtype in NUMBERS else mask.float()
        stride = mask.expand(call.shape).stride()
        native.mask, native.mask_stride = mask.data_ptr(), _Strides(*stride)
        native.mask_kind, native.mask_dtype = (1, 0) if boolean else (2, NUMBERS[mask.dtype])
    if key_lengths is not None:
        key_lengths = key_lengths.to(torch.int64).contiguous()
        native.key_lengths = key_lengths.data_ptr()
    if key_valid is not None:
        key_valid = key_valid.contiguous()
        native.key_valid = key_valid.data_ptr()
    return mask, key_lengths, key_valid


def _point_at_blocks(native: _Call, call: AttentionCall) -> None:
    """Fill in the block mask, if there is one."""
    mask = call.block_mask
    if mask is None:
        return
    size = (*call.shape[:2], -(-call.shape[2] // QUERY_BLOCK), -(-call.shape[3] // KEY_BLOCK))
    if mask.shape != size or mask.dtype != torch.uint8 or not mask.is_contiguous():
        raise ValueError(
            f"block_mask must be contiguous uint8 {list(size)}, got {mask.dtype} "
            f"{list(mask.shape)} with strides {list(mask.stride())}"
        )
    native.block_mask = mask.data_ptr()


class _Packed:
    """K and V of a call, packed in the native library's memory for as long as this lives."""

    def __init__(self, lib: ctypes.CDLL, call: _Call) -> None:
        self.handle = lib.accel_attention_pack(ctypes.byref(call))
        if not self.handle:
            raise _no_memory(call)
        weakref.finalize(self, lib.accel_attention_free, self.handle)


def _no_memory(call: _Call) -> MemoryError:
    return MemoryError(f"no memory for packed keys and values of {call.keys} tokens")


def scratch_bytes(q: Tensor, k: Tensor, v: Tensor, bits: int) -> int:
    """Return the most bytes that a call needs beside its inputs and its result.

    Where K and V are packed for several calls, the bytes of all heads.
    """
    lib = require()
    use_torchs_threads(lib)
    call, shared = _describe(q, k, v, bits), shared_keys.shares((k, v))
    return int(lib.accel_attention_scratch(ctypes.byref(call), shared))


def _describe(q: Tensor, k: Tensor, v: Tensor, bits: int) -> _Call:
    """Return the call with everything that follows from the inputs."""
    batch, heads, queries, dim = q.shape
    return _Call(
        q=q.data_ptr(), k=k.data_ptr(), v=v.data_ptr(), batch=batch, heads=heads,
        key_heads=k.shape[1], queries=queries, keys=k.shape[2], dim=dim, value_dim=v.shape[-1],
        q_stride=_Strides(*q.stride()), k_stride=_Strides(*k.stride()),
        v_stride=_Strides(*v.stride()), dtype=NUMBERS[q.dtype], qk_bits=bits,
        threads=torch.get_num_threads(),
    )  # fmt: skip


@cache
def use_torchs_threads(lib: ctypes.CDLL) -> bool:
    """Run on the OpenMP runtime that torch brings, if it is GNU's; else on threads of our own.

    Raises RuntimeError if the library was built for another description of a call.
    """
    if lib.accel_attention_call_size() != ctypes.sizeof(_Call):
        raise RuntimeError("the native library describes a call differently; reinstall")
    folder = os.path.join(os.path.dirname(torch.__file__), "lib")
    for path in [*glob.glob(os.path.join(folder, "libgomp*")), *_loaded("libgomp")]:
        try:
            function = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_NOW).GOMP_parallel
        except (OSError, AttributeError):
            continue
        lib.accel_set_gomp_parallel(ctypes.cast(function, ctypes.c_void_p))
        return True
    return False


def _loaded(stem: str) -> list[str]:
    """Return paths of shared libraries of this process whose name holds ``stem`` (Linux)."""
    try:
        with open("/proc/self/maps") as maps:
            paths = {line.split()[-1] for line in maps if stem in line}
    except OSError:
        return []
    return sorted(path for path in paths if path.startswith("/"))
