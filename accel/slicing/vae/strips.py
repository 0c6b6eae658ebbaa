"""Exact strips in a video VAE's decoder: each block runs on some rows of the picture at a time.

A convolution of width 3 sees one row above and one below. So a strip gets ``halo`` more rows on
each side (two for two convolutions), and these rows of the result are discarded: what is kept was
computed from the same numbers as without strips. That holds where norms look at one pixel only
(Wan, Qwen-Image, HunyuanVideo 1.5, LTX); for a GroupNorm see ``norm_strips.py``. The VAEs of Wan
and Qwen-Image keep the last frames of each convolution's input for the next frames; these caches
are cut and joined in the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace as replace_fields
from typing import Any

import torch
from torch import Tensor, nn

from accel import families
from accel.config import SlicingConfig
from accel.core.cuts import rows
from accel.core.diffusers_bridge import CHANNELS_LAST_NORM, innermost, offloaded
from accel.core.stand_in import StandIn
from accel.families.family import Strip
from accel.slicing.block_record import BlockRecord

LEAST_ROWS = 4  # fewest rows of a strip; with fewer, most computed rows would be discarded
Put = Callable[[nn.Module, Callable[[Callable[..., Any]], Any]], None]


def _keep(whole: Tensor | None, part: Tensor, first: int, height: int) -> Tensor:
    """Put ``part`` [..., h, W] into rows first … first + h of ``whole`` [..., height, W].

    The first part makes ``whole``, with its own order of dimensions in memory.
    """
    if whole is None:
        *start, _, width = part.shape
        order = sorted(range(part.dim()), key=part.stride, reverse=True)
        whole = torch.empty_permuted(
            (*start, height, width), order, dtype=part.dtype, device=part.device
        )
    whole[..., first : first + part.shape[-2], :] = part
    return whole


def _cut(cache: Any, low: int, high: int) -> Any:
    return cache[..., low:high, :] if isinstance(cache, Tensor) else cache


def _possible() -> bool:
    return not (torch.compiler.is_compiling() or torch.is_grad_enabled())


class _Strips(StandIn):
    """Base of blocks and heads that run in strips: it counts the strips.

    ``record`` is a ``BlockRecord``.
    """

    def __init__(self, forward: Callable[..., Any], config: SlicingConfig, record: Any) -> None:
        super().__init__(forward)
        self._config, self._record = config, record

    def _count(self, x: Tensor) -> int:
        if not self.alive or torch.compiler.is_compiling():
            return 1
        height, width = x.shape[-2:]
        most = min(height * width // self._config.min_tokens, height // LEAST_ROWS)
        strips = 1 if torch.is_grad_enabled() else min(self._config.slices, most)
        if strips > 1:
            self._record.sliced[strips] += 1
        else:
            reason = "needs gradients" if torch.is_grad_enabled() else "small picture"
            self._record.whole[reason] += 1
        return strips


class Block(_Strips):
    """Replaces the forward of a block without caches, x [B, C, T, H, W].

    Its other arguments have no rows. ``halo`` and ``scale``: see ``families.Strip``.
    """

    def __init__(self, *args: Any, halo: int, scale: int, **named: Any) -> None:
        super().__init__(*args, **named)
        self._halo, self._scale = halo, scale

    def __call__(self, x: Tensor, *rest: Any, **named: Any) -> Tensor:
        """Run the block in strips where that is possible."""
        if (strips := self._count(x)) < 2:
            return self.forward(x, *rest, **named)
        return self._joined(
            x, strips, lambda _, low, high: self.forward(x[..., low:high, :], *rest, **named)
        )

    def _joined(self, x: Tensor, strips: int, strip: Callable[..., Tensor]) -> Tensor:
        """Return the rows that are kept of every ``strip((start, stop), low, high)``."""
        height, scale = x.shape[-2], self._scale
        out: Tensor | None = None
        for start, stop, low, high in rows(height, strips, self._halo):
            y = strip((start, stop), low, high)
            kept = _cut(y, (start - low) * scale, (stop - low) * scale)
            out = _keep(out, kept, start * scale, height * scale)
        return out  # type: ignore[return-value]


class CachedBlock(Block):
    """Replaces the forward of a block ``(x, feat_cache, feat_idx)``."""

    def __call__(self, x: Tensor, feat_cache: Any = None, feat_idx: Any = None) -> Tensor:
        """Run the block in strips where that is possible."""
        feat_idx = [0] if feat_idx is None else feat_idx
        if (strips := self._count(x)) < 2:
            return self.forward(x, feat_cache, feat_idx)
        height, first = x.shape[-2], feat_idx[0]
        caches: dict[int, Any] = {}  # for the next frames
        index = [first]

        def strip(inner: tuple[int, int], low: int, high: int) -> Tensor:
            start, stop = inner
            index[0] = first
            cut = None if feat_cache is None else [_cut(c, low, high) for c in feat_cache]
            y = self.forward(x[..., low:high, :], cut, index)
            for i in range(first, index[0]):
                new = cut[i]  # type: ignore[index]
                if isinstance(new, Tensor):
                    new = _keep(caches.get(i), _cut(new, start - low, stop - low), start, height)
                caches[i] = new
            return y

        out = self._joined(x, strips, strip)
        for i, cache in caches.items():
            feat_cache[i] = cache
        feat_idx[0] = index[0]
        return out


class Through(StandIn):
    """Replaces the head's norm and activation, which run in strips in ``Head``."""

    def __init__(self, forward: Callable[..., Any], together: Callable[[], bool]) -> None:
        super().__init__(forward)
        self._together = together

    def __call__(self, x: Tensor) -> Any:
        """Return ``x`` unchanged where ``Head`` does the work."""
        return x if self.alive and self._together() else self.forward(x)


class Head(_Strips):
    """Replaces the forward of the last convolution ``(x, cache_x)``.

    It runs norm, activation and convolution of one strip after the other. The cache holds the
    values before the norm. ``together``: whether ``Through`` passes its input on unchanged.
    """

    def __init__(
        self, *args: Any, before: Callable[[Tensor], Tensor], together: Callable[[], bool]
    ) -> None:
        super().__init__(*args)
        self._before, self._together = before, together

    def __call__(self, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        """Run norm, activation and convolution in strips where that is possible."""
        if not self.alive or not self._together():
            return self.forward(x) if cache_x is None else self.forward(x, cache_x)
        strips = max(1, self._count(x))
        out: Tensor | None = None
        for start, stop, low, high in rows(x.shape[-2], strips, 1):
            caches = () if cache_x is None else (self._before(_cut(cache_x, low, high)),)
            y = self.forward(self._before(_cut(x, low, high)), *caches)
            out = _keep(out, _cut(y, start - low, stop - low), start, x.shape[-2])
        return out  # type: ignore[return-value]


def replace(decoder: Any, config: SlicingConfig, record: BlockRecord, put: Put) -> None:
    """Put hooks on all known blocks, and on the head, of a decoder with a known ``head``."""
    known = families.strips()
    for part in decoder.modules():
        strip = known.get(type(part).__name__)
        if strip is None:
            continue
        if getattr(part, "per_channel_scale1", None) is not None:
            record.whole["draws noise for the whole picture"] += 1
            continue
        put(part, _block(config, record, _sized(part, strip)))
    head = families.decoders()[type(decoder).__name__].head
    if head is not None and getattr(decoder, "time_embedder", None) is None:
        _put_head(decoder, head, put, config, record)  # an embedder modulates after the norm


def _sized(part: nn.Module, strip: Strip) -> Strip:
    """Return the strip record with the scale of this block."""
    if getattr(part, "mode", "") == "none":  # a resampler that keeps the size
        return replace_fields(strip, scale=1)
    stride = getattr(part, "stride", None)
    return replace_fields(strip, scale=stride[1]) if stride else strip


def _block(
    config: SlicingConfig, record: BlockRecord, strip: Strip
) -> Callable[[Callable[..., Any]], Any]:
    kind = CachedBlock if strip.cached else Block
    return lambda forward: kind(forward, config, record, halo=strip.halo, scale=strip.scale)


def _put_head(
    decoder: Any, names: tuple[str, str], put: Put, config: SlicingConfig, record: BlockRecord
) -> None:
    norm, activation = (getattr(decoder, name) for name in names)
    first, second = (getattr(*innermost(m)) for m in (norm, activation))
    last = type(norm).__name__ == CHANNELS_LAST_NORM  # takes channels last

    def before(x: Tensor) -> Tensor:
        y = first(x.movedim(1, -1)).movedim(-1, 1) if last else first(x)
        return second(y)

    def together() -> bool:
        return _possible() and not offloaded(norm)

    put(decoder.conv_out, lambda f: Head(f, config, record, before=before, together=together))
    put(norm, lambda f: Through(f, together))
    put(activation, lambda f: Through(f, together))
