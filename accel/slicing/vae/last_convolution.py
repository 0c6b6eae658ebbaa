"""A decoder's last norm, activation and convolution, strip by strip.

The norm and the activation pass their input on, and the convolution runs all three, so that no
whole picture is normalized or activated at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from accel.core.cuts import rows
from accel.core.diffusers_bridge import offloaded
from accel.core.stand_in import StandIn
from accel.core.tree import tree_map
from accel.core.watchers import watcher
from accel.slicing.reasons import broken
from accel.slicing.vae.strips import Strips, cut, keep, why_whole


class Together:
    """Whether a decoder's norm, activation and last convolution run in the last one's forward."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        self._parts = parts

    def why_not(self, x: Tensor) -> str:
        """Return why each part has to run by itself, or ""."""
        if torch.compiler.is_compiling():
            return "compiled"
        if reason := why_whole(x):
            return reason
        if offloaded(self._parts[0]):
            return "the weights of its last norm are offloaded on their own"
        who = next(filter(None, map(watcher, self._parts)), "")
        return f"{who} on its head" if who else ""


class Through(StandIn):
    """Replaces the head's norm and activation, which run in strips in ``Head``."""

    def __init__(self, forward: Callable[..., Any], together: Together) -> None:
        super().__init__(forward)
        self._together = together

    def __call__(self, x: Tensor) -> Any:
        """Return ``x`` unchanged where ``Head`` does the work."""
        return self.forward(x) if not self.alive or self._together.why_not(x) else x


class Head(Strips):
    """Replaces the forward of the last convolution ``(x, cache_x)``.

    It runs norm, activation and convolution of one strip after the other. The cache holds the
    values before the norm. ``together``: whether ``Through`` passes its input on unchanged.
    """

    def __init__(self, *args: Any, before: Callable[[Tensor], Tensor], together: Together) -> None:
        super().__init__(*args)
        self._before, self._together = before, together

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Run norm, activation and convolution in strips where that is possible."""
        x, *rest = args or (named.pop(self._picture),)
        if not self.alive or torch.compiler.is_compiling():
            return self.forward(x, *rest, **named)
        if reason := self._together.why_not(x):
            self._record.whole[reason] += 1
            return self.forward(x, *rest, **named)
        strips, reason = max(1, self._most(x)), self._broken
        if not reason:
            try:
                out = self._strips(strips, x, *rest, **named)
            except Exception as error:
                reason = broken(error)
        if reason:  # norm and activation were passed through, and caches hold what they are given
            out = self._whole(x, *rest, **named)
            self._broken = reason
        elif strips < 2:
            reason = "small picture"
        if reason:
            self._record.whole[reason] += 1
        else:
            self._record.sliced[strips] += 1
        return out

    def _whole(self, x: Tensor, *rest: Any, **named: Any) -> Any:
        """Run norm, activation and convolution one after the other on all rows."""
        return self.forward(*self._prepared((x, *rest)), **self._prepared(named))

    def _prepared(self, given: Any, low: int = 0, high: int | None = None) -> Any:
        """Return arguments with the norm and the activation of some rows of each tensor."""

        def one(x: Any) -> Any:
            return self._before(x[..., low:high, :]) if isinstance(x, Tensor) else x

        return tree_map(one, given)

    def _strips(self, strips: int, x: Tensor, *rest: Any, **named: Any) -> Any:
        out: Tensor | None = None
        for start, stop, low, high in rows(x.shape[-2], strips, 1):
            args = self._prepared((x, *rest), low, high)
            y = self.forward(*args, **self._prepared(named, low, high))
            out = keep(out, cut(y, start - low, stop - low), start, x.shape[-2])
        return out
