"""How much memory is free on the device and in the host, for this process."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from accel.core.process_memory import resident_bytes
from accel.memory.placement import Room

SHARE = 0.95  # of what is free, since allocators lose some between allocations
_LIMITS = (  # files with a control group's limit, and with what it uses that cannot be given back
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.stat", "anon"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.stat", "rss"),
)


def free_room(device: torch.device, memory: int | None = None) -> Room:
    """Return what a model may take.

    Args:
        device: Where it computes.
        memory: Bytes that the device may hold in all. On a CPU that is all memory of the process,
            with what it holds already. None: what is free, less 5 %.
    """
    host = _free_host()
    if device.type == "cpu":
        held = resident_bytes()
        free = int(SHARE * host) if memory is None else max(0, memory - held)
        return Room(free, free, True, held)
    if device.type != "cuda":
        return Room(memory or host, int(SHARE * host))
    free, _ = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_allocated(device)
    own = int(SHARE * free) if memory is None else max(0, memory - held)
    return Room(min(own, free), int(SHARE * host), held=held)


def _free_host() -> int:
    """Return the bytes of host memory that are free, within the limit of a control group."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = int(next(x for x in lines if x.startswith("MemAvailable")).split()[1]) * 1024
    except (OSError, StopIteration):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    for limit, stat, key in _LIMITS:
        try:
            most = int(Path(limit).read_text())
            rows = dict(line.split() for line in Path(stat).read_text().splitlines())
            free = min(free, most - int(rows[key]))
        except (OSError, ValueError, KeyError):  # no such group, or no limit
            continue
    return max(0, free)
