"""What can run here and, if not, why: one frozen record per implementation, no side effects on
import.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from accel.kernels.cpu.native import library


@dataclass(frozen=True)
class Impl:
    """An implementation of an op; ``why_not(device_type)`` is "" where it runs, else the reason."""

    name: str
    description: str
    why_not: Callable[[str], str]


def _always(device: str) -> str:
    return ""


def _native(device: str) -> str:
    if device != "cpu":
        return f"runs on cpu tensors only, got {device}"
    return library().reason


def _vectorised(device: str) -> str:
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
    Impl("reference", "eager torch, the specification; slower than SDPA", _always),
)
FULL = (Impl("reference", "eager torch with log-sum-exp", _always),)


# Fewest keys, and fewest queries to share the packing of the keys, with which the native kernel
# beats torch, everything included; measured with AVX2 and with AVX-512-VNNI on two cores,
# heads of 40 to 256 (tests/bench/bench_attention.py --crossover).
CPU_MIN_KEYS = 128
CPU_MIN_QUERIES = 96


def why_not_worth(device: torch.device, queries: int, keys: int) -> str:
    """Why "auto" leaves an attention call of this size to torch; "" if quantizing it pays.

    Where only the eager reference could quantize, that is always: it is slower than torch.
    """
    if device.type != "cpu":
        return f"no quantized kernel for {device.type} in this version"
    if reason := ATTENTION[0].why_not("cpu"):
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
        return next(entry.name for entry in table if not entry.why_not(device.type))
    if impl not in names:
        raise ValueError(f"impl must be 'auto' or one of {names}, got {impl!r}")
    reason = next(entry for entry in table if entry.name == impl).why_not(device.type)
    if reason:
        others = [entry.name for entry in table if not entry.why_not(device.type)]
        raise RuntimeError(f"impl {impl!r} cannot run here: {reason}; available: {others}")
    return impl


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
    else:
        lines["gpu"] = "none visible to torch"
    return lines
