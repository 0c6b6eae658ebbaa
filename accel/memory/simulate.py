"""Memory of a model's phases, simulated without weights; ``tracker.py`` counts it."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from accel import families
from accel.config import SlicingConfig
from accel.core.structure import DENOISERS
from accel.core.tree import leaves, tree_map
from accel.families.components import meta, size_of
from accel.families.family import Model
from accel.memory.encoders import peak
from accel.memory.meta_models import Video, framewise, latent_shape
from accel.memory.packed_layers import PackedLayers, packed_layers
from accel.memory.recorded_calls import Recorded, parts, record
from accel.memory.small_values import called, without_values
from accel.memory.tracker import activation_peak, all_true
from accel.slicing.block_record import BlockRecord
from accel.slicing.blocks import apply_slicing
from accel.slicing.program.cache import Programs
from accel.slicing.vae import stream
from accel.slicing.vae.apply import apply_strips

MOST = 16  # slices and strips that are tried
STRIPS = f"{MOST} strips"
STREAMED = f"{MOST} strips, frames to the CPU"  # for VAEs on an accelerator


@dataclass(frozen=True)
class Peaks:
    """Bytes of a model at one size; weights and activations are counted separately.

    ``denoise``: activations by number of slices, where 1 is plain diffusers. ``decode``:
    activations of the VAE's decoder by way of decoding; some ways are approximate. Weights are
    those of the phase's own component, ``denoiser_weights`` those of both denoisers if there are
    two, and ``weights`` those of every component by name. ``rehash``: what step rehash keeps at
    each level, besides the activations, per denoiser call in a step; there are ``calls`` of them.
    ``encode``: activations of each text or image encoder, ``encode_image``: of the VAE's encoder, 0
    if it is not called. ``not_counted``: components of other kinds. ``packed``: linear layers.
    """

    denoise: dict[int, int]
    decode: dict[str, int]
    denoiser_weights: int
    vae_weights: int
    rehash: dict[str, int]
    encode: dict[str, int] = field(default_factory=dict)
    encoder_weights: dict[str, int] = field(default_factory=dict)
    not_counted: tuple[str, ...] = ()
    encode_image: int = 0
    calls: int = 2
    weights: dict[str, int] = field(default_factory=dict)
    packed: PackedLayers = field(default_factory=PackedLayers)


def simulate(
    model: Model,
    video: Video,
    slices: Sequence[int] = (1, 2, 4, 8, MOST),
    *,
    decode: bool = True,
    prepare: Callable[[Any], None] = lambda denoiser: None,
) -> Peaks:
    """Return the peaks of a model on the meta device, from configurations alone.

    Two layers of each kind stand for all, because layers run one after another. ``prepare`` may
    change the denoiser first. Raises ValueError if the model cannot run at this size.
    """
    denoiser, kwargs = denoiser_call(model, video)
    prepare(denoiser)
    programs = Programs()
    ways = {n: SlicingConfig(n, min_tokens=1) if n > 1 else None for n in slices}
    peaks = {n: denoise_peak(denoiser, kwargs, way, programs) for n, way in ways.items()}
    packed = packed_layers(model, denoiser, kwargs)
    vae = model.vae.build()
    decoded = _decoders(model.vae.cls, vae, decoder_input(model, video)) if decode else {}
    kept = rehash_bytes(denoiser, kwargs)
    calls = recorded(model, video)
    encode, unknown = _encoders(model, calls)
    encoders = {name: encoder.weights() for name, encoder in model.encoders.items()}
    weights = {name: part.weights() for name, part in parts(model).items()} | encoders
    return Peaks(
        peaks, decoded, sum(weights.get(name, 0) for name in DENOISERS), size_of(vae), kept,
        encode, encoders, (*model.unknown, *unknown), _encode_image(vae, calls),
        calls_in_step(model, video), weights, packed,
    )  # fmt: skip


def calls_in_step(model: Model, video: Video) -> int:
    """Return the denoiser calls of one step."""
    calls = recorded(model, video)
    return 2 // model.batch if calls is None else calls.branches


def _encoders(model: Model, calls: Recorded | None) -> tuple[dict[str, int], list[str]]:
    """Return the peak of each encoder, and the names of those that cannot be run.

    An encoder that the pipeline does not call has none.
    """
    peaks: dict[str, int] = {}
    unknown: list[str] = []
    for name, encoder in model.encoders.items():
        given = None if calls is None else calls.first(name)
        if calls is None or given is not None:
            try:
                peaks[name] = peak(encoder, given)
            except (RuntimeError, TypeError, ValueError, NotImplementedError):
                unknown.append(name)
    return peaks, unknown


def _encode_image(vae: Any, calls: Recorded | None) -> int:
    """Return the peak of encoding the largest picture or video that the VAE is given."""
    given = [] if calls is None else [c for c in calls.calls if c[:2] == ("vae", "encode")]
    pictures = [next(iter(c.arguments.values())) for c in given]
    if not pictures:
        return 0
    x = max(pictures, key=lambda x: x.numel()).to(vae.dtype)
    return activation_peak(lambda: vae.encode(x), x, [*vae.parameters(), *vae.buffers()])[0]


def denoiser_call(model: Model, video: Video) -> tuple[Any, dict[str, Any]]:
    """Return a denoiser with at most two layers of each kind, and the arguments of one call.

    Both are on the meta device. Of two denoisers it is the larger one. Raises ValueError if the
    model cannot run at this size.
    """
    part, name = model.denoiser, next(n for n in parts(model) if n in DENOISERS)
    if model.second is not None and model.second.weights() > part.weights():
        part, name = model.second, "transformer_2"
    denoiser, known = part.few_layers(), families.denoisers().get(part.cls)
    if known is not None:
        known.prepare(denoiser)
    calls = recorded(model, video)
    if calls is not None:
        given = calls.denoisers.get(name) or next(iter(calls.denoisers.values()))
        keeps = known is not None and known.reads_values
        kwargs = {k: v for k, v in given.items() if k != "return_dict"}
        return denoiser, kwargs if keeps else tree_map(without_values, kwargs)
    if known is None or known.inputs is None:
        raise ValueError(f"cannot simulate {part.cls}: no pipeline is known that calls it")
    kwargs = known.inputs(denoiser, latent_shape(model, video))
    return denoiser, tree_map(
        lambda x: x.to(part.dtype) if x.dtype == torch.bfloat16 else x, kwargs
    )


def recorded(model: Model, video: Video) -> Recorded | None:
    """Return the calls of the model's pipeline, None for a pipeline that diffusers does not have.

    Raises ValueError if it cannot run at this size.
    """
    if model.vae.cls in families.vaes():
        latent_shape(model, video)  # names the nearest size that fits
    if not model.pipeline:
        return None
    for known, size, calls in _recorded:
        if known == model and size == video:
            return calls
    calls = record(model, (video.width, video.height, video.frames))
    if not calls.denoisers:
        raise ValueError(f"cannot simulate {model.pipeline}: it never calls its denoiser")
    _recorded.append((model, video, calls))
    return calls


_recorded: deque[tuple[Model, Video, Recorded]] = deque(maxlen=4)


def decoder_input(model: Model, video: Video) -> Tensor:
    """Return the latent that the VAE's decoder takes, [1, C, F, H, W] or [F, C, H, W].

    The latter is for VAEs that take frames as samples of a batch.
    """
    calls, dtype = recorded(model, video), model.vae.dtype
    given = None if calls is None else calls.first("vae", "decode")
    if given is not None and not framewise(model.vae.cls):
        return next(iter(given.values())).to(dtype)
    z = meta(1, *latent_shape(model, video)[1:], dtype=dtype)
    return z[0].transpose(0, 1).contiguous() if framewise(model.vae.cls) else z


def rehash_bytes(denoiser: Any, kwargs: dict[str, Any]) -> dict[str, int]:
    """Return the bytes that step rehash keeps per denoiser call, by level.

    Level "output" keeps two outputs, measured weights three, and "features" the features of a
    computed step.
    """
    from accel.rehash.features import Unsupported, find

    undo = ExitStack()
    try:
        with torch.no_grad(), all_true(), find(denoiser, 1, undo).recording() as kept:
            outputs = called(denoiser, kwargs)
    except (Unsupported, ValueError):
        with torch.no_grad(), all_true():
            kept, outputs = [], called(denoiser, kwargs)
    finally:
        undo.close()
    size = sum(x.nbytes for x in leaves(outputs))
    levels = {"output": 2 * size, "output, measured": 3 * size}
    return {**levels, "features": sum(x.nbytes for x in kept)} if kept else levels


def denoise_peak(
    denoiser: Any, kwargs: dict[str, Any], slicing: SlicingConfig | None, programs: Programs
) -> int:
    """Return the bytes of activations in one call of the denoiser."""
    undo = ExitStack()
    if slicing is not None:
        apply_slicing(denoiser, slicing, undo, programs)

    def call() -> None:
        called(denoiser, kwargs)

    try:
        if slicing is not None and not programs.reusable:
            with torch.no_grad():
                call()  # derives the blocks' programs, which must not be counted
        given = [x for x in leaves(kwargs) if isinstance(x, Tensor)]
        inputs = [x for x in given if x.is_meta] or given
        return activation_peak(call, inputs, [*denoiser.parameters(), *denoiser.buffers()])[0]
    except RuntimeError as error:
        raise ValueError(f"the model cannot run at this size: {error}") from error
    finally:
        undo.close()


def _decoders(cls: str, vae: Any, z: Tensor) -> dict[str, int]:
    """Return the peaks of decoding by diffusers' own settings and in exact strips.

    ``z`` is what ``decoder_input`` returns.
    """
    found = {"whole": decode_peak(vae, z)}
    if framewise(cls) and len(z) > 2:
        temporal = families.vaes()[cls].mixes_frames  # then it is not exact
        name = "2 frames at a time (approximate)" if temporal else "frame by frame"
        found[name] = decode_peak(vae, z, 2 if temporal else 1)
    if strips := strips_peak(vae, z, streamed=False):
        found[STRIPS] = strips
    if stream.replacement(vae.decoder, BlockRecord()) is not None:
        found[STREAMED] = strips_peak(vae, z, streamed=True)
    if hasattr(vae, "use_tiling"):
        vae.enable_tiling()
        found["tiled (approximate)"] = decode_peak(vae, z)
    return found


def strips_peak(vae: Any, z: Tensor, *, streamed: bool) -> int:
    """Return the peak of decoding in the most strips, 0 if this VAE has none.

    When frames are streamed to the CPU, a few frames stand for all: only latents grow with the
    rest, and they are counted.
    """
    undo = ExitStack()
    try:
        if not apply_strips(vae, SlicingConfig(MOST, 1), undo, streamed):
            return 0
        if not streamed:
            return decode_peak(vae, z)
        few = z[:, :, : 4 + z.shape[2] % 2].clone()  # CogVideoX decodes an odd number 3 + 2 + ...
        return decode_peak(vae, few) + 2 * (z.nbytes - few.nbytes)  # z, and z after a convolution
    finally:
        undo.close()


def decode_peak(vae: Any, z: Tensor, chunk: int = 0) -> int:
    """Return the peak of decoding; with ``chunk``, of that many frames at a time, all kept."""
    weights = [*vae.parameters(), *vae.buffers()]
    temporal = "num_frames" in inspect.signature(vae.decode).parameters
    timed = getattr(vae.config, "timestep_conditioning", False)

    def call() -> Any:
        parts = []
        for part in z.split(chunk) if chunk else [z]:
            more: dict[str, Any] = {"num_frames": len(part)} if temporal else {}
            if timed:
                more["temb"] = meta(len(part), dtype=part.dtype)
            parts.append(vae.decode(part, **more, return_dict=False))
        return torch.cat([p for (p,) in parts]) if chunk else parts[0][0]

    return activation_peak(call, z, weights)[0]
