"""The decoder of a VAE: exact strips in its blocks, and finished frames to the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from accel.config import SlicingConfig
from accel.seam import Undo
from accel.slicing import norm_strips, stream, strips
from accel.slicing.apply import Record, innermost, put_in_place

VAE = "vae.decoder"  # its name among the blocks


def apply(
    vae: Any, config: SlicingConfig, undo: list[Undo], streamed: bool = True
) -> dict[str, Record]:
    """Run the decoder of ``vae`` in strips, if it is of a kind known here, and, if ``streamed``
    and ``config`` allow it, send finished frames to the CPU. What has to be undone is appended to
    ``undo`` as it is done. Returns one record for all blocks, or none.
    """
    decoder: Any = getattr(vae, "decoder", None)
    if not isinstance(decoder, nn.Module):
        return {}
    record, before = Record(), len(undo)

    def put(module: nn.Module, make: Callable[[Callable[..., Any]], Any]) -> None:
        holder, name = innermost(module)
        undo.append(put_in_place(holder, name, make(getattr(holder, name))))

    if type(decoder).__name__ in strips.DECODERS:
        strips.replace(decoder, config, record, put)
    elif norm_strips.known(decoder):
        norm_strips.replace(decoder, config, record, put)
    if streamed and config.stream_frames and (make := stream.replacement(decoder, record)):
        put(decoder, make)
    return {VAE: record} if len(undo) > before else {}
