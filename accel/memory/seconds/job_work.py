"""The operators of a job by phase: its encoders, one denoising step, and decoding.

Whole models are run on the meta device, so every attention module and linear layer is there under
its own name. What was counted for a model and size is kept, because a planner asks for many plans.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from accel import families
from accel.core.structure import DENOISERS, attention_modules, blocks
from accel.core.tree import leaves, tree_map
from accel.families.components import meta
from accel.families.family import Model
from accel.linear.linear_layers import in_blocks
from accel.memory import simulate
from accel.memory.encoders import inputs as encoder_inputs
from accel.memory.meta_models import Video, framewise
from accel.memory.recorded_calls import Recorded, parts, record
from accel.memory.seconds.operators import Counted, count
from accel.memory.small_values import called, without_values

STEPS = 50  # of a pipeline whose call does not say it


@dataclass(frozen=True)
class Work:
    """Operators of one call of a component, and how often it is called.

    ``weights`` and ``output`` are bytes of the component's weights and of one result; ``blocks``
    the number of its repeated blocks.
    """

    component: str
    counted: Counted
    times: int = 1
    weights: int = 0
    output: int = 0
    blocks: int = 0


@dataclass(frozen=True)
class JobWork:
    """What a job runs; ``denoise`` is one step, ``steps`` what the pipeline runs by itself."""

    encode: tuple[Work, ...]
    denoise: tuple[Work, ...]
    decode: tuple[Work, ...]
    steps: int = STEPS
    notes: tuple[str, ...] = field(default_factory=tuple)

    @property
    def flops(self) -> dict[str, int]:
        """Floating-point operations of each phase; of one step for "denoise"."""
        phases = {"encode": self.encode, "denoise": self.denoise, "decode": self.decode}
        return {
            name: sum(work.counted.flops * work.times for work in phase)
            for name, phase in phases.items()
        }


def job_work(model: Model, video: Video, guidance: float | None = None) -> JobWork:
    """Return the operators of a job.

    Args:
        model: Its components, on the meta device.
        video: Pixels and frames.
        guidance: The pipeline's ``guidance_scale``; None for its own.

    Raises:
        ValueError: The model cannot run at this size.
    """
    for known, size, scale, work in _known:
        if (size, scale) == (video, guidance) and known == model:
            return work
    calls = simulate.recorded(model, video)
    if calls is not None and guidance is not None and "guidance_scale" in _takes(model):
        pixels = (video.width, video.height, video.frames)
        calls = record(model, pixels, guidance_scale=guidance)
    notes: list[str] = []
    try:
        denoise = _denoise(model, video, calls, notes)
        found = JobWork(
            _encode(model, calls, notes), denoise, _decode(model, video), _steps(model),
            tuple(notes),
        )  # fmt: skip
    except RuntimeError as error:
        raise ValueError(f"the model cannot run at this size: {error}") from error
    _known.append((model, video, guidance, found))
    return found


_known: deque[tuple[Model, Video, float | None, JobWork]] = deque(maxlen=8)


def _takes(model: Model) -> Mapping[str, inspect.Parameter]:
    import diffusers

    cls = getattr(diffusers, model.pipeline, None)
    return {} if cls is None else inspect.signature(cls.__call__).parameters


def _steps(model: Model) -> int:
    found = _takes(model).get("num_inference_steps")
    return found.default if found is not None and isinstance(found.default, int) else STEPS


def _denoise(
    model: Model, video: Video, calls: Recorded | None, notes: list[str]
) -> tuple[Work, ...]:
    """Return the denoiser's calls of one step; equal ones once."""
    named = {name: part for name, part in parts(model).items() if name in DENOISERS}
    name = next(iter(named))
    if calls is None:
        _, kwargs = simulate.denoiser_call(model, video)
        given = [(name, kwargs)] * simulate.calls_in_step(model, video)
    else:
        given = [(call.component, dict(call.arguments)) for call in calls.step]
    if model.second is not None:
        notes.append(f"every step is counted with the denoiser {given[0][0]!r}")
    found: dict[str, Work] = {}
    for name, kwargs in given:
        key = f"{name} {_sizes(kwargs)}"
        if key in found:
            work = found[key]
            found[key] = Work(
                name, work.counted, work.times + 1, work.weights, work.output, work.blocks
            )
        else:
            found[key] = _one_call(model, name, kwargs, several=len(named) > 1)
    return tuple(found.values())


def _one_call(model: Model, name: str, kwargs: dict[str, Any], *, several: bool) -> Work:
    part = parts(model)[name]
    denoiser, known = part.build(), families.denoisers().get(part.cls)
    if known is not None:
        known.prepare(denoiser)
    kwargs = {k: v for k, v in kwargs.items() if k != "return_dict"}
    if known is None or not known.reads_values:
        kwargs = tree_map(without_values, kwargs)
    attention = attention_modules(name, denoiser, several=several)
    prefix = f"{name}." if several else ""
    linear = {prefix + path: layer for path, layer in in_blocks(denoiser).items()}
    out: list[Any] = []
    counted = count(lambda: out.extend(leaves(called(denoiser, kwargs))), attention, linear)
    size = sum(x.nbytes for x in out if isinstance(x, torch.Tensor))
    return Work(name, counted, 1, part.weights(), size, len(blocks(denoiser)))


def _encode(model: Model, calls: Recorded | None, notes: list[str]) -> tuple[Work, ...]:
    """Return the calls of encoders, and of the VAE's encoder."""
    found = []
    for name, encoder in model.encoders.items():
        given = None if calls is None else calls.first(name)
        if calls is not None and given is None:
            continue
        times = 1 if calls is None else sum(c[:2] == (name, "forward") for c in calls.calls)
        module = encoder.build(encoder.layers)
        kwargs, states = encoder_inputs(encoder, module.config, given)
        try:
            counted = count(lambda m=module, k=kwargs, s=states: m(**k, output_hidden_states=s))  # type: ignore[misc]
        except (RuntimeError, TypeError, ValueError, NotImplementedError):
            notes.append(f"not counted: {name}, which cannot be run without weights")
            continue
        found.append(Work(name, counted, times, encoder.weights()))
    notes.extend(f"not counted: {name}, whose class is not known" for name in model.unknown)
    return (*found, *_encode_image(model, calls))


def _encode_image(model: Model, calls: Recorded | None) -> list[Work]:
    given = [] if calls is None else [c for c in calls.calls if c[:2] == ("vae", "encode")]
    found = []
    for call in given:
        vae = model.vae.build()
        x = without_values(next(iter(call.arguments.values()))).to(vae.dtype)
        counted = count(lambda vae=vae, x=x: vae.encode(x))  # type: ignore[misc]
        found.append(Work("vae, encode", counted, 1, model.vae.weights()))
    return found


def _decode(model: Model, video: Video) -> tuple[Work, ...]:
    vae, z = model.vae.build(), simulate.decoder_input(model, video)
    z = without_values(z)
    more: dict[str, Any] = {}
    if "num_frames" in inspect.signature(vae.decode).parameters:
        more["num_frames"] = len(z)
    if getattr(vae.config, "timestep_conditioning", False):
        more["temb"] = meta(len(z), dtype=z.dtype)
    if framewise(model.vae.cls) and len(z) > 1 and not more:  # frames are equal
        counted = count(lambda: vae.decode(z[:1], return_dict=False))
        return (Work("vae", counted, len(z), model.vae.weights()),)
    counted = count(lambda: vae.decode(z, **more, return_dict=False))
    return (Work("vae", counted, 1, model.vae.weights()),)


def _sizes(kwargs: Mapping[str, Any]) -> str:
    def leaf(x: Any) -> Any:
        return (tuple(x.shape), x.dtype) if isinstance(x, torch.Tensor) else x

    return repr(tree_map(leaf, dict(kwargs)))
