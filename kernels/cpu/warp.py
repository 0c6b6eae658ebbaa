"""Launcher of the native noise warp; method and memory layout are in ``kernels/csrc/warp.h``."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from accel.kernels.cpu.attention import use_torchs_threads
from accel.kernels.cpu.native import require


class _Call(ctypes.Structure):
    """``WarpCall`` of kernels/csrc/warp.h, field by field."""

    _fields_ = [
        *[(name, ctypes.c_void_p) for name in ["noise", "density", "forward", "backward"]],
        *[(name, ctypes.c_void_p) for name in ["noise_out", "density_out"]],
        *[(name, ctypes.c_int64) for name in ["channels", "height", "width"]],
        ("seed", ctypes.c_uint64),
        ("frame", ctypes.c_uint32),
        ("threads", ctypes.c_int32),
        ("offset", ctypes.c_float * 2),
    ]


def fresh(out: Tensor, *, seed: int, frame: int) -> None:
    """Fill ``out`` fp32 [C, H, W], contiguous, with the fresh noise of a frame."""
    lib = _library()
    channels, height, width = out.shape
    failed = lib.accel_warp_fresh(
        out.data_ptr(), channels, height * width, seed, frame, torch.get_num_threads()
    )
    _check(failed, out)


def step(
    q: Tensor, rho: Tensor, forward: Tensor, backward: Tensor | None, u: tuple[float, float], *,
    seed: int, frame: int, out: Tensor,
) -> Tensor:  # fmt: skip
    """Write one frame's noise to ``out`` and return its density fp32 [H, W].

    q and ``out`` fp32 [C, H, W], rho fp32 [H, W], flows fp32 [2, H, W] pixels; all but the flows
    must be contiguous. Raises RuntimeError without the native library, MemoryError without memory.
    """
    lib = _library()
    density = torch.empty_like(rho)
    forward = forward.contiguous()
    backward = None if backward is None else backward.contiguous()
    call = _Call(
        noise=q.data_ptr(), density=rho.data_ptr(), forward=forward.data_ptr(),
        backward=None if backward is None else backward.data_ptr(),
        noise_out=out.data_ptr(), density_out=density.data_ptr(),
        channels=q.shape[0], height=q.shape[1], width=q.shape[2],
        seed=seed, frame=frame, threads=torch.get_num_threads(), offset=u,
    )  # fmt: skip
    _check(lib.accel_warp_step(ctypes.byref(call)), out)
    return density


def _library() -> ctypes.CDLL:
    """Return the native library, on torch's threads.

    Raises RuntimeError if its interface does not fit.
    """
    lib = require()
    use_torchs_threads(lib)
    if lib.accel_warp_call_size() != ctypes.sizeof(_Call):
        raise RuntimeError("the native library has another interface for the warp; reinstall")
    return lib


def _check(failed: int, out: Tensor) -> None:
    if failed:
        raise MemoryError(f"no memory to warp noise of {tuple(out.shape)}; warp fewer channels")
