"""Where weights lie while a job runs: one way with what it needs, and a decision for one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from accel.core.units import gib
from accel.memory.ways import Way

WHOLE = "whole"


@dataclass(frozen=True)
class Room:
    """Bytes that are free for a model on the device and in the host's memory.

    ``shared``: there is no accelerator, so both are the same memory. ``held``: what the process
    holds there already, besides.
    """

    device: int
    host: int
    shared: bool = False
    held: int = 0


@dataclass(frozen=True)
class Placement:
    """One way, with the slices and the way of decoding that it takes, and its peaks in bytes.

    ``why_not``: what does not fit, "" if all does. ``pinned``: group offload keeps a second copy of
    a component while it is set up, which makes its transfers faster. ``blocks``: blocks of each
    denoiser that stay where others are read from disk, because there is room for them.
    ``weights``: the kind that they are quantized to for this way, "" for none.
    """

    way: Way
    slices: int
    decode: str
    device: Mapping[str, int]
    host: Mapping[str, int]
    cost: str
    why_not: str = ""
    pinned: bool = False
    blocks: int = 0
    weights: str = ""

    @property
    def name(self) -> str:
        """Return the way as text, such as "all resident, int8 weights"."""
        return f"{self.way}, {self.weights} weights" if self.weights else str(self.way)

    @property
    def peak(self) -> int:
        """Return the most bytes on the device in any phase."""
        return max(self.device.values())

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "way": self.way.value, "slices": self.slices, "decode": self.decode,
            "device_bytes": dict(self.device), "host_bytes": dict(self.host),
            "cost": self.cost, "why_not": self.why_not, "blocks_kept": self.blocks,
            "weights": self.weights or None,
        }  # fmt: skip


@dataclass(frozen=True)
class Decision:
    """The way that is taken, None if none fits, and all that were looked at, cheapest first.

    ``way_out``: what would help where none fits.
    """

    chosen: Placement | None
    table: tuple[Placement, ...]
    room: Room
    way_out: str = ""

    def __str__(self) -> str:
        device = "memory" if self.room.shared else "device memory"
        host = "" if self.room.shared else f", host memory {gib(self.room.host)}"
        lines = [f"placement for {device} {gib(self.room.device)}{host}:"]
        for row in self.table:
            taken = "taken" if row is self.chosen else row.why_not or "costs more"
            lines.append(f"  {row.name:<34}{phases_text(row)}; {row.cost}; {taken}")
        return "\n".join([*lines, *([self.way_out] if self.way_out else [])])

    def required(self) -> Placement:
        """Return the way that is taken.

        Raises NoWay if none fits.
        """
        if self.chosen is None:
            raise NoWay(self.way_out)
        return self.chosen


class NoWay(ValueError):
    """No way fits; the message says what needs most and what would help."""


def phases_text(row: Placement) -> str:
    """Return a placement's peaks as text, such as "denoise 3.10 GiB in 4 slices"."""
    how = {
        "denoise": f" in {row.slices} slices" if row.slices > 1 else "",
        "decode": "" if row.decode == WHOLE else f" in {row.decode}",
    }
    parts = [f"{phase} {gib(size)}{how.get(phase, '')}" for phase, size in row.device.items()]
    held = max(row.host.values(), default=0)
    return ", ".join([*parts, *([f"host {gib(held)}"] if held else [])])
