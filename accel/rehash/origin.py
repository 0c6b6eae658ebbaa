"""What a measured schedule holds for: hashes of the denoisers' weights and the sampler's settings.

Of each weight up to ``SAMPLES`` values count, rounded to bfloat16, so that the hash of a model of
14 billion weights takes milliseconds and does not depend on device or, mostly, precision. Fused
adapters, finetuned and exchanged weights change it, and so do adapters that are loaded beside them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from accel.core.key_steps import Origin

SAMPLES = 16
STALE = "what it promises is not known for this run; measure again"
LENGTH = 16  # hexadecimal digits of a hash


def origin_of(denoisers: Mapping[str, nn.Module], scheduler: Any) -> Origin:
    """Return what a schedule would be measured with."""
    weights = tuple((name, weights_hash(module)) for name, module in denoisers.items())
    config = getattr(scheduler, "config", None) or {}
    settings = sorted((k, repr(v)) for k, v in dict(config).items() if not k.startswith("_"))
    return Origin(weights, type(scheduler).__name__, _hash(repr(settings).encode()))


def moved(origin: Origin | None, denoisers: Mapping[str, Callable[[], Any]], scheduler: Any) -> str:
    """Return what a run has that its schedule was not measured with, "" if nothing.

    ``denoisers`` are weak references by name.
    """
    if origin is None:
        return ""
    modules = {name: module for name, find in denoisers.items() if (module := find())}
    why = origin.differs(origin_of(modules, scheduler))
    return f"its schedule was measured with {why}: {STALE}" if why else ""


def weights_hash(module: nn.Module) -> str:
    """Return a hash of a module's weights, "" if some are not in memory (offloaded)."""
    state = {k: v for k, v in sorted(module.state_dict().items()) if isinstance(v, Tensor)}
    if any(v.is_meta for v in state.values()):
        return ""
    shapes = repr([(name, tuple(v.shape)) for name, v in state.items()])
    values = [_some(v) for v in state.values()]
    together = torch.cat(values) if values else torch.zeros(0, dtype=torch.int16, device="cpu")
    return _hash(shapes.encode() + together.numpy().tobytes())


def _some(weight: Tensor) -> Tensor:
    """Return bits of some values of a weight, int16 [E] on the CPU."""
    flat = weight.detach().reshape(-1)
    some = flat[:: max(1, flat.numel() // SAMPLES)][:SAMPLES]
    return some.to("cpu", torch.float32).to(torch.bfloat16).view(torch.int16)


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:LENGTH]
