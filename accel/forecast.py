"""Peak memory of one plan at one size, from configurations alone; see ``memory.py`` for the means.

What counts is what a loaded pipeline holds at its worst moment: weights, and live tensors of one
denoiser call or of decoding. Scratch memory of kernels and text encoding are not counted, and
finished frames are counted wherever they go.
"""

from __future__ import annotations

from dataclasses import dataclass

from accel.config import RehashConfig, SlicingConfig
from accel.memory import (
    decode_peak,
    decoder_input,
    denoise_peak,
    denoiser_call,
    kept_bytes,
    rehash_bytes,
)
from accel.models import Family, Video
from accel.parts import size_of
from accel.seam import Undo, unwind
from accel.slicing import Programs, apply_strips


@dataclass(frozen=True)
class Forecast:
    """Bytes: ``weights`` of denoiser and VAE, live tensors of ``denoise`` (what step rehash keeps
    included) and of ``decode``.
    """

    weights: int
    denoise: int
    decode: int

    @property
    def peak(self) -> int:
        """Most at once, with all weights loaded."""
        return self.weights + max(self.denoise, self.decode)


def forecast(
    family: Family, video: Video, slicing: SlicingConfig | None, rehash: RehashConfig | None
) -> Forecast:
    """Simulate a plan's slicing and step rehash. Attention in fewer bits makes no larger tensors.

    Raises ValueError if the model cannot be called at this size.
    """
    denoiser, kwargs = denoiser_call(family, video)
    denoise = denoise_peak(denoiser, kwargs, slicing, Programs())
    if rehash is not None:
        denoise += kept_bytes(rehash_bytes(denoiser, kwargs), rehash, family)
    vae, undo = family.vae.build(), list[Undo]()
    try:
        if slicing is not None:
            apply_strips(vae, slicing, undo, streamed=False)
        decode = decode_peak(vae, decoder_input(family, video))
    finally:
        unwind(undo)
    return Forecast(family.denoiser.weights() + size_of(vae), denoise, decode)
