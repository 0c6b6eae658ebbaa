"""Will it fit? Bytes of a job by phase, weights included, and the fewest slices within a budget.

``accel.plan``, ``accel memory``, dry runs and the web page all use this answer. Counted are live
tensors: weights that stay loaded, packed copies of linear layers, activations of text encoding,
denoising and decoding, and what step rehash keeps. Not counted are scratch memory of kernels and
activations of unknown encoders.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from accel import families
from accel.config import LinearConfig, RehashConfig, SlicingConfig
from accel.core.diffusers_bridge import execution_device, offloads
from accel.core.units import gib
from accel.families.components import size_of
from accel.families.family import Model
from accel.memory import encoders
from accel.memory.meta_models import Video, of_pipeline
from accel.memory.packed_layers import PackedLayers, packed_layers
from accel.memory.simulate import (
    STREAMED,
    Peaks,
    calls_in_step,
    decode_peak,
    decoder_input,
    denoise_peak,
    denoiser_call,
    rehash_bytes,
    simulate,
)
from accel.memory.simulate import STRIPS as IN_STRIPS
from accel.slicing.program.cache import Programs
from accel.slicing.vae.apply import apply_strips

WHOLE, STRIPS = "whole", "strips"  # ways of decoding
PHASES = ("encode", "denoise", "decode")


@dataclass(frozen=True)
class Kept:
    """What step rehash keeps.

    ``levels`` maps a level to bytes for each of ``calls`` denoiser calls in a step; one element has
    ``itemsize`` bytes.
    """

    levels: Mapping[str, int] = field(default_factory=dict)
    calls: int = 2
    itemsize: int = 2

    @classmethod
    def of(cls, model: Model, peaks: Peaks) -> Kept:
        """Return what it keeps of a model whose peaks were simulated."""
        return cls(peaks.rehash, peaks.calls, model.denoiser.dtype.itemsize)

    def bytes(self, rehash: RehashConfig | None) -> int:
        """Return the bytes that stay on the denoiser's device, for both branches of guidance."""
        if rehash is None:
            return 0
        share = {"native": 1.0, "int8": 1 / self.itemsize, "cpu": 0.0}
        level = "output, measured" if rehash.multistep else rehash.level
        longer = rehash.entries / 2 if rehash.chosen else 1.0  # the levels count two outputs
        return int(self.calls * self.levels.get(level, 0) * longer * share[rehash.store])


class DoesNotFit(ValueError):
    """No number of slices fits.

    ``phase`` needs at least ``needed`` bytes and the whole job ``least``, more than ``budget``.
    """

    def __init__(self, phase: str, needed: int, least: int, budget: int) -> None:
        self.phase, self.needed, self.least, self.budget = phase, needed, least, budget
        super().__init__(
            f"no number of slices fits in {gib(budget, 3)}; at least {gib(least, 3)} is needed: "
            "allow more memory, or choose a smaller size or fewer frames"
        )


@dataclass(frozen=True)
class Needs:
    """Bytes that a job needs, weights included.

    ``denoise`` maps a number of slices to bytes. ``decode`` has "whole" (with the VAE's current
    settings) and "strips", as it runs with the most slices. ``encode`` is 0 if no encoder is known.
    ``at_least``: some weights are unknown. ``kept``: what step rehash adds, ``packed``: what 8-bit
    linear layers add. ``others``: decoding by diffusers' own settings, by name.
    """

    denoise: Mapping[int, int]
    decode: Mapping[str, int]
    encode: int = 0
    at_least: bool = False
    kept: Kept = field(default_factory=Kept)
    others: Mapping[str, int] = field(default_factory=dict)
    packed: PackedLayers = field(default_factory=PackedLayers)

    @property
    def slices(self) -> int:
        """The largest number of slices that was simulated."""
        return max(self.denoise)

    @property
    def tiled(self) -> int | None:
        """Bytes of decoding in diffusers' tiles, None where the VAE has none."""
        return next((size for way, size in self.others.items() if way.startswith("tiled")), None)

    def phases(
        self,
        slices: int,
        rehash: RehashConfig | None = None,
        linear: LinearConfig | None = None,
        *,
        tiled: bool = False,
    ) -> dict[str, int]:
        """Return bytes by phase, for a plan's number of slices, step rehash and linear layers.

        ``tiled``: decoded in tiles, in as few bytes as strips where these need fewer.
        """
        way = STRIPS if slices == self.slices else WHOLE
        first = {"encode": self.encode} if self.encode else {}
        packed = self.packed.bytes(linear)
        denoise = self.denoise[slices] + self.kept.bytes(rehash) + packed
        decode = self.decode[way]
        if tiled and self.tiled is not None:
            decode = min(decode, self.tiled)
        return {**first, "denoise": denoise, "decode": decode + packed}

    def peak(
        self,
        slices: int,
        rehash: RehashConfig | None = None,
        linear: LinearConfig | None = None,
        *,
        tiled: bool = False,
    ) -> int:
        """Return the bytes of the phase that needs most."""
        return max(self.phases(slices, rehash, linear, tiled=tiled).values())

    def fewest_slices(
        self, budget: int, rehash: RehashConfig | None = None, linear: LinearConfig | None = None
    ) -> int:
        """Return the fewest slices that fit in ``budget`` bytes.

        Raises DoesNotFit if none do.
        """
        most, packed = self.slices, self.packed.bytes(linear)
        fits = [n for n in sorted(self.denoise) if self.peak(n, rehash, linear) <= budget]
        if fits:
            return fits[0]
        least = min(self.peak(n, rehash, linear) for n in self.denoise)
        needed = {
            "decode": min(self.decode.values()) + packed,
            "denoise": self.denoise[most] + self.kept.bytes(rehash) + packed,
            "encode": self.encode,
        }
        phase = next(p for p, size in needed.items() if size > budget)
        raise DoesNotFit(phase, needed[phase], least, budget)


def of_model(
    model: Model, video: Video, *, others: int | None = None, at_least: bool = False
) -> Needs:
    """Return what a job needs, from configurations alone.

    Args:
        model: Its components, on the meta device.
        video: Pixels and frames.
        others: Bytes of weights that stay loaded besides denoiser and VAE; None where one component
            is loaded at a time.
        at_least: Some weights are unknown.
    """
    return of_peaks(model, simulate(model, video), others=others, at_least=at_least)


def of_peaks(
    model: Model, peaks: Peaks, *, others: int | None = None, at_least: bool = False
) -> Needs:
    """Return what a job needs, as ``of_model`` does, from peaks that have been simulated."""
    total = None if others is None else peaks.denoiser_weights + peaks.vae_weights + others
    return _needs(model, peaks, total, peaks.decode["whole"], peaks.decode.get(IN_STRIPS), at_least)


def of_loaded(pipe: Any, video: Video) -> Needs:
    """Return what a job needs on a loaded pipeline, with its current VAE and offloading settings.

    Raises ValueError for a pipeline whose classes cannot be simulated.
    """
    model = of_pipeline(pipe)
    peaks = simulate(model, video)
    total = None
    if not offloads(pipe):
        total = sum(size_of(c) for c in pipe.components.values() if isinstance(c, nn.Module))
    whole = _as_set(peaks, pipe.vae)
    strips = peaks.decode.get(IN_STRIPS)
    device = execution_device(pipe)
    if device is not None and device.type != "cpu" and families.only_returns_frames(pipe):
        strips = peaks.decode.get(STREAMED, strips)
    return _needs(model, peaks, total, whole, strips)


def _needs(
    model: Model,
    peaks: Peaks,
    total: int | None,
    whole: int,
    strips: int | None,
    at_least: bool = False,
) -> Needs:
    """Add weights to peaks: ``total`` bytes, or those of the phase's component if None."""
    denoiser = peaks.denoiser_weights if total is None else total
    vae = peaks.vae_weights if total is None else total
    encode = [
        size + (peaks.encoder_weights[name] if total is None else total)
        for name, size in peaks.encode.items()
    ]
    encode += [peaks.encode_image + vae] if peaks.encode_image else []
    kept = Kept.of(model, peaks)
    return Needs(
        {n: size + denoiser for n, size in peaks.denoise.items()},
        {WHOLE: whole + vae, STRIPS: (whole if strips is None else strips) + vae},
        max(encode, default=0),
        at_least,
        kept,
        {w: b + vae for w, b in peaks.decode.items() if w.startswith(("tiled", "frame by frame"))},
        peaks.packed,
    )


def _as_set(peaks: Peaks, vae: Any) -> int:
    """Return the decoding peak for the VAE's current tiling and slicing settings."""
    for setting, name in (("use_tiling", "tiled"), ("use_slicing", "frame by frame")):
        sizes = [b for way, b in peaks.decode.items() if way.startswith(name)]
        if getattr(vae, setting, False) and sizes:
            return sizes[0]
    return peaks.decode["whole"]


def peak_of_plan(
    model: Model,
    video: Video,
    slicing: SlicingConfig | None,
    rehash: RehashConfig | None,
    linear: LinearConfig | None = None,
) -> int:
    """Return the peak of one plan in bytes, with denoiser and VAE loaded.

    Other weights come on top. Attention in fewer bits makes no larger tensors. Raises ValueError if
    the model cannot run at this size.
    """
    denoiser, kwargs = denoiser_call(model, video)
    denoise = denoise_peak(denoiser, kwargs, slicing, Programs())
    kept = Kept({}, calls_in_step(model, video), model.denoiser.dtype.itemsize)
    if rehash is not None:
        kept = Kept(rehash_bytes(denoiser, kwargs), kept.calls, kept.itemsize)
    vae = model.vae.build()
    with ExitStack() as undo:
        if slicing is not None:
            apply_strips(vae, slicing, undo, streamed=False)
        decode = decode_peak(vae, decoder_input(model, video))
    encode = max((encoders.peak(e) for e in model.encoders.values()), default=0)
    packed = 0 if linear is None else packed_layers(model, denoiser, kwargs).bytes(linear)
    activations = max(encode, denoise + kept.bytes(rehash) + packed, decode + packed)
    return model.denoiser.weights() + size_of(vae) + activations
