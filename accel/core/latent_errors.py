"""The distance of an accelerated run from its reference run, step by step, in latents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from accel.core.structure import denoisers


@contextmanager
def latents_by_step(pipe: Any) -> Iterator[list[Tensor]]:
    """Collect the latents that the denoiser is given at each step of the runs inside.

    Those are the latents after the step before, fp16 on the CPU, including conditioning channels.
    With several denoisers, or several calls in a step, the first call for each timestep counts.
    Raises ValueError for a pipeline without a known denoiser.
    """
    found: list[Tensor] = []
    last: list[float] = []

    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        sample = next((kwargs[k] for k in ("hidden_states", "sample", "x") if k in kwargs), None)
        sample = args[0] if sample is None else sample
        time = kwargs.get("timestep", args[1] if len(args) > 1 else None)
        if not isinstance(sample, Tensor) or time is None:
            return
        now = float(torch.as_tensor(time).flatten()[0])
        if not last or last[-1] != now:
            last.append(now)
            found.append(sample.detach().to("cpu", torch.float16))

    handles = [
        m.register_forward_pre_hook(before, with_kwargs=True) for m in denoisers(pipe).values()
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def latent_errors(reference: Sequence[Tensor], run: Sequence[Tensor]) -> list[float]:
    """Return the relative L2 distance between the latents of two runs, step by step.

    Raises ValueError for runs of different length.
    """
    if len(reference) != len(run):
        raise ValueError(f"runs of different length: {len(reference)} and {len(run)} steps")
    return [
        float((b.double() - a.double()).norm() / a.double().norm().clamp_min(1e-30))
        for a, b in zip(reference, run, strict=True)
    ]
