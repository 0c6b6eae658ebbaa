"""How an error at a site changes the denoiser's output of the same step.

While a job runs at full precision, the denoiser is called again at a few of its steps, once for
each group of sites, with only that group in the least exact candidate. On the embedded model such
errors nearly add up over the sites, and are nearly in proportion to the squared error of the
site's result, whatever the precision. So it is enough to measure one precision, one group at a
time.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SAMPLED = 5  # steps at which the denoiser is called again
MAX_GROUPS = 24  # further calls at each of those steps

Errors = dict[tuple[tuple[str, ...], int], float]  # by group of sites and step


def sampled_steps(steps: int) -> set[int]:
    """Return evenly spread steps of a run, including the first and the last."""
    return {round(x) for x in np.linspace(0, steps - 1, min(SAMPLED, steps))}


def groups(sites: Sequence[str]) -> list[tuple[str, ...]]:
    """Return about ``MAX_GROUPS`` groups, at most, of neighboring sites of one kind.

    The kind is a site's name inside its block. The last site of a kind is alone: what
    stands near the output may matter 40 times as much as what is mixed with later blocks.
    """

    def kind(site: str) -> str:
        return re.sub(r".*blocks\.\d+\.", "", site)

    kinds = [list(members) for _, members in groupby(sorted(sites, key=kind), key=kind)]
    found: list[tuple[str, ...]] = []
    for members in kinds:
        parts = min(len(members), max(1, MAX_GROUPS // len(kinds)))
        if parts == 1:
            found.append(tuple(members))
            continue
        rest = np.array_split(members[:-1], parts - 1)
        found += [*(tuple(map(str, part)) for part in rest), (members[-1],)]
    return found


@contextmanager
def output_errors(
    denoisers: dict[str, nn.Module],
    where: Callable[[nn.Module], tuple[int, Sequence[str]] | None],
    only: Callable[[tuple[str, ...] | None], None],
) -> Iterator[Errors]:
    """Collect mean squared errors of the denoisers' outputs, summed over the calls of a step.

    Args:
        denoisers: The denoisers by component name.
        where: Gives step and sites after a call of a module, or None to skip the call.
        only: Makes only the given group low and all others full; None makes all full again.
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
    """Return the output's squared error [S, N] per unit of ``caused(site, step)``.

    Between sampled steps its logarithm is interpolated linearly. Sites without a sample get the
    mean.
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
