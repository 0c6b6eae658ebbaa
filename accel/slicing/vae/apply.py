"""Apply exact strips to a VAE's decoder, and send finished frames to the CPU."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

from torch import nn

from accel import families
from accel.config import SlicingConfig
from accel.core.diffusers_bridge import innermost
from accel.core.stand_in import put_in_place
from accel.slicing.block_record import BlockRecord
from accel.slicing.vae import (
    cached_norm_strips,
    deep_strips,
    frame_chunks,
    norm_strips,
    pixel_norm_strips,
    stream,
)

VAE = "vae.decoder"  # name of the decoder among the blocks


def apply_strips(
    vae: Any, config: SlicingConfig, undo: ExitStack, streamed: bool = True
) -> dict[str, BlockRecord]:
    """Run the decoder of ``vae`` in strips, if its kind is known here.

    If ``streamed`` and ``config`` allow it, finished frames go to the CPU. The functions that undo
    it are put on ``undo`` as it is done. Returns one record for all blocks, or none.
    """
    decoder: Any = getattr(vae, "decoder", None)
    if not isinstance(decoder, nn.Module):
        return {}
    record, changed = BlockRecord(), list[str]()

    def put(module: nn.Module, make: Callable[[Callable[..., Any]], Any]) -> None:
        holder, name = innermost(module)
        changed.append(name)
        undo.callback(put_in_place(holder, name, make(getattr(holder, name))))

    sends = stream.replacement(decoder, record) if streamed and config.stream_frames else None
    kind = families.decoders().get(type(decoder).__name__)
    if kind is not None and kind.head is not None:
        depth = deep_strips.Depth(config)
        if kind.chunks is not None:
            front = partial(deep_strips.in_front, depth)
            frame_chunks.replace(decoder, kind.chunks, depth.chunk, put, front)
        pixel_norm_strips.replace(decoder, depth, record, put)
        deep_strips.replace(decoder, depth, record, put, streamed=sends is not None)
    elif kind is not None and kind.caches:
        if kind.chunks is not None:
            frame_chunks.by_frames(decoder, kind.chunks, record, put)
        cached_norm_strips.replace(decoder, config, record, put)
    elif norm_strips.known(decoder):
        norm_strips.replace(decoder, config, record, put)
    if sends:
        put(decoder, sends)
    return {VAE: record} if changed else {}
