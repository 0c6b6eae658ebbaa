"""A video on its way through a decoder: what the front made, and frames that wait."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from accel.core.cuts import rows
from accel.slicing.reasons import broken
from accel.slicing.vae.lazy_video import LazyVideo
from accel.slicing.vae.row_spans import Unit, spans
from accel.slicing.vae.strips import keep


@dataclass(frozen=True)
class Piece:
    """What the front made of one call: features [B, C, T, H, W], and what the tail is called with.

    ``pixel`` stands for the latent.
    """

    features: Tensor
    pixel: Tensor
    named: dict[str, Any]


class Tail(Protocol):
    """What runs the blocks after the middle one; ``units`` are their halos and scales."""

    units: Sequence[Unit]

    def tail(
        self, piece: Piece, caches: list[Any], plan: list[tuple[int, int]], strips: int
    ) -> Tensor:
        """Return the frames of a piece, in the rows of ``plan`` or all."""

    def through_module(self, run: Run) -> None:
        """Compute a run's frames in a call of the decoder."""

    def failed(self, reason: str) -> None:
        """Do not try again."""


class Run:
    """One video on its way through a decoder: pieces of the front, and frames of the tail."""

    def __init__(self, deep: Tail, strips: int, caches: int) -> None:
        self._deep, self._strips, self._count = deep, strips, caches
        self.pieces: list[Piece] = []
        self._frames: dict[int, Tensor] = {}
        self._ran = False
        self._caches: list[Any] = []
        self._at = 0  # the piece that goes on with these caches

    def frames(self, first: int, stop: int) -> list[Tensor]:
        """Return the frames of some pieces, and forget them."""
        if any(i not in self._frames for i in range(first, stop)):
            self._deep.through_module(self)
        return [self._frames.pop(i) for i in range(first, stop)]

    def compute(self) -> None:
        """Run the tail: in strips the first time.

        Who looks at a video before it ends gets what follows with whole pictures, whose caches can
        go on.
        """
        if not self._ran:
            self._ran = True
            try:
                self.in_strips()
            except Exception as error:
                self._whole()  # raises what the model itself would
                self._deep.failed(broken(error))
            return
        self._whole()

    def in_strips(self) -> None:
        """Compute all frames, strip after strip."""
        deep, found = self._deep, dict[int, Tensor]()
        height = self.pieces[0].features.shape[-2]
        for start, stop, _, _ in rows(height, self._strips, 0):
            caches = [None] * self._count
            plan = spans(height, start, stop, deep.units)
            scale = (plan[-1][1] - plan[-1][0]) // (stop - start)
            for i, piece in enumerate(self.pieces):
                y = deep.tail(piece, caches, plan, self._strips)
                found[i] = keep(found.get(i), y, start * scale, height * scale)
        self._frames = found

    def _whole(self) -> None:
        if not self._caches or any(i not in self._frames for i in range(self._at)):
            self._caches, self._at, self._frames = [None] * self._count, 0, {}
        while self._at < len(self.pieces):
            piece = self.pieces[self._at]
            self._frames[self._at] = self._deep.tail(piece, self._caches, [], 1)
            self._at += 1


class Waiting(LazyVideo):
    """Frames of some pieces of a run, computed when code looks at them."""

    def __init__(self, run: Run, first: int, stop: int) -> None:
        self._run: Run | None = run
        self._first, self._stop = first, stop
        self._video: Tensor | None = None

    def whole(self) -> Tensor:
        """Return the frames [B, C, T, H, W], always the same tensor."""
        if self._video is None and self._run is not None:
            frames, self._run = self._run.frames(self._first, self._stop), None
            self._video = frames[0] if len(frames) == 1 else torch.cat(frames, 2)
        return self._video  # type: ignore[return-value]

    @classmethod
    def joined(cls, parts: Sequence[Any]) -> Waiting | None:
        """Return neighbors of one run as one; others must be looked at."""
        if all(type(x) is cls and x._run is not None for x in parts) and all(
            a._run is b._run and a._stop == b._first for a, b in pairwise(parts)
        ):
            return cls(parts[0]._run, parts[0]._first, parts[-1]._stop)
        return None
