"""Weights of a model in the pieces in which they can be placed: components, blocks, layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from torch import nn

from accel.families.components import Encoder, Part
from accel.families.family import Model
from accel.memory.simulate import Peaks

PLAIN = "bf16"
BITS = {"int8": 8, "fp8": 8, "nf4": 4.5}  # a weight of a linear layer, its scale included


@dataclass(frozen=True)
class Piece:
    """Bytes of a component's weights.

    ``block`` is its largest repeated block, ``rest`` everything outside blocks, and ``pair`` the
    largest two layers that run in turn.
    """

    name: str
    weights: int
    block: int = 0
    rest: int = 0
    pair: int = 0

    @property
    def streamed(self) -> int:
        """Return the most bytes at once where one block comes after another."""
        return self.rest + self.block if self.block else self.weights


@dataclass(frozen=True)
class Demand:
    """What a job needs: weights by component, and activations by phase.

    ``encode`` maps an encoder's name to bytes, ``denoise`` a number of slices, ``decode`` a way of
    decoding without loss. ``approximate``: ways of decoding that change the picture. ``kept`` is
    what step rehash keeps, ``packed`` the copies of linear layers in 8 bits. ``at_least``: some
    weights are unknown.
    """

    encoders: tuple[Piece, ...]
    denoisers: tuple[Piece, ...]
    vae: Piece
    denoise: Mapping[int, int]
    decode: Mapping[str, int]
    encode: Mapping[str, int] = field(default_factory=dict)
    approximate: Mapping[str, int] = field(default_factory=dict)
    kept: int = 0
    at_least: bool = False
    packed: int = 0

    @property
    def weights(self) -> int:
        """Return the bytes of all weights."""
        return sum(piece.weights for piece in (*self.encoders, *self.denoisers, self.vae))


def blocks_of(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield path and module of the repeated blocks: members of the outermost lists of modules."""
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList):
            yield from ((f"{name}.{i}", member) for i, member in child.named_children())
        else:
            yield from ((f"{name}.{path}", block) for path, block in blocks_of(child))


def bytes_of(part: nn.Module, kind: str, seen: set[int]) -> int:
    """Return the bytes of a module's own parameters and buffers that are not in ``seen`` yet.

    Linear layers are counted in a kind of weights.
    """
    total = 0
    for name, value in (
        *part.named_parameters(recurse=False),
        *part.named_buffers(recurse=False),
    ):
        if id(value) in seen:  # two names of one parameter
            continue
        seen.add(id(value))
        linear = name == "weight" and isinstance(part, nn.Linear) and kind in BITS
        total += int(value.numel() * (BITS[kind] / 8 if linear else value.itemsize))
    return total


def piece(name: str, part: Part | Encoder, kind: str = PLAIN) -> Piece:
    """Return the pieces of a component, from one of its layers of each kind on the meta device."""
    if isinstance(part, Part):
        module = part.build(**{k: min(1, v) for k, v in part.layers().items()})
    else:
        module = part.build(1)
    return piece_of(name, module, part.weights(), kind)


def piece_of(name: str, module: nn.Module, weights: int, kind: str = PLAIN) -> Piece:
    """Return the pieces of a module that stands for one with ``weights`` bytes in all."""
    inside = [list(block.modules()) for _, block in blocks_of(module)]
    within = {id(part) for block in inside for part in block}
    outside = [part for part in module.modules() if id(part) not in within]

    def total(parts: Iterable[nn.Module], kind: str, seen: set[int]) -> int:
        return sum(bytes_of(part, kind, seen) for part in parts)

    seen: set[int] = set()
    layers = [size for part in module.modules() if (size := bytes_of(part, kind, seen))]
    blocks = [total(block, kind, set()) for block in inside]
    plain = sum(total(block, PLAIN, set()) for block in inside)
    in_blocks = max(0, weights - total(outside, PLAIN, set()))
    rest = total(outside, kind, set())
    return Piece(
        name,
        rest + (in_blocks * sum(blocks) // plain if plain else in_blocks),
        max(blocks, default=0),
        rest,
        max((a + b for a, b in pairwise([0, *layers])), default=0),
    )


def demand(
    model: Model, peaks: Peaks, *, kept: int = 0, packed: int = 0, kind: str = PLAIN
) -> Demand:
    """Return what a job needs of a model.

    Args:
        model: Its components, on the meta device.
        peaks: Their simulated activations.
        kept: Bytes that step rehash keeps.
        packed: Bytes that copies of linear layers add; layers of another kind have none.
        kind: Kind of weights of denoiser and text encoders, one of ``BITS`` or "bf16".
    """
    exact = {way: b for way, b in peaks.decode.items() if "approximate" not in way}
    denoisers = {"denoiser": model.denoiser}
    if model.second is not None:
        denoisers["second denoiser"] = model.second
    return Demand(
        tuple(piece(n, e, kind) for n, e in model.encoders.items()),
        tuple(piece(n, d, kind) for n, d in denoisers.items()),
        piece("vae", model.vae),
        peaks.denoise,
        exact,
        peaks.encode,
        {way: b for way, b in peaks.decode.items() if way not in exact},
        kept,
        bool(peaks.not_counted),
        packed if kind == PLAIN else 0,
    )
