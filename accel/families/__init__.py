"""Model families: one file each, with everything accel knows about a family by name.

To add one, write a file here that has ``FAMILY``, or call ``register`` from a package of your own.
A model without a file works too, as far as accel can learn what it needs from the model itself; the
report says what it could not learn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from accel.families.family import (
    BlockKind,
    Decoder,
    Denoiser,
    Family,
    Geometry,
    Model,
    Pipeline,
    Strip,
    Tracing,
    Vae,
)

_registered: list[Family] = []


@cache
def families() -> tuple[Family, ...]:
    """Return all families: those of this folder by name, then registered ones."""
    modules = (import_module(f"{__name__}.{m.name}") for m in iter_modules(__path__))
    found = [m.FAMILY for m in modules if hasattr(m, "FAMILY")]
    return (*sorted(found, key=lambda f: f.name), *_registered)


def register(family: Family) -> Callable[[], None]:
    """Add a family from another package; of two with the same class, the later one wins.

    Args:
        family: What is known about it.

    Returns:
        A function that removes it again.
    """
    _registered.append(family)
    _forget()

    def unregister() -> None:
        _registered.remove(family)
        _forget()

    return unregister


def _forget() -> None:
    for function in (families, _table):
        function.cache_clear()


@cache
def _table(name: str) -> Mapping[str, Any]:
    """Return one mapping of all families merged."""
    return {key: value for f in families() for key, value in getattr(f, name).items()}


def denoisers() -> Mapping[str, Denoiser]:
    """Return what is known about denoisers, by class name."""
    return _table("denoisers")


def vaes() -> Mapping[str, Vae]:
    """Return what is known about VAEs, by class name."""
    return _table("vaes")


def decoders() -> Mapping[str, Decoder]:
    """Return what is known about the decoders of VAEs, by class name."""
    return _table("decoders")


def strips() -> Mapping[str, Strip]:
    """Return the decoder blocks whose norms look at one pixel, by class name."""
    return _table("strips")


def sized(part: Any, strip: Strip) -> Strip:
    """Return the strip record with the scale of this block."""
    if getattr(part, "mode", "") == "none":  # a resampler that keeps the size
        return replace(strip, scale=1)
    stride = getattr(part, "stride", None)
    return replace(strip, scale=stride[1]) if stride else strip


def grouped_blocks() -> Mapping[str, BlockKind]:
    """Return the kinds of decoder blocks with GroupNorm, by class name."""
    return _table("grouped_blocks")


def pipelines() -> Mapping[str, Pipeline]:
    """Return what is known about pipelines that generate from a prompt, by class name."""
    return _table("pipelines")


def models() -> Mapping[str, Model]:
    """Return the configurations of released models, by short name."""
    return _table("models")


def unet_parts() -> frozenset[str]:
    """Return the class names of UNet parts that are sliced one by one."""
    return frozenset(part for f in families() for part in f.unet_parts)


def tracings() -> tuple[Tracing, ...]:
    """Return the families' helpers for recording blocks whose path depends on values."""
    return tuple(f.tracing for f in families() if f.tracing is not None)


def geometry_rules() -> Mapping[str, Callable[[Any], Geometry]]:
    """Return geometry rules by the start of a pipeline's class name."""
    return _table("latents")


def only_returns_frames(pipe: Any) -> bool:
    """Return whether a pipeline only makes frames for its caller from what it decodes.

    Other pipelines may combine what they decode with tensors on the device, as Wan Animate does for
    its next segment.
    """
    known = {name for f in families() for name in f.return_frames}
    return any(cls.__name__ in known for cls in type(pipe).__mro__)
