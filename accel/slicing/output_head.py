"""The output head slice by slice: last norm, modulation and projection of a transformer.

Between ``norm_out`` and ``proj_out`` a denoiser's own forward may modulate and cast whole tensors
element by element, sometimes in fp32. ``norm_out`` returns a ``Deferred`` instead of a tensor. It
records such steps, and ``proj_out`` runs the norm, the steps and itself for one slice after the
other. Any other use of a ``Deferred`` makes it an ordinary tensor first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from accel.config import SlicingConfig
from accel.core.autocast import autocasts
from accel.core.cuts import cuts
from accel.core.diffusers_bridge import TOKEN_NORMS, offloaded
from accel.core.lazy import Lazy
from accel.core.stand_in import StandIn
from accel.core.watchers import watcher
from accel.slicing.block_record import BlockRecord
from accel.slicing.reasons import broken

Step = Callable[[Tensor, int, int], Tensor]  # applied to tokens start … stop


@dataclass
class Deferred(Lazy):
    """The norm of ``x`` [B, T, C], and the steps that were applied to it."""

    x: Tensor
    norm: Callable[[Tensor], Tensor]
    steps: list[Step] = field(default_factory=list)

    def part(self, start: int, stop: int) -> Tensor:
        """Return tokens start … stop of the result, [B, stop - start, C]."""
        y = self.norm(self.x[:, start:stop])
        for step in self.steps:
            y = step(y, start, stop)
        return y

    def whole(self) -> Tensor:
        """Return the result as a tensor."""
        return self.part(0, self.x.shape[1])

    def _then(self, step: Step) -> Deferred:
        return Deferred(self.x, self.norm, [*self.steps, step])

    def _with(self, other: Any, function: Callable[[Tensor, Any], Tensor]) -> Any:
        if not isinstance(other, Tensor) or other.dim() == 0:
            return self._then(lambda y, start, stop: function(y, other))
        tokens = other.shape[1] if other.dim() == 3 else 0
        if tokens == 1 or other.dim() == 1:
            return self._then(lambda y, start, stop: function(y, other))
        if tokens == self.x.shape[1]:
            return self._then(lambda y, start, stop: function(y, other[:, start:stop]))
        return function(self.whole(), other)

    def __mul__(self, other: Any) -> Any:
        return self._with(other, torch.mul)

    def __add__(self, other: Any) -> Any:
        return self._with(other, torch.add)

    def type_as(self, other: Tensor) -> Deferred:
        """Convert to the dtype and device of ``other``."""
        return self._then(lambda y, start, stop: y.type_as(other))

    def to(self, *args: Any, **kwargs: Any) -> Deferred:
        """Convert as ``Tensor.to`` does."""
        return self._then(lambda y, start, stop: y.to(*args, **kwargs))


class Norm(StandIn):
    """Replaces the forward of ``norm_out``; ``parts`` are the norm and the projection."""

    def __init__(
        self, parts: tuple[nn.Module, nn.Module], forward: Callable[..., Any], record: BlockRecord
    ) -> None:
        super().__init__(forward)
        self._parts, self._record = parts, record

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the norm of ``x``, deferred where that is possible."""
        if not self.alive or torch.compiler.is_compiling():
            return self.forward(x, *args, **kwargs)
        if reason := self._why_whole(x, (*args, *kwargs.values())):
            self._record.whole[reason] += 1
            return self.forward(x, *args, **kwargs)
        return Deferred(x, lambda part: self.forward(part, *args, **kwargs))

    def _why_whole(self, x: Any, given: Sequence[Any]) -> str:
        conditions = [c for c in given if isinstance(c, Tensor)]
        if not isinstance(x, Tensor) or x.dim() != 3 or any(c.dim() != 2 for c in conditions):
            return "its input is no [B, tokens, channels], or its condition no [B, channels]"
        if torch.is_grad_enabled():
            return "needs gradients"
        if autocasts(x):
            return "under autocast"
        if offloaded(self._parts[0]):
            return "the weights of its norm are offloaded on their own"
        if who := watcher(self._parts[0]) or watcher(self._parts[1]):
            return f"{who} on it"
        return ""


class Projection(StandIn):
    """Replaces the forward of ``proj_out``."""

    def __init__(
        self, forward: Callable[..., Any], config: SlicingConfig, record: BlockRecord
    ) -> None:
        super().__init__(forward)
        self._config, self._record = config, record

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the projection, slice by slice where ``x`` is deferred."""
        if not isinstance(x, Deferred):
            return self.forward(x, *args, **kwargs)
        tokens = x.x.shape[1]
        slices = max(1, min(self._config.slices, tokens // self._config.min_tokens))
        reason = f"fewer than {2 * self._config.min_tokens} tokens" if slices == 1 else ""
        if self.alive and not reason:
            try:
                out = self._sliced(x, slices, args, kwargs)
            except Exception as error:
                reason = broken(error)
            else:
                self._record.sliced[slices] += 1
                return out
        whole = self.forward(x.whole(), *args, **kwargs)  # raises what the model itself would
        if reason:
            self._record.whole[reason] += 1
        return whole

    def _sliced(self, x: Deferred, slices: int, args: Any, kwargs: Any) -> Tensor | None:
        out: Tensor | None = None
        at, tokens = 0, x.x.shape[1]
        for size in cuts(tokens, slices):
            y = self.forward(x.part(at, at + size), *args, **kwargs)
            if out is None:
                out = y.new_empty(y.shape[0], tokens, *y.shape[2:])
            out[:, at : at + size] = y
            at += size
        return out


def head(denoiser: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    """Return ``norm_out`` and ``proj_out`` of a denoiser, or None if they cannot be sliced."""
    norm, projection = (getattr(denoiser, name, None) for name in ("norm_out", "proj_out"))
    if type(norm).__name__ in TOKEN_NORMS and isinstance(projection, nn.Linear):
        return norm, projection  # type: ignore[return-value]
    return None
