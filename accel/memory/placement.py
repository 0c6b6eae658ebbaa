"""Where weights lie while a job runs: every way, what it needs, and the cheapest that fits.

Only numbers are decided about here; ``pipelines/placing.py`` does what was decided. Ways stand in
the order of what they cost. Each is tried with as few slices as fit, because slices cost little
and change nothing. On a machine without an accelerator the device is the host, and what would wait
in the host's memory waits on disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from accel.core.units import gib
from accel.memory.pieces import Demand, Piece
from accel.memory.simulate import STREAMED, STRIPS
from accel.memory.ways import ASKED, COSTS, IN_HOST, Way

WHOLE = "whole"
USED = 0.95  # of the room, that blocks fill which need not stay


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
            lines.append(f"  {row.way:<34}{phases_text(row)}; {row.cost}; {taken}")
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


def decide(
    demand: Demand, room: Room, *, offload: str = "auto", slices: int = 1, skip: int = 0
) -> Decision:
    """Return the cheapest way that fits, and why each cheaper one does not.

    Args:
        demand: What the job needs.
        room: What is free.
        offload: Ways that are allowed, by a word of the load options.
        slices: Fewest slices that are tried, those of the job's plan.
        skip: Ways to pass over that seemed to fit and did not.
    """
    table, chosen = [], None
    for way in ASKED[offload]:
        if room.shared and way in IN_HOST:
            continue  # both keep in the host's memory what the device does not need
        row = _fewest(demand, room, way, slices)
        if not row.why_not and skip > 0:
            row, skip = replace(row, why_not="ran out of memory when it was tried"), skip - 1
        table.append(row)
        if chosen is None and not row.why_not:
            chosen = row
    way_out = "" if chosen else _way_out(demand, room, table)
    return Decision(chosen, tuple(table), room, way_out)


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
    act = {
        "denoise": demand.denoise[slices] + demand.kept, "decode": demand.decode[decode],
    }  # fmt: skip
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
    if not table:
        return "this machine has no accelerator to offload from: use load offload auto or disk"
    row = min(table, key=lambda r: (bool(r.host) and max(r.host.values()) > room.host, r.peak))
    phase, size = max(row.device.items(), key=lambda item: item[1])
    if size <= room.device:
        other = "" if row.way is Way.DISK else ", or load offload disk"
        return f"no way fits: {row.way}: {row.why_not}; what helps: more host memory{other}"
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
