"""What can run here and, if not, why: one frozen record per implementation, no side effects on
import.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from accel.kernels.cpu.native import library
from accel.kernels.gpu import support

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Impl:
    """An implementation of an op; ``why_not(device)`` is "" where it runs, else the reason."""

    name: str
    description: str
    why_not: Callable[[torch.device], str]


def _always(device: torch.device) -> str:
    return ""


def _native(device: torch.device) -> str:
    if device.type != "cpu":
        return f"runs on cpu tensors only, got {device.type}"
    return library().reason


def _vectorised(device: torch.device) -> str:
    reason = _native(device)
    if not reason and library().isa == "scalar":
        return "this processor has no AVX2; the portable path is slower than SDPA"
    return reason


QUANTIZE = (
    Impl("cpu", "native rows quantiser", _native),
    Impl("reference", "eager torch", _always),
)
ATTENTION = (
    Impl("cpu", "native INT8, INT6 and INT4 attention", _vectorised),
    Impl("gpu", "Triton INT8 attention for tensor cores", support.why_not_gpu),
    Impl("reference", "eager torch, the specification; slower than SDPA", _always),
)
WARP = (
    Impl("cpu", "native noise warp", _native),
    Impl("gpu", "Triton noise warp", support.why_not_gpu),
    Impl("reference", "eager torch, the specification", _always),
)
FULL = (Impl("reference", "eager torch with log-sum-exp", _always),)


# Fewest keys, and fewest queries to share the packing of the keys, with which the native kernel
# beats torch, everything included; measured with AVX2 and with AVX-512-VNNI on two cores,
# heads of 40 to 256 (tests/bench/bench_attention.py --crossover).
CPU_MIN_KEYS = 128
CPU_MIN_QUERIES = 96
# Fewest keys from which packing can pay on a card: published kernels that pack in a pass of their
# own win from about 2,000 keys on (SageAttention on an L40). Above it the card is measured.
GPU_MIN_KEYS = 2048


def why_not_worth(q: Tensor, k: Tensor, v: Tensor, precision: str) -> str:
    """Why "auto" leaves an attention call [B, H, T, D] to torch; "" if quantizing it pays.

    Where only the eager reference could quantize, that is always: it is slower than torch. On a
    card the first call of a kind measures (``gpu/tuning.py``).
    """
    queries, keys = q.shape[2], k.shape[2]
    if q.device.type == "cuda":
        if reason := support.why_not_gpu(q.device):
            return f"no fast quantized kernel here: {reason}"
        if keys < GPU_MIN_KEYS:
            return f"{keys} keys, quantized attention pays from {GPU_MIN_KEYS} on"
        from accel.kernels.gpu.attention import choose

        return choose(q, k, v.shape[-1], runs_as(precision, "gpu", q)[0]).why_not
    if q.device.type != "cpu":
        return f"no quantized kernel for {q.device.type} in this version"
    if reason := ATTENTION[0].why_not(CPU):
        return f"no fast quantized kernel here: {reason}"
    if keys < CPU_MIN_KEYS:
        return f"{keys} keys, quantized attention pays from {CPU_MIN_KEYS} on"
    if queries < CPU_MIN_QUERIES:
        return f"{queries} queries, quantized attention pays from {CPU_MIN_QUERIES} on"
    return ""


def resolve(table: tuple[Impl, ...], impl: str, device: torch.device) -> str:
    """Name of the implementation to run: the first available one for "auto", else the one named.

    Raises ValueError for an unknown name and RuntimeError, with the reason and the alternatives,
    for one that cannot run here.
    """
    names = [entry.name for entry in table]
    if impl == "auto":
        return next(entry.name for entry in table if not entry.why_not(device))
    if impl not in names:
        raise ValueError(f"impl must be 'auto' or one of {names}, got {impl!r}")
    reason = next(entry for entry in table if entry.name == impl).why_not(device)
    if reason:
        others = [entry.name for entry in table if not entry.why_not(device)]
        raise RuntimeError(f"impl {impl!r} cannot run here: {reason}; available: {others}")
    return impl


def runs_as(precision: str, impl: str, q: Tensor) -> tuple[str, str]:
    """The precision that "auto" runs for ``precision`` with implementation ``impl``, and why it is
    another ("" if it is not). Never a less exact one.
    """
    if impl == "gpu":
        cc = support.capability(q.device)
        if why := support.why_not_precision(precision, cc, q.shape[-1]):
            return "int8", why
    return precision, ""


def environment() -> dict[str, str]:
    """What the report says of this machine: torch, devices, native library, instruction set."""
    native = library()
    lines = {
        "torch": torch.__version__,
        "cpu": f"{torch.get_num_threads()} threads",
        "native library": native.isa if native.lib is not None else f"missing: {native.reason}",
    }
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        lines["gpu"] = f"{torch.cuda.get_device_name()} (compute capability {major}.{minor})"
        lines["gpu attention"] = support.describe((major, minor))
    else:
        lines["gpu"] = "none visible to torch"
    return lines
