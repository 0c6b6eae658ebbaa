"""Memory of a model's activations: measured by tensor lifetimes, or simulated without weights.

``Tracker`` follows the storage of every tensor that an operation makes until it is freed, on any
device. On the meta device nothing is computed and nothing allocated, so the same code run there
gives the peak of a model nobody has downloaded. Counted are live tensor bytes: no weights, no
scratch memory of kernels, no fragmentation of an allocator.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from accel.config import RehashConfig, SlicingConfig
from accel.models import FRAMEWISE, INPUTS, Family, Video, latent_shape, meta, size_of
from accel.seam import Undo, unwind
from accel.slicing import Programs, apply, apply_strips
from accel.slicing.record import leaves, tree_map

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


class Tracker(TorchDispatchMode):
    """Follows live tensors while active. ``peak``: most bytes alive at once, ``at``: the operation
    that reached it, ``live``: bytes alive now. ``hold`` counts a tensor made before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.at = ""
        self._known: dict[int, int] = {}

    def hold(self, tree: Any, at: str = "inputs") -> None:
        """Count every tensor of ``tree`` until it is freed, each storage once."""
        for tensor in leaves(tree):
            if isinstance(tensor, Tensor) and tensor.layout is torch.strided:
                self._count(tensor, at)

    def _count(self, tensor: Tensor, at: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = self._known[key] = storage.nbytes()
        self.live += size
        if self.live > self.peak:
            self.peak, self.at = self.live, at
        weakref.finalize(storage, self._free, key)

    def ignore(self, tree: Any) -> None:
        """Never count these tensors: weights."""
        for tensor in leaves(tree):
            if isinstance(tensor, Tensor):
                self._known[tensor.untyped_storage()._cdata] = 0

    def _free(self, key: int) -> None:
        self.live -= self._known.pop(key, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.hold(out, func.__name__)
        return out


@contextmanager
def fused() -> Iterator[None]:
    """On the meta device attention and RMS norm make nothing but their result, as fused kernels do.

    Attention lays its result out [B, T, H, D] in memory, like torch's flash kernels.
    """
    attention, rms_norm = F.scaled_dot_product_attention, F.rms_norm

    def lean_attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kw: Any) -> Tensor:
        if query.device.type != "meta":
            return attention(query, key, value, *args, **kw)
        *batch, heads, tokens = query.shape[:-1]
        return query.new_empty(*batch, tokens, heads, value.shape[-1]).transpose(-3, -2)

    def lean_rms_norm(input: Tensor, *args: Any, **kw: Any) -> Tensor:
        return torch.empty_like(input) if input.is_meta else rms_norm(input, *args, **kw)

    F.scaled_dot_product_attention, F.rms_norm = lean_attention, lean_rms_norm
    try:
        yield
    finally:
        F.scaled_dot_product_attention, F.rms_norm = attention, rms_norm


def activation_peak(run: Callable[[], Any], inputs: Any, weights: Any) -> tuple[int, str]:
    """Most bytes alive while ``run`` runs, ``inputs`` included and ``weights`` not, and the
    operation that reached it.
    """
    tracker = Tracker()
    tracker.ignore(weights)
    tracker.hold(inputs)
    with torch.no_grad(), fused(), tracker:
        run()
    return tracker.peak, tracker.at


# --------------------------------------------------------------------------------------- simulate

MOST = 16  # slices and strips that are tried
STRIPS = f"{MOST} strips"


@dataclass(frozen=True)
class Peaks:
    """Bytes of a model at one size. ``denoise``: activations by number of slices (1 is diffusers
    as it comes), ``decode``: activations of the VAE's decoder, by ways of which some are
    approximate. Weights are those of the phase's own component. ``rehash``: what step
    rehash keeps at each level, beside the activations, per call of the denoiser in a step.
    """

    denoise: dict[int, int]
    decode: dict[str, int]
    denoiser_weights: int
    vae_weights: int
    rehash: dict[str, int]

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
    return Peaks(peaks, decoded, family.denoiser.weights(), size_of(vae), kept)


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
        with torch.no_grad(), find(denoiser, 1, undo).recording() as kept:
            outputs = denoiser(**kwargs, return_dict=False)
    except (Unsupported, ValueError):
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
    share = {"native": 1.0, "fp8": 1 / family.denoiser.dtype.itemsize, "cpu": 0.0}
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
    undo: list[Undo] = []
    if apply_strips(vae, SlicingConfig(MOST, 1), undo):
        found[STRIPS] = decode_peak(vae, z)
        unwind(undo)
    if hasattr(vae, "use_tiling"):
        vae.enable_tiling()
        found["tiled (approximate)"] = decode_peak(vae, z)
    return found


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
    rows = [(f"denoise, {n} slices" if n > 1 else "denoise", b) for n, b in peaks.denoise.items()]
    rows += [(f"decode, {name}", b) for name, b in peaks.decode.items()]
    most = max(b for _, b in rows)
    lines = [
        f"weights: denoiser {peaks.denoiser_weights / 1e9:.2f} GB, VAE "
        f"{peaks.vae_weights / 1e9:.2f} GB; activations beside them:"
    ]
    for name, size in rows:
        lines.append(f"  {name:<40}{size / 1e9:8.3f} GB  {'█' * max(1, round(40 * size / most))}")
    levels = ", ".join(f"{name} {size / 1e9:.3f} GB" for name, size in peaks.rehash.items())
    lines.append(f"step rehash keeps, per denoiser call in a step, at level {levels}")
    if budget is not None:
        n = peaks.smallest(budget)
        chosen = f"{n} slices" if n else f"no number of slices up to {max(peaks.denoise)}"
        lines.append(f"denoising within {budget / 1e9:.2f} GB, weights included: {chosen}")
    return "\n".join(lines)
