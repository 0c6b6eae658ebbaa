"""Memory of a model's phases, simulated without weights; ``tracker.py`` counts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from accel.config import RehashConfig, SlicingConfig
from accel.models import FRAMEWISE, INPUTS, Family, Video, latent_shape
from accel.parts import meta, size_of
from accel.seam import Undo, unwind
from accel.slicing import Programs, Record, apply, apply_strips, stream
from accel.slicing.record import tree_map
from accel.tracker import activation_peak, all_true

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
          "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}  # fmt: skip


def parse_bytes(text: str | int) -> int:
    """Bytes of "8GiB", "500 MB" or a number. Raises ValueError for anything else."""
    if isinstance(text, int):
        return text
    digits = text.strip().rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
    unit = text.strip()[len(digits) :].strip().upper()
    try:
        return int(float(digits) * _UNITS[unit])
    except (ValueError, KeyError):
        raise ValueError(f"memory must look like '8GiB' or '500MB', got {text!r}") from None


# --------------------------------------------------------------------------------------- simulate

MOST = 16  # slices and strips that are tried
STRIPS = f"{MOST} strips"
STREAMED = f"{MOST} strips, frames to the CPU"  # of VAEs on an accelerator


@dataclass(frozen=True)
class Peaks:
    """Bytes of a model at one size. ``denoise``: activations by number of slices (1 is diffusers
    as it comes), ``decode``: activations of the VAE's decoder, by ways of which some are
    approximate. Weights are those of the phase's own component. ``rehash``: what step
    rehash keeps at each level, beside the activations, per call of the denoiser in a step.
    ``encode``: activations of each text or image encoder; ``not_counted``: encoders of other kinds.
    """

    denoise: dict[int, int]
    decode: dict[str, int]
    denoiser_weights: int
    vae_weights: int
    rehash: dict[str, int]
    encode: dict[str, int] = field(default_factory=dict)
    encoder_weights: dict[str, int] = field(default_factory=dict)
    not_counted: tuple[str, ...] = ()

    def smallest(self, budget: int) -> int | None:
        """Fewest slices whose denoising fits beside the denoiser's weights; None if none does."""
        fits = [n for n, b in self.denoise.items() if b + self.denoiser_weights <= budget]
        return min(fits, default=None)


def simulate(
    family: Family,
    video: Video,
    slices: Sequence[int] = (1, 2, 4, 8, MOST),
    *,
    decode: bool = True,
    prepare: Callable[[Any], None] = lambda denoiser: None,
) -> Peaks:
    """Peaks on the meta device, from configurations alone.

    Two layers of each kind stand for all, since layers run one after another. ``prepare`` may set
    the denoiser up. Raises ValueError if the model cannot be called at this size.
    """
    denoiser, kwargs = denoiser_call(family, video)
    prepare(denoiser)
    programs = Programs()
    ways = {n: SlicingConfig(n, min_tokens=1) if n > 1 else None for n in slices}
    peaks = {n: denoise_peak(denoiser, kwargs, way, programs) for n, way in ways.items()}
    vae = family.vae.build()
    decoded = _decoders(family.vae.cls, vae, decoder_input(family, video)) if decode else {}
    kept = rehash_bytes(denoiser, kwargs)
    return Peaks(
        peaks, decoded, family.denoiser.weights(), size_of(vae), kept,
        {name: encoder.peak() for name, encoder in family.encoders.items()},
        {name: encoder.weights() for name, encoder in family.encoders.items()},
        family.unknown,
    )  # fmt: skip


def denoiser_call(family: Family, video: Video) -> tuple[Any, dict[str, Any]]:
    """A denoiser with at most two layers of each kind, and the arguments of one call, on meta."""
    layers = {k: min(2, v) for k, v in family.denoiser.layers().items()}
    denoiser, dtype = family.denoiser.build(**layers), family.denoiser.dtype
    kwargs = INPUTS[family.denoiser.cls](denoiser, latent_shape(family, video))
    return denoiser, tree_map(lambda x: x.to(dtype) if x.dtype == torch.bfloat16 else x, kwargs)


def decoder_input(family: Family, video: Video) -> Tensor:
    """Latent as the VAE's decoder takes it, [1, C, F, H, W] or, frame by frame, [F, C, H, W]."""
    z = meta(1, *latent_shape(family, video)[1:], dtype=family.vae.dtype)
    return z[0].transpose(0, 1).contiguous() if family.vae.cls in FRAMEWISE else z


def rehash_bytes(denoiser: Any, kwargs: dict[str, Any]) -> dict[str, int]:
    """Bytes of two outputs, of three (measured), and of the features a computed step leaves."""
    from accel.rehash.features import Unsupported, find

    undo: list[Undo] = []
    try:
        with torch.no_grad(), all_true(), find(denoiser, 1, undo).recording() as kept:
            outputs = denoiser(**kwargs, return_dict=False)
    except (Unsupported, ValueError):
        with torch.no_grad(), all_true():
            kept, outputs = [], denoiser(**kwargs, return_dict=False)
    finally:
        unwind(undo)
    size = sum(x.nbytes for x in outputs)
    levels = {"output": 2 * size, "output, measured": 3 * size}
    return {**levels, "features": sum(x.nbytes for x in kept)} if kept else levels


def kept_bytes(levels: dict[str, int], rehash: RehashConfig, family: Family) -> int:
    """Bytes that ``rehash`` keeps on the denoiser's device for both branches of guidance, one call
    each or both in one. ``levels``: see ``rehash_bytes``.
    """
    calls = 2 // family.batch
    share = {"native": 1.0, "int8": 1 / family.denoiser.dtype.itemsize, "cpu": 0.0}
    level = "output, measured" if rehash.multistep else rehash.level
    return int(calls * levels.get(level, 0) * share[rehash.store])


def denoise_peak(
    denoiser: Any, kwargs: dict[str, Any], slicing: SlicingConfig | None, programs: Programs
) -> int:
    """Bytes of activations in one call of the denoiser."""
    undo: list[Undo] = []
    if slicing is not None:
        apply(denoiser, slicing, undo, programs)

    def call() -> None:
        denoiser(**kwargs, return_dict=False)

    try:
        if slicing is not None and not programs.reusable:
            with torch.no_grad():
                call()  # derives the blocks' programs, which must not be counted
        return activation_peak(call, kwargs, [*denoiser.parameters(), *denoiser.buffers()])[0]
    except RuntimeError as error:
        raise ValueError(f"the model cannot run at this size: {error}") from error
    finally:
        unwind(undo)


def _decoders(cls: str, vae: Any, z: Tensor) -> dict[str, int]:
    """Peaks of decoding ``decoder_input`` by diffusers' own ways, and in exact strips."""
    found = {"whole": decode_peak(vae, z)}
    if cls in FRAMEWISE and len(z) > 2:
        temporal = cls == "AutoencoderKLTemporalDecoder"  # frames see each other: not exact
        name = "2 frames at a time (approximate)" if temporal else "frame by frame"
        found[name] = decode_peak(vae, z, 2 if temporal else 1)
    if strips := strips_peak(vae, z, streamed=False):
        found[STRIPS] = strips
    if stream.replacement(vae.decoder, Record()) is not None:
        found[STREAMED] = strips_peak(vae, z, streamed=True)
    if hasattr(vae, "use_tiling"):
        vae.enable_tiling()
        found["tiled (approximate)"] = decode_peak(vae, z)
    return found


def strips_peak(vae: Any, z: Tensor, *, streamed: bool) -> int:
    """Peak of decoding in the most strips, 0 if this VAE has none. Of a video whose frames go to
    the CPU a few stand for all: no more than latents, which are counted, grows with the others.
    """
    undo: list[Undo] = []
    try:
        if not apply_strips(vae, SlicingConfig(MOST, 1), undo, streamed):
            return 0
        if not streamed:
            return decode_peak(vae, z)
        few = z[:, :, : 4 + z.shape[2] % 2].clone()  # CogVideoX decodes an odd number 3 + 2 + ...
        return decode_peak(vae, few) + 2 * (z.nbytes - few.nbytes)  # z, and z after a convolution
    finally:
        unwind(undo)


def decode_peak(vae: Any, z: Tensor, chunk: int = 0) -> int:
    """Peak of decoding; with ``chunk`` that many frames at a time, all frames kept."""
    weights = [*vae.parameters(), *vae.buffers()]
    temporal = "num_frames" in inspect.signature(vae.decode).parameters

    def call() -> Any:
        parts = [
            vae.decode(part, **({"num_frames": len(part)} if temporal else {}), return_dict=False)
            for part in (z.split(chunk) if chunk else [z])
        ]
        return torch.cat([p for (p,) in parts]) if chunk else parts[0][0]

    return activation_peak(call, z, weights)[0]


def table(peaks: Peaks, budget: int | None = None) -> str:
    """The peaks as text, with a bar for each."""
    rows = [(f"encode, {name}", b) for name, b in peaks.encode.items()]
    rows += [(f"denoise, {n} slices" if n > 1 else "denoise", b) for n, b in peaks.denoise.items()]
    rows += [(f"decode, {name}", b) for name, b in peaks.decode.items()]
    most = max(b for _, b in rows)
    sizes = {"denoiser": peaks.denoiser_weights, "VAE": peaks.vae_weights, **peaks.encoder_weights}
    weights = ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in sizes.items())
    lines = [f"weights: {weights}; activations beside them:"]
    for name, size in rows:
        lines.append(f"  {name:<40}{size / 1e9:8.3f} GB  {'█' * max(1, round(40 * size / most))}")
    levels = ", ".join(f"{name} {size / 1e9:.3f} GB" for name, size in peaks.rehash.items())
    lines.append(f"step rehash keeps, per denoiser call in a step, at level {levels}")
    lines += [f"not counted: {', '.join(peaks.not_counted)}"] if peaks.not_counted else []
    if budget is not None:
        n = peaks.smallest(budget)
        chosen = f"{n} slices" if n else f"no number of slices up to {max(peaks.denoise)}"
        lines.append(f"denoising within {budget / 1e9:.2f} GB, weights included: {chosen}")
    return "\n".join(lines)
