"""The tables in docs/placement.md and docs/recipes.md: the way that fits on each card.

    python tests/bench/placement_table.py [MODEL ...]    rewrites the first, with stock diffusers
    python tests/bench/placement_table.py --recipes      rewrites that of the recipes

Everything is simulated from configurations (``accel memory``), in bf16, with 64 GB in the host and
5 % of each card kept back.
"""

from __future__ import annotations

import sys
from pathlib import Path

from accel.core.units import gib
from accel.memory import cards
from accel.memory.meta_models import Video, find
from accel.memory.pieces import PLAIN, demand
from accel.memory.placement import Decision
from accel.memory.simulate import simulate

DOCS = Path(__file__).resolve().parents[2] / "docs"
SIZES = {
    "wan-14b": Video(1280, 720, 81),
    "wan2.2-t2v-a14b": Video(1280, 720, 81),
    "wan-1.3b": Video(832, 480, 81),
    "hunyuanvideo": Video(1280, 720, 129),
    "hunyuanvideo-1.5": Video(1280, 720, 121),
    "ltx-2": Video(1280, 704, 121),
    "flux": Video(1024, 1024, 1),
    "qwen-image": Video(1328, 1328, 1),
}
RECIPES = {  # built-in configuration, size, kind of weights
    "Text to video": ("wan-14b", Video(832, 480, 81), PLAIN),
    "A picture comes alive": ("wan2.2-i2v-a14b", Video(832, 480, 81), PLAIN),
    "From a first to a last picture": ("wan-i2v-14b", Video(1280, 720, 81), PLAIN),
    "A small card": ("wan2.2-ti2v-5b", Video(1280, 704, 121), "int8"),
    "Video and picture conditions": ("ltx-video-13b", Video(768, 512, 161), PLAIN),
    "HunyuanVideo from a picture": ("hunyuanvideo-1.5", Video(848, 480, 121), PLAIN),
    "Pictures in a style": ("flux", Video(1024, 1024, 1), PLAIN),
    "Edit a picture in words": ("qwen-image-edit", Video(1024, 1024, 1), PLAIN),
    "Follow a drawing": ("sdxl", Video(1024, 1024, 1), PLAIN),
}
FIVE = tuple(card * 10**9 for card in (8, 12, 16, 24, 48))


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


def recipe_row(title: str) -> str:
    """Return the line of one recipe: a cell for each of five cards."""
    name, video, kind = RECIPES[title]
    model = find(name)
    needed = demand(model, simulate(model, video), kind=kind)
    found = cards.by_card(needed, FIVE, cards.HOST)
    return f"| {title} (`{name}`) | {' | '.join(map(cell, found.values()))} |"


def rewrite(page: str, table: str, lines: list[str]) -> None:
    """Put the lines of a table into a page."""
    start, end = f"<!-- table: {table} -->\n", "<!-- end table -->\n"
    head, rest = (DOCS / page).read_text().split(start)
    (DOCS / page).write_text(head + start + "\n".join(lines) + "\n" + end + rest.split(end, 1)[1])


def main() -> None:
    """Rewrite a table."""
    if sys.argv[1:] == ["--recipes"]:
        heads = " | ".join(f"{card // 10**9} GB" for card in FIVE)
        lines = [f"| recipe | {heads} |", "|---" * (len(FIVE) + 1) + "|"]
        for title in RECIPES:
            lines.append(recipe_row(title))
            print(title, flush=True)
        rewrite("recipes.md", "recipes", lines)
        return
    lines = ["| card | way, its peak on the card and the phase that has it |", "|---|---|"]
    for name in sys.argv[1:] or list(SIZES):
        lines += rows(name, SIZES[name])
        print(name, flush=True)
    rewrite("placement.md", "placement", lines)


if __name__ == "__main__":
    main()
