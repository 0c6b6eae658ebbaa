"""Runs without step rehash in numbers: outputs, timesteps, latents, the sampler's arithmetic."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from accel.core.run_pipeline import Run as Job
from accel.core.run_pipeline import as_run
from accel.core.structure import denoisers
from accel.patching import patched
from accel.plans import Plan

ELEMENTS = 1 << 17  # elements kept of an output: inner products need no more
LINEAR = 0.02  # relative error up to which a sampler counts as linear; half precision rounds


@dataclass
class Run:
    """A run without step rehash.

    ``frames`` are uint8 [F, H, W, 3]. ``outputs`` [N][E] are elements of the outputs that the
    sampler was stepped with, ``times`` [N] their timesteps, and ``names`` [N] the denoisers that
    ran. ``first`` and ``final`` [E] are the same elements of the latents. ``response`` is what
    ``answer`` returns. ``sampler`` is the scheduler's class name. ``inputs`` are the sizes of a
    denoiser's input without the batch.
    """

    frames: np.ndarray = field(default_factory=lambda: np.zeros(0))
    outputs: list[Tensor] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    first: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float32, device="cpu"))
    final: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float32, device="cpu"))
    response: np.ndarray | str = "the sampler was not stepped"
    sampler: str = ""
    inputs: tuple[int, ...] = ()

    def gram(self) -> np.ndarray:
        """Return the inner products [N, N] of the outputs, divided by the final latent's own."""
        rows = torch.stack([y.double() for y in self.outputs])
        return (rows @ rows.T / self.final.double().square().sum()).numpy()

    def why_not_linear(self) -> str:
        """Return why the final latent is no fixed combination of the outputs, or "" if it is."""
        if isinstance(self.response, str):
            return self.response
        if len(self.response) != len(self.times) + 1:
            return "the run used only a part of its sampler's schedule"
        row = torch.from_numpy(self.response[-1])
        known = torch.stack([*self.outputs, self.first]).double()
        off = float((row @ known - self.final).norm() / self.final.double().norm())
        if not off <= LINEAR:
            return f"its arithmetic is not linear or it adds noise (relative error {off:.2g})"
        return ""


def full_run(pipe: Any, job: Mapping[str, Any] | Job, plan: Plan) -> Run:
    """Run ``job`` with every step computed, under the rest of ``plan``, and return the run."""
    with patched(pipe, plan=replace(plan, rehash=None)) as handle, listening(pipe) as run:
        run.frames = as_run(job)(pipe)
        run.inputs = handle.origin.inputs
    return run


def answer(scheduler: Any, dimensions: int) -> np.ndarray | str:
    """Return a sampler's answer [N + 1, N + 1] to unit impulses, or the reason why it has none.

    The rows are the latents before each step and at the end. The columns are a unit of each step's
    output and, last, of the first latent. Samplers work element by element, so one run with one
    element per unit gives all of them. ``scheduler`` is used up; a latent has ``dimensions``
    dimensions.
    """
    times = scheduler.timesteps
    x = torch.zeros(len(times) + 1, dtype=torch.float64, device="cpu")
    x[-1] = 1.0
    shape = (1, -1, *[1] * (dimensions - 2)) if dimensions > 2 else (1, -1)
    x = x.reshape(shape).to(times.device)
    rows = [x.flatten()]
    try:
        for j, t in enumerate(times):
            impulse = torch.zeros_like(x).flatten()
            impulse[j] = 1.0
            x = scheduler.step(impulse.reshape(x.shape), t, x, return_dict=False)[0].double()
            rows.append(x.flatten())
    except Exception as error:  # a sampler may raise anything; it then has no answer
        return f"{type(scheduler).__name__} cannot be stepped on its own: {error}"
    return torch.stack(rows).cpu().numpy()


@contextmanager
def listening(pipe: Any) -> Iterator[Run]:
    """Record what the scheduler is stepped with, in the ``Run`` that this context yields."""
    scheduler = pipe.scheduler
    run = Run(sampler=type(scheduler).__name__)
    step, own = scheduler.step, "step" in vars(scheduler)
    current = [""]

    def noting(
        model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        if not run.times:
            twin = copy.deepcopy(scheduler)
            vars(twin).pop("step", None)
            run.response, run.first = answer(twin, sample.dim()), _some(sample)
        run.outputs.append(_some(model_output))
        run.times.append(float(timestep))
        run.names.append(current[0])
        result = step(model_output, timestep, sample, *args, **kwargs)
        run.final = _some(result[0] if isinstance(result, tuple) else result.prev_sample)
        return result

    def named(name: str) -> Any:
        return lambda module, args: current.__setitem__(0, name)

    with ExitStack() as stack:
        for name, module in denoisers(pipe).items():
            stack.callback(module.register_forward_pre_hook(named(name)).remove)
        scheduler.step = noting
        try:
            yield run
        finally:
            if own:
                scheduler.step = step
            else:
                del scheduler.step


def _some(x: Tensor) -> Tensor:
    """Return elements [E] of a latent in fp32 on the CPU: all, or the same random ones of each."""
    flat = x.detach().flatten()
    if len(flat) > ELEMENTS:
        chosen = torch.randint(
            len(flat),
            (ELEMENTS,),
            generator=torch.Generator().manual_seed(0),
            dtype=torch.int64,
            device="cpu",
        )
        flat = flat[chosen.to(flat.device)]
    return flat.float().cpu().clone()
