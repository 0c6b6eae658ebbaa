"""Peak memory of a run: of the GPU's allocator, else of the whole process."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch


def reset_peak() -> None:
    """Let the peak begin anew."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Return peak since ``reset_peak``: of the GPU's allocator, else of the whole process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes, never reset
