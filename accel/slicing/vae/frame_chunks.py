"""Frame by frame through a causal decoder that takes all frames of a video at once.

HunyuanVideo 1.5 and Mochi hand their decoder the whole video. Its convolutions see earlier frames
only, and pad the start with the first frame. So a convolution that keeps the last frames of its
input goes on with the next ones as if it had seen them all, from the same numbers. HunyuanVideo's
temporal upsampler makes one frame of the first and two of each later one; its middle block's
attention has a mask of all tokens by all tokens, by which a frame sees itself and earlier ones.
Attention of one frame after the other needs no mask. Mochi's decoder has no attention and
normalizes each frame.

``deep_strips.py`` runs the tail so. State belongs to one strip and to one call of a part: a part
that runs in strips itself calls its convolutions several times per chunk, in the same order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel.core.stand_in import StandIn
from accel.families.family import Chunks
from accel.slicing.block_record import BlockRecord
from accel.slicing.reasons import broken
from accel.slicing.vae.strips import Put, watched, why_whole


@dataclass
class Chunk:
    """A chunk of frames on its way through the tail.

    ``kept`` has the last frames of each convolution's input by convolution and call, None outside
    of chunks; ``first``: nothing came before it; ``skip``: frames that stand in front of it.
    """

    kept: dict[tuple[int, int], Tensor] | None = None
    first: bool = True
    skip: int = 0
    calls: Counter[int] = field(default_factory=Counter)

    def begin(self, kept: dict[tuple[int, int], Tensor], first: bool) -> None:
        """Go on with what a strip's earlier chunks kept."""
        self.kept, self.first = kept, first
        self.calls.clear()

    def end(self) -> None:
        """Leave the chunk."""
        self.kept = None


class CausalConv(StandIn):
    """Replaces a causal convolution's forward, x [B, C, T, H, W]."""

    def __init__(self, part: Any, forward: Callable[..., Any], chunk: Chunk) -> None:
        super().__init__(forward)
        self._part, self._chunk = part, chunk

    def __call__(self, x: Tensor) -> Any:
        """Convolve a chunk, with the frames before it in place of padding."""
        chunk, part = self._chunk, self._part
        *sides, before, _ = part.time_causal_padding
        if chunk.kept is None or not before:
            return self.forward(x)
        key = (id(self), chunk.calls[id(self)])
        chunk.calls[id(self)] += 1
        x = x[:, :, chunk.skip :]
        if chunk.first:
            past = x[:, :, :1].expand(-1, -1, before, -1, -1)
        elif (past := chunk.kept[key]).shape[3:] != x.shape[3:]:
            raise RuntimeError(f"rows {tuple(x.shape[3:])} go on from {tuple(past.shape[3:])}")
        x = torch.cat([past, x], 2)
        chunk.kept[key] = x[:, :, -before:].clone()
        y = part.conv(F.pad(x, (*sides, 0, 0), mode=part.pad_mode))
        return F.pad(y, (0, 0, 0, 0, chunk.skip, 0)) if chunk.skip else y


class TemporalUpsampler(StandIn):
    """Replaces the forward of an upsampler that treats the first frame apart."""

    def __init__(self, forward: Callable[..., Any], chunk: Chunk) -> None:
        super().__init__(forward)
        self._chunk = chunk

    def __call__(self, x: Tensor) -> Any:
        """Upsample a chunk; a later one gets a frame in front, which is dropped again."""
        chunk = self._chunk
        if chunk.kept is None or chunk.first:
            return self.forward(x)
        chunk.skip = 1
        try:
            return self.forward(torch.cat([x[:, :, :1], x], 2))[:, :, 1:]
        finally:
            chunk.skip = 0


class CausalAttention(StandIn):
    """Replaces the forward of an attention block over frames, x [B, C, T, H, W].

    ``by_frames`` says whether it runs frame by frame now.
    """

    def __init__(
        self, part: Any, forward: Callable[..., Any], by_frames: Callable[[], bool]
    ) -> None:
        super().__init__(forward)
        self._part, self._by_frames = part, by_frames

    def __call__(self, x: Tensor) -> Any:
        """Attend from each frame to itself and earlier ones."""
        if not self.alive or not self._by_frames() or x.shape[2] < 2:
            return self.forward(x)
        part, size = self._part, x.shape[-2] * x.shape[-1]
        normal = part.norm(x)
        q, k, v = (
            to(normal).flatten(2).transpose(1, 2).unsqueeze(1).contiguous()
            for to in (part.to_q, part.to_k, part.to_v)
        )  # [B, 1, T·H·W, C]
        frames = [
            F.scaled_dot_product_attention(
                q[:, :, at : at + size], k[:, :, : at + size], v[:, :, : at + size]
            )
            for at in range(0, q.shape[2], size)
        ]
        y = torch.cat(frames, 2).squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:])
        return part.proj_out(y) + x


def replace(
    decoder: nn.Module, names: Chunks, chunk: Chunk, put: Put, by_frames: Callable[[], bool]
) -> None:
    """Put hooks on the parts of a decoder that look at several frames, by class name."""
    for part in decoder.modules():
        kind = type(part).__name__
        if kind == names.convolution:
            put(part, partial(CausalConv, part, chunk=chunk))
        elif kind == names.upsampler and getattr(part, names.temporal):
            put(part, lambda f: TemporalUpsampler(f, chunk))
        elif kind == names.attention:
            put(part, partial(CausalAttention, part, by_frames=by_frames))


class CausalPair(CausalConv):
    """Replaces the forward ``(x, conv_cache)`` of a causal convolution that also returns a cache.

    With padding by the first frame it neither reads nor makes one.
    """

    def __call__(self, x: Tensor, conv_cache: Any = None) -> Any:
        """Convolve a chunk, with the frames before it in place of padding."""
        if self._chunk.kept is None or self._part.pad_mode != "replicate":
            return self.forward(x, conv_cache=conv_cache)
        return super().__call__(x), None


class ByFrames(StandIn):
    """Replaces a decoder's forward ``(x, conv_cache)``: latent frames run one after the other.

    A caller that hands in pieces and caches is left alone.
    """

    def __init__(
        self, decoder: nn.Module, forward: Callable[..., Any], chunk: Chunk, record: BlockRecord
    ) -> None:
        super().__init__(forward)
        self._decoder, self._chunk, self._record = decoder, chunk, record
        self._broken = False

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Decode x [B, C, T, H, W]."""
        x = args[0] if len(args) == 1 and not named else None
        if x is None or torch.compiler.is_compiling() or not self._possible(x):
            return self.forward(*args, **named)
        try:
            kept: dict[tuple[int, int], Tensor] = {}
            frames = [self._frame(part, kept, at == 0) for at, part in enumerate(x.split(1, 2))]
        except Exception as error:
            out = self.forward(x)  # raises what the model itself would
            self._broken = True
            self._record.whole[broken(error)] += 1
            return out
        self._record.note = "one latent frame after the other"
        return torch.cat(frames, 2), {}

    def _possible(self, x: Tensor) -> bool:
        busy = not self.alive or self._broken or x.shape[2] < 2 or why_whole(x)
        return not busy and not watched(self._decoder, self.forward)

    def _frame(self, x: Tensor, kept: dict[tuple[int, int], Tensor], first: bool) -> Tensor:
        self._chunk.begin(kept, first)
        try:
            return self.forward(x)[0]
        finally:
            self._chunk.end()


def by_frames(decoder: nn.Module, names: Chunks, record: BlockRecord, put: Put) -> None:
    """Run a decoder without attention, whose norms look at one frame, frame by frame."""
    chunk = Chunk()
    for part in decoder.modules():
        if type(part).__name__ == names.convolution:
            put(part, partial(CausalPair, part, chunk=chunk))
    put(decoder, lambda f: ByFrames(decoder, f, chunk, record))
