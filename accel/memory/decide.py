"""The cheapest way of placing weights that fits, from what a job needs and what is free.

Only numbers are decided about here; ``pipelines/placing.py`` does what was decided. Ways stand in
the order of what they cost. Each is tried with as few slices as fit, because slices cost little
and change nothing. On a machine without an accelerator the device is the host, and what would wait
in the host's memory waits on disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from accel.core.units import gib
from accel.memory.pieces import Demand, Piece
from accel.memory.placement import WHOLE, Decision, Placement, Room
from accel.memory.simulate import STREAMED, STRIPS
from accel.memory.ways import ASKED, COSTS, EACH_CALL, IN_HOST, QUANTIZED, Way

USED = 0.95  # of the room, that blocks fill which need not stay


def decide(
    demand: Demand,
    room: Room,
    *,
    offload: str = "auto",
    slices: int = 1,
    skip: int = 0,
    allowed: Mapping[str, Demand] | None = None,
) -> Decision:
    """Return the cheapest way that fits, and why each cheaper one does not.

    Args:
        demand: What the job needs.
        room: What is free.
        offload: Ways that are allowed, by a word of the load options. Without an accelerator those
            that offload to the host mean "auto".
        slices: Fewest slices that are tried, those of the job's plan.
        skip: Ways to pass over that seemed to fit and did not.
        allowed: What the job needs with weights of another kind, by kind, in the order in which
            they may be taken.
    """
    table, chosen = [], None
    same = room.shared and offload in ("model", "group", "sequential")
    ways = [
        way for way in ASKED["auto" if same else offload] if not (room.shared and way in IN_HOST)
    ]
    for way, kind in _in_order(ways, allowed or {}):
        row = _fewest((allowed or {}).get(kind, demand), room, way, slices)
        if kind:
            row = replace(row, weights=kind, cost=f"{row.cost}; {kind} weights change the result")
        if not row.why_not and skip > 0:
            row, skip = replace(row, why_not="ran out of memory when it was tried"), skip - 1
        table.append(row)
        if chosen is None and not row.why_not:
            chosen = row
    way_out = "" if chosen else _way_out(demand, room, table)
    return Decision(chosen, tuple(table), room, way_out)


def _in_order(ways: Iterable[Way], kinds: Iterable[str]) -> list[tuple[Way, str]]:
    """Return ways and kinds of weights in the order of what they cost, "" for weights as they are.

    Quantized weights stand before ways that move the others at each denoiser call. They are not
    read piece by piece.
    """
    ways = list(ways)
    other = [(way, kind) for kind in kinds for way in ways if way in QUANTIZED]
    return [
        *((way, "") for way in ways if way not in EACH_CALL),
        *(pair for pair in other if pair[0] not in EACH_CALL),
        *((way, "") for way in ways if way in EACH_CALL),
        *(pair for pair in other if pair[0] in EACH_CALL),
    ]


def _fewest(demand: Demand, room: Room, way: Way, least: int) -> Placement:
    """Return a way with the fewest slices that fit; with the most if none do."""
    row = None
    for row in _tries(demand, room, way, least):
        if not row.why_not:
            return row
    assert row is not None
    return row


def _tries(demand: Demand, room: Room, way: Way, least: int) -> Iterator[Placement]:
    counts = sorted(demand.denoise)
    for n in [c for c in counts if c >= least] or counts[-1:]:
        decodings = [WHOLE]
        if n == counts[-1]:
            decodings += [w for w in (STRIPS, STREAMED) if w in demand.decode]
            if room.shared and STREAMED in decodings:
                decodings.remove(STREAMED)
        for decode in decodings if n == counts[-1] else decodings[:1]:
            yield placement(demand, room, way, n, decode)


def placement(demand: Demand, room: Room, way: Way, slices: int, decode: str) -> Placement:
    """Return one way with its peaks by phase, and what of it does not fit."""
    held = {phase: _held(demand, way, phase) for phase in ("encode", "denoise", "decode")}
    packed = 0 if way in EACH_CALL else demand.packed  # weights that move are not packed
    act = {
        "denoise": demand.denoise[slices] + demand.kept + packed,
        "decode": demand.decode[decode] + packed,
    }
    device = {phase: held[phase] + size for phase, size in act.items()}
    if demand.encoders:
        device = {"encode": _encode(demand, way), **device}
    everything = demand.weights
    host, pinned = {}, False
    if not room.shared and way in IN_HOST:
        largest = max(p.weights for p in (*demand.encoders, *demand.denoisers))
        pinned = way is Way.GROUP and everything + largest <= room.host
        host = {"load": everything + largest * pinned, "run": everything}
    elif not room.shared and way is Way.DISK:
        host = {"run": max(p.block for p in (*demand.encoders, *demand.denoisers))}
    blocks = _blocks_kept(demand, room, way, device)
    staying = blocks * max(p.block for p in demand.denoisers)
    device["denoise"] += staying
    moved = max(p.weights for p in demand.denoisers) - staying
    sizes = {"all": gib(everything), "denoiser": gib(moved)}
    cost = COSTS[way].format(**sizes) + (f"; {slices} slices" if slices > 1 else "")
    row = Placement(way, slices, decode, device, host, cost, "", pinned, blocks)
    return replace(row, why_not=_why_not(row, room))


def _blocks_kept(demand: Demand, room: Room, way: Way, device: Mapping[str, int]) -> int:
    """Return how many of a denoiser's blocks can stay beside what else there is."""
    if way is not Way.DISK:
        return 0
    free = int(USED * room.device) - device["denoise"]
    known = [p for p in demand.denoisers if p.block]
    counts = [min(free // p.block, (p.weights - p.rest) // p.block - 1) for p in known]
    return max(0, min(counts, default=0))


def _why_not(row: Placement, room: Room) -> str:
    """Return the first phase that does not fit, with its bytes."""
    for where, sizes, free in (("", row.device, room.device), (" in host", row.host, room.host)):
        for phase, size in sizes.items():
            if size > free:
                return f"{phase} needs {gib(size)}{where}, {gib(free)} is free"
    return ""


def _held(demand: Demand, way: Way, phase: str) -> int:
    """Return the bytes of weights on the device in a phase."""
    denoisers = sum(p.weights for p in demand.denoisers)
    largest = max(p.weights for p in demand.denoisers)
    vae, denoising = demand.vae.weights, phase == "denoise"
    match way:
        case Way.RESIDENT:
            return demand.weights
        case Way.ENCODER_FIRST:
            return denoisers + vae
        case Way.MODEL | Way.TURNS:
            return largest if denoising else vae
        case Way.GROUP:
            return vae + (max(_grouped(p) for p in demand.denoisers) if denoising else 0)
        case Way.SEQUENTIAL:
            return max(p.pair for p in (demand.denoisers if denoising else (demand.vae,)))
        case Way.DISK:
            return max(p.streamed for p in demand.denoisers) if denoising else vae


def _grouped(denoiser: Piece) -> int:
    """Return the bytes of a block that runs, the next one, and what belongs to no block."""
    return denoiser.rest + 2 * denoiser.block if denoiser.block else denoiser.weights


def _encode(demand: Demand, way: Way) -> int:
    """Return the bytes that encoding needs on the device."""
    together = sum(p.weights for p in demand.encoders)
    sizes = []
    for encoder in demand.encoders:
        match way:
            case Way.RESIDENT:
                weights = demand.weights
            case Way.ENCODER_FIRST:
                weights = together
            case Way.MODEL | Way.TURNS:
                weights = encoder.weights
            case Way.GROUP:
                weights = encoder.pair + demand.vae.weights
            case Way.SEQUENTIAL:
                weights = encoder.pair
            case Way.DISK:
                weights = encoder.streamed
        sizes.append(weights + demand.encode.get(encoder.name, 0))
    return max(sizes)


def _way_out(demand: Demand, room: Room, table: list[Placement]) -> str:
    """Say what needs most in the way that needs least, and what would help."""
    row = min(table, key=lambda r: (bool(r.host) and max(r.host.values()) > room.host, r.peak))
    phase, size = max(row.device.items(), key=lambda item: item[1])
    if size <= room.device:
        other = "" if row.way is Way.DISK else ", or load offload disk"
        return f"no way fits: {row.name}: {row.why_not}; what helps: more host memory{other}"
    helps = ["a smaller size or fewer frames"]
    if phase == "decode" and demand.approximate:
        name, least = min(demand.approximate.items(), key=lambda item: item[1])
        if least + demand.vae.weights <= room.device:
            helps.insert(0, f"pipe.vae.enable_tiling() ({name}) decodes in {gib(least)}")
    if phase == "encode":
        helps = ["quantized weights for the text encoder, such as load weights int8"]
    return (
        f"no way fits: {phase} needs at least {gib(size)}, {gib(room.device)} is free; what helps: "
        f"{', or '.join(helps)}"
    )
