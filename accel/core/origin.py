"""What measured values hold for: hashes of the denoisers' weights, sampler, sizes and machine.

Of each weight up to ``SAMPLES`` values count, rounded to bfloat16, so that the hash of a model of
14 billion weights takes milliseconds and does not depend on device or, mostly, precision. Fused
adapters, finetuned and exchanged weights change it, and so do adapters that are loaded beside them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from accel import __version__
from accel.core.key_steps import Origin
from accel.core.plan_origin import PlanOrigin
from accel.core.structure import denoisers
from accel.kernels.cpu.native import library
from accel.kernels.measured import processor

SAMPLES = 16
STALE = "what it promises is not known for this run; measure again"
LENGTH = 16  # hexadecimal digits of a hash
PACKAGES = ("diffusers", "transformers")  # beside accel and torch


def origin_of(denoisers: Mapping[str, nn.Module], scheduler: Any) -> Origin:
    """Return what a schedule would be measured with."""
    weights = tuple((name, weights_hash(module)) for name, module in denoisers.items())
    return Origin(weights, type(scheduler).__name__, settings_hash(scheduler))


def plan_origin_of(pipe: Any, made_by: str) -> PlanOrigin:
    """Return the origin of a plan that is made now on a pipeline; what was measured is added later.

    Args:
        pipe: A diffusers pipeline, or a denoiser alone.
        made_by: One of ``MAKERS``.

    Raises:
        ValueError: A pipeline without a known denoiser, or an unknown maker.
    """
    measured = origin_of(denoisers(pipe), getattr(pipe, "scheduler", None))
    return replace(here(pipe, made_by), measured=measured)


def here(pipe: Any, made_by: str) -> PlanOrigin:
    """Return the same without a look at the weights and the sampler."""
    modules = denoisers(pipe)
    return PlanOrigin(
        made_by,
        date=datetime.now(UTC).date().isoformat(),
        pipeline=type(pipe).__name__,
        classes={name: type(_inner(module)).__name__ for name, module in modules.items()},
        sizes={name: settings_hash(_inner(module)) for name, module in modules.items()},
        versions=_versions(),
        machine=_machine(next(iter(modules.values()))),
    )


def _versions() -> dict[str, str]:
    found = {"accel": __version__, "torch": torch.__version__}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _machine(module: nn.Module) -> dict[str, str]:
    """Return what times of a denoiser hold for, on the device where it is."""
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    found = {"processor": processor(), "isa": library().isa or "none"}
    if device.type == "cuda":
        return {**found, "device": torch.cuda.get_device_name(device)}
    return {**found, "threads": str(torch.get_num_threads()), "device": device.type}


def moved(origin: Origin | None, denoisers: Mapping[str, Callable[[], Any]], scheduler: Any) -> str:
    """Return what a run has that was not so when it was measured, "" if nothing.

    ``denoisers`` are weak references by name.
    """
    if origin is None:
        return ""
    modules = {name: module for name, find in denoisers.items() if (module := find())}
    why = origin.differs(origin_of(modules, scheduler))
    return f"measured with {why}: {STALE}" if why else ""


def weights_hash(module: nn.Module) -> str:
    """Return a hash of a module's weights.

    It is "" if some are not in memory (offloaded), or cannot be read as numbers (packed ones).
    """
    state = {k: v for k, v in sorted(module.state_dict().items()) if isinstance(v, Tensor)}
    if any(v.is_meta for v in state.values()):
        return ""
    shapes = repr([(name, tuple(v.shape)) for name, v in state.items()])
    try:
        values = [_some(v) for v in state.values()]
    except (RuntimeError, TypeError, NotImplementedError):  # tensors of other packages' own kinds
        return ""
    together = torch.cat(values) if values else torch.zeros(0, dtype=torch.int16, device="cpu")
    return _hash(shapes.encode() + together.numpy().tobytes())


def settings_hash(configured: Any) -> str:
    """Return a hash of a scheduler's or a model's configuration, without private keys."""
    config = getattr(configured, "config", None)
    known = config if isinstance(config, Mapping) else {}
    settings = sorted((k, repr(v)) for k, v in known.items() if not str(k).startswith("_"))
    return _hash(repr(settings).encode())


def _some(weight: Tensor) -> Tensor:
    """Return bits of some values of a weight, int16 [E] on the CPU."""
    flat = weight.detach().reshape(-1)
    some = flat[:: max(1, flat.numel() // SAMPLES)][:SAMPLES]
    return some.to("cpu", torch.float32).to(torch.bfloat16).view(torch.int16)


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:LENGTH]


def _inner(module: nn.Module) -> nn.Module:
    """Return a model without the wrapper that ``torch.compile`` puts around it."""
    inner = getattr(module, "_orig_mod", module)
    return inner if isinstance(inner, nn.Module) else module
