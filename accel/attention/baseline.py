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
from accel.attention.providers import Provider, provider
from accel.core.described import described
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
        out, why = self._tried(call)
        if why:
            said = f"{self.name} did not take a call, torch computed it ({why})"
            self.instead[said] += 1
        elif self._provider is not None:
            self.ran[self.name] += 1
        return out

    def tried(self, call: Call) -> Tensor:
        """Compute a call without counting it."""
        return self._tried(call)[0]

    def _tried(self, call: Call) -> tuple[Tensor, str]:
        """Return a call's result, and why it is torch's instead of the user's backend's, or ""."""
        if self._provider is None:
            return call.full(), ""
        kind = _kind(call)
        why = self._refused.get(kind, "")
        if not why:
            try:
                return self._provider.run(call), ""
            except Exception as error:  # of whatever kind somebody's backend raises
                why = self._refused[kind] = described(error)
        return call.full(), why


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
    wide, how = call.wide(), "in fp32, since it overflows in half precision"
    tensors = {name: getattr(wide, name) for name in ("query", "key", "value")}
    if not all(map(finite, tensors.values())):
        how = "with NaN and infinite inputs replaced by finite numbers"
        clean = {name: x.nan_to_num().clamp(-1e18, 1e18) for name, x in tensors.items()}
        wide = replace(wide, **clean)
    with torch.autocast(out.device.type, enabled=False):
        exact = wide.full()
    most = torch.finfo(out.dtype).max
    return exact.nan_to_num().clamp(-most, most).to(out.dtype), how
