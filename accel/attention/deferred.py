"""Checks of results on a card: read once per denoiser call, not once per result.

Reading a number from a card waits for everything that was sent there before, so a check of every
attention call would keep Python from running ahead of the card. Here a result's sum, or its error
on sampled rows, stays on the card until the denoiser's call ends; then all are read at once. If one
is bad, its site is taken to full precision and the denoiser computes the call again, below whatever
other hooks do with its output. Only the first bad site is blamed, since what follows it is computed
from its result; after ``ROUNDS`` such attempts all bad ones are.

A site's first call in a precision is read at once (``accel/attention/site.py``), so what is wrong
from the start costs one call only. On the CPU nothing waits, and nothing is deferred.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from accel.attention.guard import GuardedSite
from accel.core.waiting import reading_waits

ROUNDS = 3
AGAIN = "the denoiser computed its call again"

Judge = Callable[[list[float]], str]  # why values are bad, or ""


class Deferred:
    """Checks of one denoiser's current call; ``open`` while it runs in eager code."""

    def __init__(self) -> None:
        self.open = False
        self._checks: list[tuple[GuardedSite, Tensor, Judge]] = []

    def takes(self, out: Tensor, site: GuardedSite, precision: str) -> bool:
        """Return whether a result's check may wait for the end of the denoiser's call."""
        if not self.open or not reading_waits(out.device):
            return False
        return any(known == precision for known, _ in site.checked)

    def add(self, site: GuardedSite, values: Tensor, judge: Judge) -> None:
        """Keep ``values`` [n], which ``judge`` is given as numbers later."""
        self._checks.append((site, values.detach().reshape(-1).float(), judge))

    def finite(self, site: GuardedSite, out: Tensor) -> None:
        """Check later that a result is finite, by its sum."""
        self.add(site, out.sum(dtype=torch.float32), _not_finite)

    def drop(self) -> None:
        """Forget checks that nobody will read."""
        self._checks = []

    def bad(self, blame_all: bool) -> bool:
        """Read all checks, take bad sites to full precision, and return whether there were any."""
        checks, self._checks = self._checks, []
        if not checks:
            return False
        device = checks[0][1].device
        numbers = torch.cat([values.to(device) for _, values, _ in checks]).tolist()
        found = False
        for site, values, judge in checks:
            mine, numbers = numbers[: len(values)], numbers[len(values) :]
            if why := judge(mine):
                site.demote(why, site.state.refresh())
                site.record.recomputed[f"{why}; {AGAIN}"] += 1
                found = True
                if not blame_all:
                    break
        return found


def _not_finite(values: list[float]) -> str:
    return "" if all(map(math.isfinite, values)) else "result not finite"
