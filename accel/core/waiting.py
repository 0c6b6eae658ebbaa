"""Where reading a number waits: on every device but the CPU, for all work that was sent there."""

from __future__ import annotations

import torch


def reading_waits(device: torch.device) -> bool:
    """Return whether reading a tensor's value there stops Python until the device has it."""
    return device.type not in ("cpu", "meta")


def may_wait() -> bool:
    """Return whether this machine has a device where reading waits."""
    return torch.accelerator.is_available()
