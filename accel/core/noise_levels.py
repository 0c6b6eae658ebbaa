"""Where each step of a schedule lies between pure noise and the result."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from torch import Tensor

LEAST = 1e-3  # smallest share of signal or of noise that counts; flow schedules begin with none


def places(scheduler: Any) -> list[float]:
    """Return the place of each step of a scheduler's schedule, from 1 at the first to 0.

    It is linear in log(signal / noise), the variable in which DPM-Solver solves (Lu et al. 2022,
    arXiv 2206.00927). Schedulers state that as ``sigmas``, noise over signal, or in flow matching
    the share of noise; or, without those, as ``alphas_cumprod``, the squared share of signal at a
    training timestep. The list is empty where a scheduler has neither, and where it does not rise
    from step to step.
    """
    times, sigmas = getattr(scheduler, "timesteps", None), getattr(scheduler, "sigmas", None)
    if not isinstance(times, Tensor) or not times.numel():
        return []
    if isinstance(sigmas, Tensor):
        levels = sigmas.double().flatten()[: len(times)].tolist()
        flow = max(levels, default=0.0) <= 1.0
        found = [_of_flow(s) if flow else -math.log(max(s, LEAST)) for s in levels]
    else:
        kept = getattr(scheduler, "alphas_cumprod", None)
        if not isinstance(kept, Tensor):
            return []
        shares = kept.double().tolist()
        places = [min(max(int(t), 0), len(shares) - 1) for t in times.flatten().tolist()]
        found = [_of_share(shares[place]) for place in places]
    rises = all(before <= after for before, after in pairwise(found))
    if not rises or len(found) != len(times) or found[-1] == found[0]:
        return []
    return [(found[-1] - level) / (found[-1] - found[0]) for level in found]


def _of_flow(sigma: float) -> float:
    return math.log(max(1.0 - sigma, LEAST) / max(sigma, LEAST))


def _of_share(share: float) -> float:
    return 0.5 * math.log(max(share, LEAST**2) / max(1.0 - share, LEAST**2))
