"""Memory that this process holds, and the peak of a run: of the GPU where there is one."""

from __future__ import annotations

import resource
import sys
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
