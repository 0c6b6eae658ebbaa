"""Key steps of a given number with the smallest error, as pure functions over numbers.

Everything follows from inner products of a run's outputs, G[i, j] = <y_i, y_j> in units of the
final latent's <x, x>. A skipped step gets a combination of earlier outputs instead (``weights``).
So to first order the error of the final latent is e = sum_j w_j (sum_k a_jk y_k - y_j), where w_j
is the length of step j in the timestep and a_jk are the weights. That is a quadratic form of G for
a whole schedule, and it includes errors that cancel. It leaves out how the model responds to its
own error; it responds longest to early errors. So w_j is multiplied by (timestep / first timestep)
to a power, several powers are tried, and real runs decide (``accel/calibration/steps.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from accel.rehash.schedule import forced, head, weights

GROWTH = (0.0, 1.0, 2.0)  # powers that are tried


def step_weights(times: Sequence[float], growth: float) -> np.ndarray:
    """Return the lengths [steps] of the steps as fractions of the whole.

    Each is multiplied by (time / first time) ** growth.
    """
    t = np.asarray([*times, 0.0])
    return (t[:-1] - t[1:]) / t[0] * (t[:-1] / t[0]) ** growth


def coefficients(
    keys: Iterable[int], times: Sequence[float], order: int, part: np.ndarray
) -> np.ndarray:
    """Return the share [steps] of each output in the final latent's error.

    ``part`` [steps] are the step weights.
    """
    c = np.zeros(len(times))
    known: list[int] = []
    keys = set(keys)
    for j, time in enumerate(times):
        if j in keys:
            known = [j, *known][: order + 1]
            continue
        c[j] -= part[j]
        for k, a in zip(known, weights([times[k] for k in known], time), strict=True):
            c[k] += part[j] * a
    return c


def error(
    keys: Iterable[int], gram: np.ndarray, times: Sequence[float], order: int, growth: float = 0.0
) -> float:
    """Return the relative squared error of the final latent, to first order."""
    c = coefficients(keys, times, order, step_weights(times, growth))
    return max(0.0, float(c @ gram @ c))


def best_keys(
    gram: np.ndarray, times: Sequence[float], count: int, order: int, growth: float
) -> frozenset[int]:
    """Return ``count`` key steps, including the forced ones.

    Dynamic programming over gaps finds them, and exchanges of single steps improve them. Minimized
    is the sum of the squared errors of the gaps, plus that of the whole schedule during exchanges.
    The whole schedule's error alone would rely on errors of different gaps that cancel, which they
    do not on other jobs.
    """
    costs = gap_costs(gram, times, order, growth)

    def objective(keys: frozenset[int]) -> float:
        return error(keys, gram, times, order, growth) + _sum_of_gaps(keys, costs)

    keys = _by_gaps(costs, count)
    best = objective(keys)
    while True:
        moves = [
            (keys - {out}) | {new}
            for out in keys - forced(len(times))
            for new in set(range(len(times))) - keys
        ]
        scored = min(((objective(k), sorted(k)) for k in moves), default=(best, []))
        if scored[0] >= best * (1 - 1e-9):
            return keys
        best, keys = scored[0], frozenset(scored[1])


def _sum_of_gaps(keys: frozenset[int], costs: np.ndarray) -> float:
    """Return the sum of the gaps' squared errors."""
    k = sorted(keys)
    before = [k[0], *k[:-2]]
    return float(sum(costs[a, b, c] for a, b, c in zip(before, k[:-1], k[1:], strict=True)))


def _by_gaps(costs: np.ndarray, count: int) -> frozenset[int]:
    """Return the best keys by dynamic programming over neighboring keys (a, b).

    A line needs both of them.
    """
    steps = len(costs)
    if count >= steps:
        return frozenset(range(steps))
    first = head(steps) - 1
    best = np.full((steps, steps), np.inf)  # [a, b]: cheapest way to keys a, b
    best[max(first - 1, 0), first] = 0.0
    back: list[np.ndarray] = []
    for _ in range(count - first - 1):
        total = best[:, :, None] + costs  # [a, b, c]
        back.append(total.argmin(0))
        best = total.min(0)
    b, c = int(best[:, steps - 1].argmin()), steps - 1
    keys = {*range(first + 1), c}
    for came in reversed(back):
        keys.add(b)
        b, c = int(came[b, c]), b
    return frozenset(keys)


def gap_costs(gram: np.ndarray, times: Sequence[float], order: int, growth: float) -> np.ndarray:
    """Return the squared error [steps, steps, steps] of skipping the steps between keys b and c.

    Key a is the one before b. Entries are infinite unless a < b < c (a = b = 0 at the start).
    """
    steps, part = len(times), step_weights(times, growth)
    cost = np.full((steps, steps, steps), np.inf)
    for b in range(steps - 1):
        for a in range(b) if b else range(1):
            known = [b, a][: order + 1] if b else [b]
            c = np.zeros(steps)
            cost[a, b, b + 1] = 0.0
            for j in range(b + 1, steps - 1):
                c[j] -= part[j]
                for k, w in zip(known, weights([times[k] for k in known], times[j]), strict=True):
                    c[k] += part[j] * w
                cost[a, b, j + 1] = max(
                    0.0, float(c[: j + 1] @ gram[: j + 1, : j + 1] @ c[: j + 1])
                )
    return cost
