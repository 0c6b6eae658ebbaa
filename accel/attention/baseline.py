"""What the user's own code would run at a site: torch's attention, or the backend they chose.

This is what full precision means there. A call that their backend does not take, which would have
stopped their own code, goes to torch's attention, and the report says so.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from accel.attention import sdpa
from accel.attention.call import Call, finite
from accel.attention.providers import Provider, first_line, provider
from accel.core.diffusers_providers import NATIVE, Chosen


class Baseline:
    """The baseline of one site.

    ``ran`` counts calls by a backend that is not torch's own choice, ``instead`` what torch
    computed in its place, by reason.
    """

    def __init__(self, chosen: Chosen | None = None) -> None:
        self._chosen = chosen
        self._provider: Provider | None = None
        self._refused: dict[tuple[object, ...], str] = {}
        self.name = NATIVE
        self.ran: Counter[str] = Counter()
        self.instead: Counter[str] = Counter()
        self.begin()

    @property
    def note(self) -> str:
        """Why the user's backend runs beside accel, "" where it does not."""
        return "" if self._chosen is None else self._chosen.note

    def begin(self) -> None:
        """Take note of what the user chose, before a call of the module."""
        if self._chosen is None:
            return
        self._chosen.follow()
        name = NATIVE if self._chosen.note else self._chosen.name
        if name != self.name:
            self.name = name
            self._provider = None if self.name == NATIVE else provider(self.name)
            self._refused = {}

    def tried(self, call: Call) -> Tensor:
        """Compute a call without counting it."""
        known = self.ran.copy(), self.instead.copy()
        try:
            return self.run(call)
        finally:
            self.ran, self.instead = known

    def run_plain(self, *arguments: Any) -> Tensor:
        """Compute a call that is given by its arguments, see ``Call``; short ones cost little."""
        if self._provider is not None:
            return self.run(Call(*arguments))
        query, key, value, mask, causal, scale, gqa = arguments
        return sdpa.original()(
            query, key, value, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=gqa
        )

    def run(self, call: Call) -> Tensor:
        """Compute a call as the user's code would have."""
        if self._provider is None:
            return call.full()
        kind = _kind(call)
        why = self._refused.get(kind)
        if why is None:
            try:
                out = self._provider.run(call)
                self.ran[self.name] += 1
                return out
            except Exception as error:  # of whatever kind somebody's backend raises
                why = self._refused[kind] = f"{type(error).__name__}: {first_line(error)}"
        self.instead[f"{self.name} did not take a call, torch computed it ({why})"] += 1
        return call.full()


def _kind(call: Call) -> tuple[object, ...]:
    """Return what a backend may refuse a call for."""
    mask = call.attn_mask
    shapes = call.query.shape, call.key.shape, None if mask is None else mask.shape
    return (*shapes, call.query.dtype, call.is_causal, call.scale, call.enable_gqa)


def rescued(call: Call, baseline: Baseline) -> tuple[Tensor, str]:
    """Compute a call after an unusable result: always finite, and what it took.

    First as the user's code would; then, where that overflows in half precision, by torch in fp32;
    then with the inputs' own NaN and infinities replaced by 0 and the largest finite numbers.
    """
    out = baseline.run(call)
    if finite(out):
        return out, ""
    q, k, v = (t.float() for t in (call.query, call.key, call.value))
    how = "in fp32, since it overflows in half precision"
    if not all(finite(t) for t in (q, k, v)):
        how = "with NaN and infinite inputs replaced by finite numbers"
        q, k, v = (t.nan_to_num().clamp(-1e18, 1e18) for t in (q, k, v))
    mask = call.attn_mask
    mask = mask.float() if mask is not None and mask.is_floating_point() else mask
    with torch.autocast(out.device.type, enabled=False):
        wide = replace(call, query=q, key=k, value=v, attn_mask=mask).full()
    most = torch.finfo(out.dtype).max
    return wide.nan_to_num().clamp(-most, most).to(out.dtype), how
