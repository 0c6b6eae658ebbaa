"""Exact strips in the decoders of video VAEs whose norms look at one pixel only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from accel import families
from accel.core.diffusers_bridge import CHANNELS_LAST_NORM, innermost
from accel.families.family import Strip
from accel.slicing.block_record import BlockRecord
from accel.slicing.vae.last_convolution import Head, Through, Together
from accel.slicing.vae.strips import Block, CachedBlock, Cutting, Put


def replace(decoder: Any, config: Cutting, record: BlockRecord, put: Put) -> None:
    """Put hooks on all known blocks, and on the head, of a decoder with a known ``head``."""
    known = families.strips()
    for part in decoder.modules():
        strip = known.get(type(part).__name__)
        if strip is None:
            continue
        if getattr(part, "per_channel_scale1", None) is not None:
            record.whole["draws noise for the whole picture"] += 1
            continue
        put(part, _block(part, config, record, families.sized(part, strip)))
    head = families.decoders()[type(decoder).__name__].head
    if head is not None and getattr(decoder, "time_embedder", None) is None:
        _put_head(decoder, head, put, config, record)  # an embedder modulates after the norm


def _block(
    part: nn.Module, config: Cutting, record: BlockRecord, strip: Strip
) -> Callable[[Callable[..., Any]], Any]:
    kind = CachedBlock if strip.cached else Block
    return lambda forward: kind(part, forward, config, record, halo=strip.halo, scale=strip.scale)


def _put_head(
    decoder: Any, names: tuple[str, str], put: Put, config: Cutting, record: BlockRecord
) -> None:
    norm, activation = (getattr(decoder, name) for name in names)
    first, second = (getattr(*innermost(m)) for m in (norm, activation))
    last = type(norm).__name__ == CHANNELS_LAST_NORM  # takes channels last

    def before(x: Tensor) -> Tensor:
        y = first(x.movedim(1, -1)).movedim(-1, 1) if last else first(x)
        return second(y)

    end = decoder.conv_out
    together = Together((norm, activation, end))
    put(end, lambda f: Head(end, f, config, record, before=before, together=together))
    put(norm, lambda f: Through(f, together))
    put(activation, lambda f: Through(f, together))
