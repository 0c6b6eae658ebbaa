"""The simulated tables in docs/cards.md and docs/recipes.md: what fits on each card, and how.

    python tests/bench/card_table.py [MODEL ...]    remakes all of the first, or those models' part
    python tests/bench/card_table.py --recipes      remakes that of the recipes

Everything is simulated from configurations (``accel memory``), in bf16, with 64 GB in the host and
5 % of each card kept back. A model's part says when it was simulated. Cards with equal rows share
one.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

from accel.core.units import gib
from accel.memory import cards
from accel.memory.meta_models import Video, find
from accel.memory.pieces import PLAIN, Demand, demand
from accel.memory.placement import WHOLE, Decision, Placement
from accel.memory.simulate import simulate

DOCS = Path(__file__).resolve().parents[2] / "docs"
EIGHT_BITS = "int8"
SIZES = {  # those of the pipeline's call, or of the model's release where it names larger ones
    "wan-1.3b": Video(832, 480, 81),
    "wan-14b": Video(1280, 720, 81),
    "wan-i2v-14b": Video(1280, 720, 81),
    "wan2.2-ti2v-5b": Video(1280, 704, 121),
    "wan2.2-t2v-a14b": Video(1280, 720, 81),
    "wan2.2-i2v-a14b": Video(1280, 720, 81),
    "hunyuanvideo": Video(1280, 720, 129),
    "hunyuanvideo-1.5": Video(1280, 720, 121),
    "cogvideox-5b": Video(720, 480, 49),
    "ltx-video-2b": Video(704, 512, 161),
    "ltx-video-13b": Video(704, 512, 161),
    "ltx-2": Video(1280, 704, 121),
    "mochi": Video(848, 480, 163),
    "animatediff": Video(512, 512, 16),
    "svd": Video(1024, 576, 14),
    "flux": Video(1024, 1024, 1),
    "flux-kontext": Video(1024, 1024, 1),
    "flux.2-dev": Video(1024, 1024, 1),
    "qwen-image": Video(1328, 1328, 1),
    "qwen-image-edit": Video(1024, 1024, 1),
    "sd3.5-large": Video(1024, 1024, 1),
    "sdxl": Video(1024, 1024, 1),
    "z-image": Video(1024, 1024, 1),
    "z-image-turbo": Video(1024, 1024, 1),
}
RECIPES = {  # built-in configuration, size, kind of weights
    "Text to video": ("wan-14b", Video(832, 480, 81), PLAIN),
    "A picture comes alive": ("wan2.2-i2v-a14b", Video(832, 480, 81), PLAIN),
    "From a first to a last picture": ("wan-i2v-14b", Video(1280, 720, 81), PLAIN),
    "A small card": ("wan2.2-ti2v-5b", Video(1280, 704, 121), EIGHT_BITS),
    "Video and picture conditions": ("ltx-video-13b", Video(768, 512, 161), PLAIN),
    "HunyuanVideo from a picture": ("hunyuanvideo-1.5", Video(848, 480, 121), PLAIN),
    "Pictures in a style": ("flux", Video(1024, 1024, 1), PLAIN),
    "Edit a picture in words": ("qwen-image-edit", Video(1024, 1024, 1), PLAIN),
    "Follow a drawing": ("sdxl", Video(1024, 1024, 1), PLAIN),
}
FIVE = tuple(card * 10**9 for card in (8, 12, 16, 24, 48))
HEAD = [
    '| simulated | stock, `pipe.to("cuda")` | stock, model offload | stock, sequential offload and '
    f"tiles | accel, same result | accel, `allow: {EIGHT_BITS}` |",
    "|---|---|---|---|---|---|",
]


def cell(decision: Decision) -> str:
    """Return the way and its peak, or the phase that does not fit."""
    row = decision.chosen
    if row is None:
        return f"none: {decision.way_out.split(';')[0].removeprefix('no way fits: ')}"
    phase, size = max(row.device.items(), key=lambda item: item[1])
    slices = f", {row.slices} slices" if row.slices > 1 else ""
    strips = "" if row.decode == WHOLE else f", {row.decode}"
    return f"{row.name}{slices}{strips}; {gib(size, 1)} ({phase})"


def fits(row: Placement) -> str:
    """Return whether a call of stock diffusers fits, and if not, where."""
    if not row.why_not:
        return "fits"
    return "no: host" if " in host, " in row.why_not else "no"


def needs(name: str, video: Video) -> tuple[Demand, Demand]:
    """Return what a model needs, with weights as they are and with those in 8 bits."""
    model = find(name)
    peaks = simulate(model, video)
    return demand(model, peaks), demand(model, peaks, kind=EIGHT_BITS)


def verdicts(plain: Demand, eight: Demand, card: int) -> list[str]:
    """Return the cells of one card: stock diffusers three times, then ours."""
    room = cards.usable(card, cards.HOST)
    as_it_comes, tiled = (cards.stock_on(plain, room, tiles=tiles) for tiles in (False, True))
    whole, model, _ = as_it_comes.values()
    *_, sequential = tiled.values()
    stock = [fits(row) for row in (whole, model, sequential)]
    alone, allowed = (
        cell(cards.by_card(plain, (card,), cards.HOST, kinds)[card])
        for kinds in (None, {EIGHT_BITS: eight})
    )
    return [*stock, alone, "the same" if alone == allowed else allowed]


def rows(name: str, video: Video, today: str) -> list[str]:
    """Return the lines of one model: what stock diffusers needs, then the cards."""
    plain, eight = needs(name, video)
    as_it_comes, tiled = (
        cards.stock_on(plain, cards.usable(cards.CARDS[-1], cards.HOST), tiles=tiles)
        for tiles in (False, True)
    )
    whole, model, _ = as_it_comes.values()
    *_, sequential = tiled.values()
    peaks = " | ".join(gib(row.peak, 1) for row in (whole, model, sequential))
    size = f"{video.width}×{video.height}" + (f" × {video.frames}" if video.frames > 1 else "")
    lines = [f"| **{name}**, {size}, {today} | {peaks} | | |"]
    found = [(card // 10**9, verdicts(plain, eight, card)) for card in cards.CARDS]
    for cells, equal in groupby(found, key=lambda pair: pair[1]):
        sizes = ", ".join(str(card) for card, _ in equal)
        lines.append(f"| {sizes} GB | {' | '.join(cells)} |")
    return lines


def recipe_row(title: str) -> str:
    """Return the line of one recipe: a cell for each of five cards."""
    name, video, kind = RECIPES[title]
    model = find(name)
    needed = demand(model, simulate(model, video), kind=kind)
    found = cards.by_card(needed, FIVE, cards.HOST)
    return f"| {title} (`{name}`) | {' | '.join(map(cell, found.values()))} |"


def table_of(page: str, table: str) -> tuple[str, list[str], str]:
    """Return what stands before a page's table, its lines, and what stands behind it."""
    start, end = f"<!-- table: {table} -->\n", "<!-- end table -->\n"
    head, rest = (DOCS / page).read_text().split(start)
    inside, tail = rest.split(end, 1)
    return head + start, inside.splitlines(), end + tail


def parts(lines: list[str]) -> dict[str, list[str]]:
    """Return the lines of each model in the table of cards."""
    found: dict[str, list[str]] = {}
    for line in lines[len(HEAD) :]:
        if line.startswith("| **"):
            found[line.split("**")[1]] = []
        found[list(found)[-1]].append(line)
    return found


def rewrite(page: str, table: str, lines: list[str]) -> None:
    """Put the lines of a table into a page."""
    head, _, tail = table_of(page, table)
    (DOCS / page).write_text(head + "\n".join(lines) + "\n" + tail)


def main() -> None:
    """Remake a table."""
    if sys.argv[1:] == ["--recipes"]:
        heads = " | ".join(f"{card // 10**9} GB" for card in FIVE)
        lines = [f"| recipe | {heads} |", "|---" * (len(FIVE) + 1) + "|"]
        for title in RECIPES:
            lines.append(recipe_row(title))
            print(title, flush=True)
        rewrite("recipes.md", "recipes", lines)
        return
    if unknown := set(sys.argv[1:]) - set(SIZES):
        sys.exit(f"no size is listed for {sorted(unknown)}; models: {', '.join(SIZES)}")
    today = datetime.now(UTC).date().isoformat()
    for name in sys.argv[1:] or SIZES:
        kept = parts(table_of("cards.md", "cards")[1])
        kept[name] = rows(name, SIZES[name], today)
        lines = [line for known in SIZES for line in kept.get(known, [])]
        rewrite("cards.md", "cards", [*HEAD, *lines])
        print(name, flush=True)


if __name__ == "__main__":
    main()
