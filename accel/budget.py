"""A plan for a budget of memory (the fewest slices that fit, simulated before anything runs), of
decibels (the fastest measured schedule of step rehash that keeps them), or of both.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from accel import encoders
from accel.config import RehashConfig, SlicingConfig
from accel.memory import MOST, STREAMED, STRIPS, Peaks, kept_bytes, parse_bytes, simulate
from accel.models import BATCHED, INPUTS, Family, Video
from accel.parts import Part, size_of
from accel.plan import Plan
from accel.sites import denoisers
from accel.slicing import returned

if TYPE_CHECKING:
    from accel.rehash.measurement import Measurement


class Size(Protocol):
    """What is read of a job: pixels and frames."""

    @property
    def width(self) -> int | None: ...

    @property
    def height(self) -> int | None: ...

    @property
    def frames(self) -> int | None: ...


def plan(
    pipe: Any,
    job: Size,
    *,
    memory: str | int | None = None,
    quality: float | None = None,
    measured: Measurement | None = None,
) -> Plan:
    """The plan with the fewest slices by which ``job`` fits in ``memory`` ("8GiB" or bytes), the
    VAE in strips where that is needed, and the fastest schedule of ``measured`` that should keep
    ``quality`` dB PSNR to the pipeline's own output in 9 of 10 jobs.

    Counted are live tensors: weights that stay loaded (those of one component where the pipeline
    offloads), activations of text encoding, denoising and decoding, and what step rehash keeps; no
    scratch memory of kernels, and no activations of encoders that ``accel.encoders`` lacks.

    Raises ValueError for no budget at all, a quality without a measurement, a job without a size, a
    pipeline whose classes cannot be simulated, or text encoding, denoising or decoding that does
    not fit, saying what it needs and what would help.
    """
    if memory is None and quality is None:
        raise ValueError("give a budget: memory='8GiB', quality=36.0 (dB PSNR), or both")
    rehash = None if quality is None else _schedule(quality, measured)
    found = Plan(f"{quality:g} dB" if quality else "", attention=None, rehash=rehash)
    if memory is None:
        return found
    slicing = _slicing(pipe, job, memory, rehash)
    name = f"within {memory}" + (f", {found.name}" if found.name else "")
    return replace(found, name=name, slicing=slicing)


def _schedule(quality: float, measured: Measurement | None) -> RehashConfig:
    if measured is None:
        raise ValueError(
            f"quality={quality:g} dB needs a measurement of this pipeline: "
            "m = accel.rehash.measure.measure(pipe, jobs) runs a few jobs once (m.save(file) keeps "
            "it), then accel.plan(pipe, job, quality=..., measured=m); without one, ask for a "
            "speed-up: accel.Plan(rehash=accel.config.RehashConfig(speedup=1.9))"
        )
    return measured.at_quality(quality)


def _slicing(
    pipe: Any, job: Size, memory: str | int, rehash: RehashConfig | None
) -> SlicingConfig | None:
    budget = parse_bytes(memory)
    video = _video(job)
    classes = family(pipe)
    peaks = simulate(classes, video)
    loaded = _loaded(pipe)
    beside = peaks.vae_weights if loaded is None else loaded
    decoding = beside + _decode_peak(peaks, pipe.vae)
    strips = beside + _strips_peak(peaks, pipe)
    if min(decoding, strips) > budget:
        raise ValueError(_too_much("decoding", min(decoding, strips), budget, _help(pipe, peaks)))
    weights = peaks.denoiser_weights if loaded is None else loaded
    weights += 0 if rehash is None else kept_bytes(peaks.rehash, rehash, classes)
    fits = [n for n, size in peaks.denoise.items() if size + weights <= budget]
    help_ = "" if loaded is None else "; pipe.enable_model_cpu_offload() frees other weights"
    if not fits:
        least = weights + min(peaks.denoise.values())
        what = f"denoising in {max(peaks.denoise)} slices"
        raise ValueError(_too_much(what, least, budget, help_))
    if (encoding := _encode_peak(peaks, loaded)) > budget:
        raise ValueError(_too_much("text encoding", encoding, budget, help_, _ENCODED))
    slices = min(fits) if decoding <= budget else max(MOST, min(fits))
    return SlicingConfig(slices, 1) if slices > 1 else None


def family(pipe: Any) -> Family:
    """Classes and configurations of a loaded pipeline. Raises ValueError for unknown ones."""
    found = denoisers(pipe)
    denoiser: Any = next(iter(found.values()))
    vae = getattr(pipe, "vae", None)
    name = type(denoiser).__name__
    if name not in INPUTS or vae is None:
        raise ValueError(
            f"cannot simulate {type(pipe).__name__}: it needs a VAE, and its denoiser ({name}) "
            f"must be one of {list(INPUTS)}"
        )
    first = Part(name, dict(denoiser.config), denoiser.dtype)
    second = Part(type(vae).__name__, dict(vae.config), vae.dtype)
    return Family(first, second, BATCHED.get(name, 1), *encoders.loaded(pipe, name))


def _video(job: Size) -> Video:
    if not job.width or not job.height or not job.frames:
        raise ValueError(
            "a plan within a memory budget needs the job's width, height and frames, got "
            f"{job.width} x {job.height}, {job.frames} frames"
        )
    return Video(job.width, job.height, job.frames)


def _loaded(pipe: Any) -> int | None:
    """Bytes of weights that stay loaded; None if components are loaded one at a time."""
    if getattr(pipe, "_all_hooks", None):
        return None
    from torch import nn

    return sum(size_of(c) for c in pipe.components.values() if isinstance(c, nn.Module))


def _decode_peak(peaks: Peaks, vae: Any) -> int:
    """Of the way the VAE is set to."""
    for setting, name in (("use_tiling", "tiled"), ("use_slicing", "frame by frame")):
        sizes = [b for way, b in peaks.decode.items() if way.startswith(name)]
        if getattr(vae, setting, False) and sizes:
            return sizes[0]
    return peaks.decode["whole"]


def _strips_peak(peaks: Peaks, pipe: Any) -> int:
    """Of what a patch with strips does."""
    device = getattr(pipe, "_execution_device", None)
    streams = device is not None and device.type != "cpu" and returned(pipe)
    whole = _decode_peak(peaks, pipe.vae)
    strips = peaks.decode.get(STRIPS, whole)
    return peaks.decode.get(STREAMED, strips) if streams else strips


def _encode_peak(peaks: Peaks, loaded: int | None) -> int:
    """Of encoding prompts and images, with weights."""
    own = peaks.encoder_weights
    sizes = [b + (own[name] if loaded is None else loaded) for name, b in peaks.encode.items()]
    return max(sizes, default=0)


def _help(pipe: Any, peaks: Peaks) -> str:
    ways = {"tiled": "enable_tiling", "frame by frame": "enable_slicing"}
    found = [
        f"pipe.vae.{call}() decodes {way} in {size / 2**30:.2f} GiB"
        for way, size in peaks.decode.items()
        for start, call in ways.items()
        if way.startswith(start) and hasattr(pipe.vae, call)
    ]
    return "".join(f"; {text}" for text in found)


_SMALLER = "choose a smaller size or fewer frames"
_ENCODED = "encode prompts elsewhere and pass prompt_embeds"


def _too_much(what: str, needed: int, budget: int, help_: str, last: str = _SMALLER) -> str:
    return (
        f"{what} needs {needed / 2**30:.2f} GiB, weights included, of a budget of "
        f"{budget / 2**30:.2f} GiB{help_}; or {last}"
    )
