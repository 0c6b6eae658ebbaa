"""The table in docs/placement.md: the way that fits on each card, beside stock diffusers.

    python tests/bench/placement_table.py [MODEL ...]        rewrites the table

Everything is simulated from configurations (``accel memory``), in bf16, with 64 GB in the host and
5 % of each card kept back.
"""

from __future__ import annotations

import sys
from pathlib import Path

from accel.core.units import gib
from accel.memory import cards
from accel.memory.meta_models import Video, find
from accel.memory.pieces import demand
from accel.memory.placement import Decision
from accel.memory.simulate import simulate

PAGE = Path(__file__).resolve().parents[2] / "docs" / "placement.md"
START, END = "<!-- table: placement -->\n", "<!-- end table -->\n"
SIZES = {
    "wan-14b": Video(1280, 720, 81),
    "wan-1.3b": Video(832, 480, 81),
    "hunyuanvideo": Video(1280, 720, 129),
    "flux": Video(1024, 1024, 1),
}


def cell(decision: Decision) -> str:
    """Return the way and its peak, or the phase that does not fit."""
    row = decision.chosen
    if row is None:
        return f"none: {decision.way_out.split(';')[0].removeprefix('no way fits: ')}"
    phase, size = max(row.device.items(), key=lambda item: item[1])
    slices = f", {row.slices} slices" if row.slices > 1 else ""
    return f"{row.way}{slices}; {gib(size, 1)} ({phase})"


def rows(name: str, video: Video) -> list[str]:
    """Return the lines of one model."""
    model = find(name)
    needed = demand(model, simulate(model, video))
    found = cards.by_card(needed, cards.CARDS, cards.HOST)
    size = f"{video.width}×{video.height}" + (f" × {video.frames}" if video.frames > 1 else "")
    lines = [f"| **{name}**, {size} | |"]
    lines += [f"| {card // 10**9} GB | {cell(decision)} |" for card, decision in found.items()]
    for call, phases in cards.stock(needed).items():
        lines.append(f"| stock, `{call}` | {gib(max(phases.values()), 1)} |")
    return lines


def main() -> None:
    """Rewrite the page's table."""
    names = sys.argv[1:] or list(SIZES)
    lines = ["| card | way, its peak on the card and the phase that has it |", "|---|---|"]
    for name in names:
        lines += rows(name, SIZES[name])
        print(name, flush=True)
    text = PAGE.read_text()
    head, rest = text.split(START)
    tail = rest.split(END)[1]
    PAGE.write_text(head + START + "\n".join(lines) + "\n" + END + tail)


if __name__ == "__main__":
    main()
