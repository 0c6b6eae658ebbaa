"""Memory that a piece of work takes at its peak, beyond what was in use when it began."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Run ``work`` and return the bytes it took at its peak; 0 where that cannot be measured.

    On a card torch's allocator says it; on the CPU Linux does, for the whole process.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return max(torch.cuda.max_memory_allocated(device) - before, 0)
    before = _reset()
    work()
    return max(_line("VmHWM") - before, 0) if before else 0


def _reset() -> int:
    """Let Linux forget the highest memory of this process; return what is in use, 0 if unknown."""
    try:
        _RESET.write_text("5")
    except OSError:
        return 0
    return _line("VmRSS")


def _line(name: str) -> int:
    """Return a line of the process's status in bytes."""
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text("utf-8"), re.MULTILINE)
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0
