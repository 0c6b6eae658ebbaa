"""Send finished frames to the CPU while a VAE decodes the next ones.

Some VAEs call their decoder for a few latent frames at a time and join what it returns. If each
piece leaves the device when it is done, joining, clamping and unpatching happen on the CPU, with
the same bits, and memory on the device does not grow with the length of the video. The VAEs of Wan
and Qwen-Image join after every piece, which copies the video again and again. There a ``Pieces``
represents the joined video until code looks at it.

Decoders that return all frames at once have nothing to send early. Their result is small compared
with what they hold when they make it (3 channels against 128).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from accel import families
from accel.core.stand_in import StandIn
from accel.core.watchers import watcher
from accel.slicing.block_record import BlockRecord
from accel.slicing.vae.lazy_video import LazyVideo


class Pieces(LazyVideo):
    """Parts [B, C, T, H, W] of a video, to be joined along T.

    Joining with more pieces makes longer ``Pieces``. All other operations use the whole video.
    """

    def __init__(self, parts: list[Tensor]) -> None:
        self._parts = parts

    def whole(self) -> Tensor:
        """Return the video, always the same tensor."""
        if len(self._parts) > 1:
            self._parts[:] = [torch.cat(self._parts, 2)]
        return self._parts[0]

    @classmethod
    def joined(cls, parts: Sequence[Any]) -> Pieces:
        """Return longer ``Pieces``."""
        return cls([part for x in parts for part in (x._parts if type(x) is cls else [x])])


class Streamed(StandIn):
    """Replaces a decoder's forward: its result goes to the CPU, its caches stay.

    ``growing``: the VAE joins its frames after every piece.
    """

    def __init__(
        self, decoder: nn.Module, forward: Callable[..., Any], record: BlockRecord, growing: bool
    ) -> None:
        super().__init__(forward)
        self._decoder, self._record, self._growing = decoder, record, growing

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Decode one piece and move it to the CPU where that is possible."""
        out = self.forward(*args, **kwargs)
        frames = out[0] if isinstance(out, tuple) else out
        if not isinstance(frames, Tensor):
            return out  # frames that wait, which go to the CPU themselves
        if not self._possible(frames) or not kwargs.keys() & {"feat_cache", "conv_cache"}:
            return out  # without caches these are all the frames
        self._record.note = "finished frames went to the CPU"
        if self._growing:
            return Pieces([frames.to("cpu")])
        return (frames.to("cpu"), *out[1:]) if isinstance(out, tuple) else frames.to("cpu")

    def _possible(self, frames: Tensor) -> bool:
        busy = not self.alive or torch.compiler.is_compiling() or torch.is_grad_enabled()
        return not busy and frames.device.type != "cpu" and not watcher(self._decoder)


def replacement(
    decoder: nn.Module, record: BlockRecord
) -> Callable[[Callable[..., Any]], Any] | None:
    """Return the function that makes a decoder's hook, or None if it makes all frames at once."""
    known = families.decoders().get(type(decoder).__name__)
    if known is None or not known.pieces:
        return None
    return lambda forward: Streamed(decoder, forward, record, known.pieces == "joined")
