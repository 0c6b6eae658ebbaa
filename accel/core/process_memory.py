"""Memory that this process holds, and the peak of a run: of the GPU where there is one."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak() -> None:
    """Let the peak begin anew."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        _CLEAR.write_text("5")


def peak_bytes() -> int:
    """Return peak since ``reset_peak``: of the GPU's allocator, else of the whole process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return most_resident_bytes() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS


def bytes_taken(work: Callable[[], object], device: torch.device) -> int:
    """Run ``work`` and return the bytes it takes at its peak on a device, beyond those before it.

    0 where that cannot be measured.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return max(torch.cuda.max_memory_allocated(device) - before, 0)
    try:
        _CLEAR.write_text("5")
        before = resident_bytes()
    except OSError:
        before = 0
    work()
    return max(most_resident_bytes() - before, 0) if before else 0


def resident_bytes() -> int:
    """Return the bytes that this process holds in memory now; 0 where that is unknown."""
    return _status("VmRSS")


def most_resident_bytes() -> int:
    """Return the most bytes that this process has held in memory; 0 where that is unknown."""
    return _status("VmHWM")


def _status(key: str) -> int:
    if sys.platform != "linux":
        return 0
    return int(_STATUS.read_text().split(f"{key}:")[1].split()[0]) * 1024
