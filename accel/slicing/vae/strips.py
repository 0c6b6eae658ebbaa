"""Exact strips in a video VAE's decoder: each block runs on some rows of the picture at a time.

A convolution of width 3 sees one row above and one below. So a strip gets ``halo`` more rows on
each side (two for two convolutions), and these rows of the result are discarded: what is kept was
computed from the same numbers as without strips. That holds where norms look at one pixel only
(Wan, Qwen-Image, HunyuanVideo 1.5, LTX); for a GroupNorm see ``norm_strips.py``. The VAEs of Wan
and Qwen-Image keep the last frames of each convolution's input for the next frames; these caches
are cut and joined in the same way.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from accel.core.autocast import autocasts
from accel.core.cuts import rows
from accel.core.stand_in import StandIn, behind
from accel.core.watchers import watcher
from accel.slicing.block_record import BlockRecord
from accel.slicing.reasons import BROKEN, broken

LEAST_ROWS = 4  # fewest rows of a strip; with fewer, most computed rows would be discarded


class Cutting(Protocol):
    """How finely parts are cut: most strips of a part, and fewest pixels of one."""

    @property
    def slices(self) -> int:
        """Most strips."""

    @property
    def min_tokens(self) -> int:
        """Fewest pixels of a strip."""


Put = Callable[[nn.Module, Callable[[Callable[..., Any]], Any]], None]


def keep(whole: Tensor | None, part: Tensor, first: int, height: int) -> Tensor:
    """Put ``part`` [..., h, W] into rows first … first + h of ``whole`` [..., height, W].

    The first part makes ``whole``, with its own order of dimensions in memory.
    """
    if whole is None:
        *start, _, width = part.shape
        order = sorted(range(part.dim()), key=part.stride, reverse=True)
        size = [(*start, height, width)[i] for i in order]
        whole = part.new_empty(size).permute([order.index(i) for i in range(part.dim())])
    whole[..., first : first + part.shape[-2], :] = part
    return whole


def cut(cache: Any, low: int, high: int) -> Any:
    """Return rows low … high of a tensor [..., H, W]; anything else as it is."""
    return cache[..., low:high, :] if isinstance(cache, Tensor) else cache


def why_whole(x: Tensor) -> str:
    """Return why nothing may run in strips now, or ""."""
    if torch.is_grad_enabled():
        return "needs gradients"
    return "under autocast" if autocasts(x) else ""


class Strips(StandIn):
    """Base of what runs ``part`` in strips: it decides, counts, and falls back to ``forward``.

    What is not accel's and may look at a tensor inside has to see the whole picture.
    """

    def __init__(
        self,
        part: nn.Module,
        forward: Callable[..., Any],
        config: Cutting,
        record: BlockRecord,
    ) -> None:
        super().__init__(forward)
        self._part, self._config, self._record = part, config, record
        self._broken, self._overwrote = "", False
        self._picture = list(inspect.signature(type(part).forward).parameters)[1]

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Run the part in strips where that is possible; the picture is its first argument."""
        x, *rest = args or (named.pop(self._picture),)
        if not self.alive or torch.compiler.is_compiling():
            return self.forward(x, *rest, **named)
        strips, reason = self._most(x), self._broken or self._why_whole(x, *rest, **named)
        if not reason and strips < 2:
            reason = "small picture"
        if not reason:
            try:
                out = self._strips(strips, x, *rest, **named)
            except Exception as error:
                if self._overwrote:
                    raise  # the part's input is gone
                reason = broken(error)
            else:
                self._record.sliced[strips] += 1
                return out
        out = self.forward(x, *rest, **named)  # raises what the model itself would
        if reason.startswith(BROKEN):
            self._broken = reason
        self._record.whole[reason] += 1
        return out

    def _most(self, x: Tensor) -> int:
        """Return the most strips that leave each enough pixels and rows."""
        height, width = x.shape[-2:]
        most = min(height * width // self._config.min_tokens, height // LEAST_ROWS)
        return min(self._config.slices, most)

    def _why_whole(self, x: Tensor, *rest: Any, **named: Any) -> str:
        return why_whole(x) or watched(self._part, self.forward)

    def _strips(self, strips: int, x: Tensor, *rest: Any, **named: Any) -> Any:
        raise NotImplementedError


def watched(part: nn.Module, forward: Callable[..., Any]) -> str:
    """Return who has to see whole tensors inside a part, "" if nobody; ``forward`` is the part's.

    Hooks on the part itself see whole ones anyway.
    """
    if getattr(behind(forward), "__func__", None) is not type(part).forward:
        return "somebody replaced its forward"
    inner = ((path, watcher(child)) for path, child in part.named_modules() if path)
    return next((f"{who} on its {path}" for path, who in inner if who), "")


class Block(Strips):
    """Replaces the forward of a block without caches, x [B, C, T, H, W].

    Its other arguments have no rows. ``halo`` and ``scale``: see ``families.Strip``.
    """

    def __init__(self, *args: Any, halo: int, scale: int, **named: Any) -> None:
        super().__init__(*args, **named)
        self._halo, self._scale = halo, scale

    def _strips(self, strips: int, x: Tensor, *rest: Any, **named: Any) -> Any:
        return self._joined(
            x, strips, lambda _, low, high: self.forward(x[..., low:high, :], *rest, **named)
        )

    def _joined(self, x: Tensor, strips: int, strip: Callable[..., Tensor]) -> Tensor:
        """Return the rows that are kept of every ``strip((start, stop), low, high)``."""
        height, scale = x.shape[-2], self._scale
        out: Tensor | None = None
        for start, stop, low, high in rows(height, strips, self._halo):
            y = strip((start, stop), low, high)
            kept = cut(y, (start - low) * scale, (stop - low) * scale)
            out = keep(out, kept, start * scale, height * scale)
        return out  # type: ignore[return-value]


class CachedBlock(Block):
    """Replaces the forward of a block ``(x, feat_cache, feat_idx)``."""

    def _strips(self, strips: int, x: Tensor, *rest: Any, **named: Any) -> Any:
        given = dict(zip(("feat_cache", "feat_idx"), rest, strict=False), **named)
        feat_cache: Any = given.get("feat_cache")
        feat_idx = given.get("feat_idx") or [0]
        height, first = x.shape[-2], feat_idx[0]
        caches: dict[int, Any] = {}  # for the next frames
        index = [first]

        def strip(inner: tuple[int, int], low: int, high: int) -> Tensor:
            start, stop = inner
            index[0] = first
            here = None if feat_cache is None else [cut(c, low, high) for c in feat_cache]
            y = self.forward(x[..., low:high, :], here, index)
            for i in range(first, index[0]):
                new = here[i]  # type: ignore[index]
                if isinstance(new, Tensor):
                    new = keep(caches.get(i), cut(new, start - low, stop - low), start, height)
                caches[i] = new
            return y

        out = self._joined(x, strips, strip)
        for i, cache in caches.items():
            feat_cache[i] = cache
        feat_idx[0] = index[0]
        return out
