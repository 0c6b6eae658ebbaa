"""How much an error of attention at a site shows in the denoiser's output of the same step.

While a job runs at full precision, the denoiser is called again at a few of its steps, once for
each group of sites, with only that group in the least exact candidate. On the embedded model such
errors nearly add up over the sites, and are nearly in proportion to the squared error of the
attention, whatever the precision; so one precision and each site by itself will do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SAMPLED = 5  # steps at which the denoiser is called again
MAX_GROUPS = 12  # such calls at each

Errors = dict[tuple[tuple[str, ...], int], float]  # by group of sites and step


def sampled_steps(steps: int) -> set[int]:
    """Evenly spread steps of a run, with the first and the last."""
    return {round(x) for x in np.linspace(0, steps - 1, min(SAMPLED, steps))}


def groups(sites: Sequence[str]) -> list[tuple[str, ...]]:
    """At most about ``MAX_GROUPS`` groups of neighbours of one kind (the name's last part)."""

    def kind(site: str) -> str:
        return site.rpartition(".")[2]

    kinds = [list(members) for _, members in groupby(sorted(sites, key=kind), key=kind)]
    found: list[tuple[str, ...]] = []
    for members in kinds:
        parts = min(len(members), max(1, MAX_GROUPS // len(kinds)))
        found += [tuple(map(str, part)) for part in np.array_split(members, parts)]
    return found


@contextmanager
def output_errors(
    denoisers: dict[str, nn.Module],
    where: Callable[[nn.Module], tuple[int, Sequence[str]] | None],
    only: Callable[[tuple[str, ...] | None], None],
) -> Iterator[Errors]:
    """Collects mean squared errors of the denoisers' outputs, summed over the calls of a step.

    ``where(module)`` gives step and sites after a call, or None to leave it; ``only(group)`` makes
    that group low and all others full, until ``only(None)``.
    """
    found: Errors = defaultdict(float)
    again = False

    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        nonlocal again
        if again or (place := where(module)) is None:
            return
        step, sites = place
        exact, again = _tensor(output), True
        try:
            for group in groups(sites):
                only(group)
                with torch.no_grad():
                    other = _tensor(module(*args, **kwargs))
                found[group, step] += float((other - exact).double().square().mean())
        finally:
            again = False
            only(None)

    handles = [m.register_forward_hook(after, with_kwargs=True) for m in denoisers.values()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def gains(found: Errors, caused: Callable[[str, int], float], sites: Sequence[str], steps: int
) -> np.ndarray:  # fmt: skip
    """Squared error of the output for each unit of ``caused(site, step)`` [S, N], between sampled
    steps on a straight line of logarithms; the mean where nothing is known.
    """
    known: dict[str, dict[int, float]] = defaultdict(dict)
    for (group, step), error in found.items():
        cause = sum(caused(site, step) for site in group)
        for site in group if cause > 0 and error > 0 else ():
            known[site][step] = np.log(error / cause)
    every = [value for at in known.values() for value in at.values()]
    usual = float(np.mean(every)) if every else 0.0
    rows = []
    for site in sites:
        at = known[site] or {0: usual}
        rows.append(np.interp(np.arange(steps), sorted(at), [at[step] for step in sorted(at)]))
    return np.exp(np.array(rows).reshape(len(sites), steps))


def _tensor(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]
