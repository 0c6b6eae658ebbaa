"""The way that fits on cards of several sizes, beside what stock diffusers needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from accel.core.units import gib
from accel.memory.decide import decide, placement
from accel.memory.pieces import Demand
from accel.memory.placement import WHOLE, Decision, Placement, Room, phases_text
from accel.memory.ways import Way

CARDS = tuple(n * 10**9 for n in (8, 12, 16, 24, 32, 48, 80))
HOST = 64 * 10**9  # bytes of host memory that are assumed
STOCK = {
    'pipe.to("cuda")': Way.RESIDENT,
    "pipe.enable_model_cpu_offload()": Way.MODEL,
    "pipe.enable_sequential_cpu_offload()": Way.SEQUENTIAL,
}
_USABLE = 0.95  # of a card: the rest is the driver's, and lost between allocations
_ENDLESS = Room(2**62, 2**62)


def by_card(
    demand: Demand, cards: Iterable[int], host: int, allowed: Mapping[str, Demand] | None = None
) -> dict[int, Decision]:
    """Return what is decided for each size of a card, in bytes, beside ``host`` bytes.

    5 % of a card are kept back. ``allowed``: needs by kind of weights that may be taken.
    """
    return {card: decide(demand, usable(card, host), allowed=allowed) for card in cards}


def usable(card: int, host: int) -> Room:
    """Return what a model may take of a card and a host of so many bytes."""
    return Room(int(_USABLE * card), host)


def stock(demand: Demand) -> dict[str, dict[str, int]]:
    """Return the peaks on the device, by phase, of diffusers' own calls, decoding in tiles.

    Where the VAE has no tiles, it decodes whole.
    """
    rows = stock_on(demand, _ENDLESS, tiles=True)
    return {call: dict(row.device) for call, row in rows.items()}


def stock_on(demand: Demand, room: Room, *, tiles: bool) -> dict[str, Placement]:
    """Return where diffusers' own calls place the weights, and what of each does not fit.

    Args:
        demand: What the job needs.
        room: What is free on the card and in the host, in bytes.
        tiles: Decode in tiles, which is approximate, where the VAE has them.
    """
    if tiles and demand.approximate:
        demand = replace(demand, decode={WHOLE: min(demand.approximate.values())})
    return {
        call: placement(demand, room, way, min(demand.denoise), WHOLE)
        for call, way in STOCK.items()
    }


def to_dict(found: Mapping[int, Decision], demand: Demand, host: int) -> dict[str, Any]:
    """Return the table as plain JSON values."""
    return {
        "host_bytes": host,
        "cards": {
            str(card): {
                "chosen": None if d.chosen is None else d.chosen.to_dict(),
                "ways": [row.to_dict() for row in d.table],
                "way_out": d.way_out,
            }
            for card, d in found.items()
        },
        "stock": stock(demand),
    }


def text(found: Mapping[int, Decision], demand: Demand, host: int) -> str:
    """Return the table as text: the way on each card, then stock diffusers."""
    lines = [
        "placement by memory of the card, of which 95 % are used, beside "
        f"{host / 1e9:g} GB in the host (simulated):"
    ]
    for card, decision in found.items():
        row = decision.chosen
        what = decision.way_out if row is None else f"{row.name}: {phases_text(row)}; {row.cost}"
        lines.append(f"  {card / 1e9:g} GB  {what}")
    lines.append("stock diffusers, decoding in tiles where the VAE has them (approximate):")
    for call, phases in stock(demand).items():
        peak = ", ".join(f"{phase} {gib(size)}" for phase, size in phases.items())
        lines.append(f"  {call:<38}{peak}")
    return "\n".join(lines)
