"""The way that fits on cards of several sizes, beside what stock diffusers needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from accel.core.units import gib
from accel.memory.decide import decide, placement
from accel.memory.pieces import Demand
from accel.memory.placement import WHOLE, Decision, Room, phases_text
from accel.memory.ways import Way

CARDS = tuple(n * 10**9 for n in (8, 12, 16, 24, 48, 80))
HOST = 64 * 10**9  # bytes of host memory that are assumed
STOCK = {
    'pipe.to("cuda")': Way.RESIDENT,
    "pipe.enable_model_cpu_offload()": Way.MODEL,
    "pipe.enable_sequential_cpu_offload()": Way.SEQUENTIAL,
}
USABLE = 0.95  # of a card: the rest is the driver's, and lost between allocations
_ENDLESS = Room(2**62, 2**62)


def by_card(
    demand: Demand, cards: Iterable[int], host: int, allowed: Mapping[str, Demand] | None = None
) -> dict[int, Decision]:
    """Return what is decided for each size of a card, in bytes, beside ``host`` bytes.

    5 % of a card are kept back. ``allowed``: needs by kind of weights that may be taken.
    """
    return {card: decide(demand, Room(int(USABLE * card), host), allowed=allowed) for card in cards}


def stock(demand: Demand) -> dict[str, dict[str, int]]:
    """Return the peaks on the device, by phase, of diffusers' own calls, decoding in tiles.

    Where the VAE has no tiles, it decodes whole.
    """
    tiled = {**demand.decode, **{WHOLE: min(demand.approximate.values(), default=0)}}
    if not demand.approximate:
        tiled = dict(demand.decode)
    least = min(demand.denoise)
    plain = replace(demand, decode=tiled)
    return {
        call: dict(placement(plain, _ENDLESS, way, least, WHOLE).device)
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
