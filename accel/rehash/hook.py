"""Step rehash on a denoiser: a hook on diffusers' registry that computes, predicts or reuses.

At level "output" a reused step is predicted from the branch's last outputs and the denoiser does
not run. At level "features" (``accel/rehash/features.py``) it runs without most of its blocks. The
pipeline's ``cache_context`` names the branch of guidance. In pipelines that set none, values
sampled from the conditions identify branches. Calls whose step is unknown are computed, and nothing
is kept of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from diffusers.hooks.hooks import BaseState, ModelHook, StateManager
from torch import Tensor

from accel.core.watchers import hooked_inside
from accel.rehash.features import Features
from accel.rehash.state import RehashState
from accel.rehash.stored import Branch, Entry, Stored

SAMPLES = 16  # values of each condition that identify a branch


class RehashHook(ModelHook):
    """Wraps one denoiser; ``features`` is None at level "output".

    ``keeps_input`` False: blocks may work in place, since outputs alone are kept.
    """

    _is_stateful = True
    keeps_input = False

    def __init__(self, state: RehashState, denoiser: str, features: Features | None) -> None:
        super().__init__()
        self.state, self.features = state, features
        self.alive = True
        self._denoiser = denoiser
        self._template: Any = None
        self.manager = StateManager(BaseState())  # diffusers puts the cache context here

    def reset_state(self, module: Any) -> Any:
        """Forget the run; diffusers calls this when a pipeline call ends."""
        self.state.clear()
        self.manager.reset()
        return module

    def new_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the denoiser, or replace its result."""
        return self.around(module, self.fn_ref.original_forward, args, kwargs)

    def around(self, module: Any, forward: Any, args: Any, kwargs: Any) -> Any:
        """Call ``forward``, or return a prediction instead."""
        if torch.compiler.is_compiling() or not self.alive:
            return forward(*args, **kwargs)
        if module.training:
            self.state.record.note("nothing reused: the denoiser is in training mode, not eval()")
            return forward(*args, **kwargs)
        state, named = self.state, _named(module, args, kwargs)
        inputs = _inputs(named)
        if inputs is None or inputs[0].is_meta:
            if inputs is None:
                state.record.note("nothing reused: a denoiser call had no latents or timestep")
            return forward(*args, **kwargs)
        sample, timestep = inputs
        state.run.observe(timestep)
        context = self._context()
        step, time = state.run.step, state.run.time
        if step is None or time is None:
            state.clear()
            state.record.calls["computed"] += 1
            why = state.run.unknown or "its timestep cannot be read"
            state.record.note(f"denoiser calls were computed and not kept, step unknown: {why}")
            return forward(*args, **kwargs)
        if context and context.step_index is not None:
            step = context.step_index
        state.start()
        compute, _ = state.decide(step, self._denoiser)
        if state.off:
            state.record.calls["computed"] += 1
            return forward(*args, **kwargs)
        branch = state.branch(self._denoiser, _branch_key(context, named))
        signature = str((tuple(sample.shape), sample.dtype, sample.device))
        if branch.signature != signature:
            branch.signature, branch.entries = signature, []
        if not compute and (why := self._why_not(module, branch, step, time, named)):
            compute = True
            state.record.note(f"calls were computed at reused steps: {why}")
        state.record.calls["computed" if compute else "reused"] += 1
        if not compute and self.features is None:
            return self._predict(branch, step, time, kwargs)
        if self.features is None:
            output = forward(*args, **kwargs)
            result = self._learn(branch, step, time, output)
        else:
            result = output = self._through(branch, compute, step, time, forward, args, kwargs)
        if compute and state.by_rate:
            first = output[0] if isinstance(output, tuple) else output.to_tuple()[0]
            if isinstance(first, Tensor):
                state.steadiness.take(branch, step, time, first)
        return result

    def _why_not(
        self, module: Any, branch: Branch, step: int, time: float, named: dict[str, Any]
    ) -> str:
        if self.state.weights(step, time, branch, False) is None:
            return "too little was kept of their branch of guidance"
        if self.state.outdated(branch.entries):
            return "their branch of guidance was not called at the last computed step"
        if self.features is not None and any(
            value is not None and name.startswith(("down_", "mid_"))
            for name, value in named.items()
        ):
            return "features cannot be reused with a ControlNet"
        if self.features is None and (inner := hooked_inside(module)):
            return f"a hook on {inner!r} reads or changes what the denoiser computes inside"
        return ""

    def _context(self) -> Any:
        try:
            return self.manager.context
        except ValueError:
            return None

    # ------------------------------------------------------------------------------------- output

    def _predict(self, branch: Branch, step: int, time: float, kwargs: Any) -> Any:
        factors = self.state.weights(step, time, branch, False)
        assert factors is not None
        if self.state.chosen:
            self.state.record.predicted[self.state.prediction(branch.denoiser).name] += 1
        values = combine(factors, branch.entries)
        if kwargs.get("return_dict", True) and self._template is not None:
            return self._template(*values)
        return values

    def _learn(self, branch: Branch, step: int, time: float, output: Any) -> Any:
        """Keep a computed output, and tell the rule how well it could have been predicted.

        Returns what the sampler gets: the output, corrected if weights were measured.
        """
        state = self.state
        values = output if isinstance(output, tuple) else tuple(output.to_tuple())
        if not isinstance(output, tuple):
            self._template = type(output)
        if not all(isinstance(v, Tensor) for v in values):
            state.record.note("nothing reused: an output of the denoiser is not a tensor")
            return output
        factors = state.weights(step, time, branch, True)
        assert factors is not None
        result = output
        if len(factors) > 1:
            result = combine(factors, branch.entries, values)
            result = result if isinstance(output, tuple) else type(output)(*result)
            state.record.corrected += 1
        self._keep(branch, step, time, tuple(v.detach().clone() for v in values))
        return result

    def _keep(self, branch: Branch, step: int, time: float, values: tuple[Tensor, ...]) -> None:
        state, entries = self.state, branch.entries
        if state.by_rate and state.leads(branch) and len(entries) > state.order:
            if state.chosen:
                tried = state.tries(branch, step, time).items()
                errors = {n: _relative_error(combine(w, entries)[0], values[0]) for n, w in tried}
                choice = state.prediction(branch.denoiser)
                state.observe(step, time, choice.among(errors), entries)
                choice.observe(errors)
            elif (factors := state.weights(step, time, branch, False)) is not None:
                error = _relative_error(combine(factors, entries)[0], values[0])
                state.observe(step, time, error, entries)
        if state.order and not state.fitted and entries and entries[0].time == time:
            branch.entries = entries[1:]  # Heun: two values at one time define no line
        kept = tuple(Stored(v, state.config.store) for v in values)
        state.keep(branch, Entry(step, time, kept))

    # ----------------------------------------------------------------------------------- features

    def _through(
        self,
        branch: Branch,
        compute: bool,
        step: int,
        time: float,
        forward: Any,
        args: Any,
        kwargs: Any,
    ) -> Any:
        """Run the denoiser, with its blocks recorded or replaced."""
        assert self.features is not None
        if compute:
            with self.features.recording() as kept:
                output = forward(*args, **kwargs)
            if kept:
                self._keep(branch, step, time, tuple(kept))
            else:
                self.state.record.note("its blocks did not run as expected; nothing was kept")
            return output
        with self.features.reusing([v.get() for v in branch.entries[0].values]):
            return forward(*args, **kwargs)


def combine(
    factors: Sequence[float], entries: Sequence[Entry], fresh: tuple[Tensor, ...] = ()
) -> tuple[Tensor, ...]:
    """Return the weighted sum of the outputs ``fresh``, if there are any, and kept ``entries``.

    ``factors`` belong to ``fresh`` first, then to the entries, newest first. The result has one
    tensor per stream, in the stream's own dtype.
    """
    older = entries if fresh else entries[1:]
    streams = []
    sources: Sequence[Tensor | Stored] = fresh or entries[0].values
    for i, first in enumerate(sources):
        newest = first.get() if isinstance(first, Stored) else first
        total = newest.float() * factors[0]
        for factor, entry in zip(factors[1:], older, strict=False):
            if factor:
                total.add_(entry.values[i].get().float(), alpha=factor)
        streams.append(total.to(newest.dtype))
    return tuple(streams)


def _relative_error(guess: Tensor, truth: Tensor) -> float:
    difference = (guess.float() - truth.float()).norm()
    return float(difference / truth.float().norm().clamp_min(1e-12))


def _named(module: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """Return all arguments of a denoiser call by name."""
    inner = getattr(module, "_orig_mod", module)
    names = list(inspect.signature(type(inner).forward).parameters)[1:]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _inputs(named: dict[str, Any]) -> tuple[Tensor, Any] | None:
    """Return the latents and the timestep of a denoiser call, or None."""
    sample, timestep = named.get("hidden_states", named.get("sample")), named.get("timestep")
    if isinstance(sample, Tensor) and isinstance(timestep, (Tensor, int, float)):
        return sample, timestep
    return None


def _branch_key(context: Any, named: dict[str, Any]) -> tuple[Hashable, ...]:
    """Return the cache context's name, or without one sampled values of the condition."""
    if context is not None:
        return (context.name,)
    key: list[Hashable] = []
    for name, tensor in sorted(named.items()):
        if isinstance(tensor, Tensor) and name.startswith("encoder_hidden_states"):
            flat = tensor.detach().flatten()
            every = max(1, flat.numel() // SAMPLES)
            key += [tuple(tensor.shape), tuple(flat[::every][:SAMPLES].float().tolist())]
    return tuple(key)
