"""Exact strips that run through all of a decoder's upsampling blocks, one strip after the other.

The strips of ``strips.py`` end with each block, so whole pictures lie between blocks, and so do the
last frames that causal convolutions keep for the next ones: most of what a decoder holds. Here the
decoder's front (first convolution and middle block, whose attention sees the whole picture) runs
frame by frame as always, and only its small result is kept. When code looks at the video, the
blocks after the middle one run on a few rows of it for all frames, then on the next rows. Alive are
one strip's pictures and caches; those of the last strip are dropped.

Rows: going back from the rows that a strip must give, each block needs a halo for its convolutions
(``row_spans.py``). Rows that were computed without their neighbors are cut off after each block, so
what is kept comes from the same numbers as without strips. Neighboring strips compute their halos
twice: at 720p in 16 slices Wan's 2.1 decoder multiplies 1.35 times as much as without strips.

Front and tail run in the decoder's own forward, with the other parts passing their input through.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from accel import families
from accel.config import SlicingConfig
from accel.core.stand_in import StandIn
from accel.slicing.block_record import BlockRecord
from accel.slicing.reasons import broken
from accel.slicing.vae.frame_chunks import Chunk
from accel.slicing.vae.row_spans import Unit, parts_of
from accel.slicing.vae.strips import Put, watched, why_whole
from accel.slicing.vae.video_run import Piece, Run, Waiting

INNER = 3  # strips that each block still runs in within a strip, at least
LEAST = 8  # fewest rows of a strip after the middle block; halos are about as large


@dataclass
class Depth:
    """Which part of a decoder runs now; it also says how finely its blocks are cut.

    ``middle`` is what the middle block gives to the tail, ``spans`` the strip's rows for each unit.
    """

    config: SlicingConfig
    part: Literal["", "front", "tail"] = ""
    middle: Tensor | None = None
    spans: list[tuple[int, int]] = field(default_factory=list)
    strips: int = 1
    chunk: Chunk = field(default_factory=Chunk)

    @property
    def slices(self) -> int:
        """Most strips of one block."""
        return self.config.slices // self.strips

    @property
    def min_tokens(self) -> int:
        """Fewest pixels of a strip."""
        return self.config.min_tokens


def in_front(depth: Depth) -> bool:
    """Return whether the front runs now."""
    return depth.part == "front"


class Middle(StandIn):
    """Replaces the middle block's forward: in the tail its result is known."""

    def __init__(self, forward: Callable[..., Any], depth: Depth) -> None:
        super().__init__(forward)
        self._depth = depth

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Run the block, or return what it gave."""
        return self._depth.middle if self._depth.part == "tail" else self.forward(*args, **named)


class Later(StandIn):
    """Replaces the forward of a part after the middle block.

    The front passes through. The tail cuts off the rows that later parts must not see: the part
    stands for ``units`` from place ``at`` on.
    """

    def __init__(
        self, forward: Callable[..., Any], depth: Depth, at: int = 0, units: Sequence[Unit] = ()
    ) -> None:
        super().__init__(forward)
        self._depth, self._at, self._end = depth, at, at + len(units)
        self._scale = math.prod(unit.scale for unit in units)

    def __call__(self, x: Tensor, *rest: Any, **named: Any) -> Any:
        """Run the part on the rows of this strip."""
        depth = self._depth
        if depth.part == "front":
            return x
        y = self.forward(x, *rest, **named)
        if depth.part != "tail" or self._end == self._at or not depth.spans:
            return y
        given, (low, high) = depth.spans[self._at][0] * self._scale, depth.spans[self._end]
        return y[..., low - given : high - given, :]


class Deep(StandIn):
    """Replaces a decoder's forward ``(x, feat_cache, feat_idx, …)``, called frame by frame.

    ``chunked``: it is ``(x)``, called with all frames.
    """

    def __init__(
        self,
        decoder: nn.Module,
        forward: Callable[..., Any],
        depth: Depth,
        units: Sequence[Unit],
        record: BlockRecord,
        streamed: bool,
        chunked: bool,
    ) -> None:
        super().__init__(forward)
        self._decoder, self._depth, self.units = decoder, depth, units
        self._chunked = chunked
        self._record, self._streamed, self._broken = record, streamed, ""
        self._names = list(inspect.signature(type(decoder).forward).parameters)[1:]

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Run the front and return frames that wait, or run the whole decoder."""
        if args and isinstance(args[0], Run):
            return args[0].compute()
        given = dict(zip(self._names, args, strict=False), **named)
        if self._chunked:
            return self._video(given)
        caches: Any = given.get("feat_cache")
        if torch.compiler.is_compiling() or not self._depth_of(given, caches):
            return self.forward(*args, **named)
        run = caches[-1]
        features = self._run("front", given)
        pixel = given.pop(self._names[0])[..., :1, :1].clone()
        more = {k: v for k, v in given.items() if k not in ("feat_cache", "feat_idx")}
        run.pieces.append(Piece(self._away(features), pixel, more))
        return Waiting(run, len(run.pieces) - 1, len(run.pieces))

    def _depth_of(self, given: dict[str, Any], caches: Any) -> bool:
        """Return whether this call belongs to a run in deep strips; the first one begins it.

        The run is kept in the last place of the caller's caches, which the front does not use, so
        that it goes with them.
        """
        if not caches or isinstance(caches[-1], Run):
            return bool(caches)
        strips = 1 if any(c is not None for c in caches) else self._most(given[self._names[0]])
        if strips > 1:
            caches[-1] = self._begin(strips, len(caches))
        return strips > 1

    def _most(self, x: Tensor) -> int:
        """Return the number of strips for a latent, 1 if it may not be cut."""
        strips = min(self._depth.config.slices // INNER, x.shape[-2] // LEAST)
        if strips < 2 or not self.alive or self._broken or why_whole(x):
            return 1
        return 1 if watched(self._decoder, self.forward) else strips

    def _begin(self, strips: int, caches: int) -> Run:
        self._record.sliced[strips] += 1
        self._record.note = f"{strips} strips through all later blocks of the decoder"
        return Run(self, strips, caches)

    def _video(self, given: dict[str, Any]) -> Any:
        """Return all frames of a decoder that has no caches of its own."""
        x = given[self._names[0]]
        strips = 1 if torch.compiler.is_compiling() else self._most(x)
        if strips < 2:
            return self.forward(**given)
        features, run = self._run("front", given), self._begin(strips, 1)
        run.pieces += [Piece(f, x[:, :, :1, :1, :1], {}) for f in features.split(1, 2)]
        try:
            with torch.no_grad():
                run.in_strips()
        except Exception as error:
            out = self.forward(**given)  # raises what the model itself would
            self.failed(broken(error))
            return out
        return torch.cat(run.frames(0, len(run.pieces)), 2)

    def _run(self, part: Literal["front", "tail"], given: dict[str, Any]) -> Any:
        self._depth.part = part
        try:
            return self.forward(**given)
        finally:
            self._depth.part = ""

    def through_module(self, run: Run) -> None:
        """Compute a run's frames in a call of the decoder, whose hooks may move its weights."""
        with torch.no_grad():
            self._decoder(run)

    def tail(
        self, piece: Piece, caches: list[Any], plan: list[tuple[int, int]], strips: int
    ) -> Tensor:
        """Return the frames of a piece, in the rows of ``plan`` or all."""
        depth, x = self._depth, piece.features
        low, high = plan[0] if plan else (0, x.shape[-2])
        depth.spans, depth.strips = plan, strips
        depth.middle = x[..., low:high, :].to(piece.pixel.device)
        given = {self._names[0]: piece.pixel, **piece.named}
        if self._chunked:
            first = caches[0] is None
            caches[0] = {} if first else caches[0]
            depth.chunk.begin(caches[0], first)
        else:
            given |= {"feat_cache": caches, "feat_idx": [0]}
        try:
            y = self._run("tail", given)
        finally:
            depth.chunk.end()
            depth.spans, depth.strips, depth.middle = [], 1, None
        return self._away(y)

    def _away(self, x: Tensor) -> Tensor:
        """Return what waits, on the CPU if frames are streamed there."""
        return x.to("cpu") if self._streamed and x.device.type != "cpu" else x

    def failed(self, reason: str) -> None:
        """Do not try again after strips raised an error and whole pictures did not."""
        self._broken = reason
        self._record.whole[reason] += 1


def replace(decoder: Any, depth: Depth, record: BlockRecord, put: Put, *, streamed: bool) -> None:
    """Put hooks on a decoder that can go frame by frame, if all its later parts are known."""
    kind = families.decoders()[type(decoder).__name__]
    parts = parts_of(decoder)
    chunked = kind.chunks is not None
    if kind.head is None or not (kind.pieces == "joined" or chunked) or not parts:
        return
    units = [Unit(s.halo, s.scale) for _, s in parts if not s.beside] + [Unit(1, 1)]
    at = 0
    for block in decoder.up_blocks:
        mine = [(part, strip) for part, strip in parts if part in set(block.modules())]
        many = sum(not strip.beside for _, strip in mine)
        here = at
        for part, strip in mine:
            first, count = (at, many) if strip.beside else (here, 1)
            _later(part, depth, put, first, units[first : first + count])
            here += not strip.beside
        at += many
        _later(block, depth, put)
    for name in kind.head:
        _later(getattr(decoder, name), depth, put)
    _later(decoder.conv_out, depth, put, at, units[at:])
    put(decoder.mid_block, lambda f: Middle(f, depth))
    put(decoder, lambda f: Deep(decoder, f, depth, units, record, streamed, chunked))


def _later(
    part: nn.Module, depth: Depth, put: Put, at: int = 0, units: Sequence[Unit] = ()
) -> None:
    put(part, lambda f: Later(f, depth, at, units))
