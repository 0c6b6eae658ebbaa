"""What a job needs where weights lie as a placement says, for plans that are searched there."""

from __future__ import annotations

from dataclasses import replace

from accel.memory.decide import placement
from accel.memory.fit import STRIPS, WHOLE, Kept, Needs
from accel.memory.packed_layers import PackedLayers
from accel.memory.pieces import PLAIN, Demand
from accel.memory.placement import Placement, Room
from accel.memory.simulate import STREAMED
from accel.memory.simulate import STRIPS as IN_STRIPS
from accel.memory.ways import EACH_CALL


def of_placed(
    demand: Demand, taken: Placement, room: Room, kept: Kept, packed: PackedLayers
) -> Needs:
    """Return what a job needs on the device in the way that was taken, by slices and decoding.

    What the process held there before counts, too.

    Args:
        demand: What the job needs without any plan.
        taken: The way, with the blocks that stay where others are read from disk.
        room: What was free, and what was held.
        kept: What step rehash adds.
        packed: What 8-bit linear layers add, where weights stay.
    """
    most = max(demand.denoise)
    strips = next((w for w in (STREAMED, IN_STRIPS) if w in demand.decode), WHOLE)
    if room.shared and IN_STRIPS in demand.decode:
        strips = IN_STRIPS
    staying = taken.blocks * max(piece.block for piece in demand.denoisers)
    demand = replace(demand, kept=0, packed=0)
    least = replace(room, device=0)  # so that no blocks stay beside those that do

    def phase(slices: int, decode: str, name: str) -> int:
        return placement(demand, least, taken.way, slices, decode).device.get(name, 0) + room.held

    quantized = taken.weights not in ("", PLAIN)
    return Needs(
        {n: phase(n, WHOLE, "denoise") + staying for n in demand.denoise},
        {WHOLE: phase(1, WHOLE, "decode"), STRIPS: phase(most, strips, "decode")},
        phase(1, WHOLE, "encode") if demand.encoders else 0,
        demand.at_least,
        kept,
        {
            way: size + phase(1, WHOLE, "decode") - demand.decode[WHOLE]
            for way, size in demand.approximate.items()
        },
        PackedLayers() if taken.way in EACH_CALL or quantized else packed,
    )
