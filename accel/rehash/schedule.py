"""Policy of step rehash: which steps are computed. Pure functions over numbers.

Steps are 0-based; a key step is one that is computed. Whatever chooses them, the first fifth of a
run, where the picture is laid out, and the last step, which nothing corrects any more, are keys.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

HEAD = 0.2  # part of a run that is always computed, from its start
FEW = 8  # runs of this many steps or fewer leave nothing to skip
UNMEASURED = 2.0  # steps per computed one up to which the rule is known to beat a shorter run


def head(steps: int) -> int:
    """Number of steps at the start of a run that are always computed."""
    return math.ceil(HEAD * steps)


def forced(steps: int) -> frozenset[int]:
    """Steps that are always computed."""
    if steps <= FEW:
        return frozenset(range(steps))
    return frozenset((*range(head(steps)), steps - 1))


def budget(steps: int, speedup: float) -> int:
    """Number of steps to compute for ``speedup`` = steps / computed, at least the forced ones."""
    return min(steps, max(len(forced(steps)), round(steps / speedup)))


def stretch(keys: Sequence[int], measured: int, steps: int) -> frozenset[int]:
    """Keys of a run of ``measured`` steps carried over to one of ``steps``, forced ones included.

    The share of keys and how densely they lie along the run stay the same.
    """
    wanted = sorted(forced(measured) | set(keys))
    if steps == measured:
        return frozenset(wanted)
    count = max(len(forced(steps)), round(len(wanted) * steps / measured))
    inner = [k for k in wanted if head(measured) <= k < measured - 1]
    free = count - len(forced(steps))
    found = set(forced(steps))
    first, last = head(measured) - 1, measured - 1
    scale = (steps - head(steps)) / (measured - head(measured))
    for i in range(free):
        at = (i + 1) * (len(inner) + 1) / (free + 1)  # position among first, inner..., last
        nodes = [first, *inner, last]
        low = min(int(at), len(nodes) - 2)
        value = nodes[low] + (at - low) * (nodes[low + 1] - nodes[low])
        found.add(_nearest_free(round(head(steps) - 1 + (value - first) * scale), steps, found))
    return frozenset(found)


def _nearest_free(wanted: int, steps: int, taken: set[int]) -> int:
    open_steps = [i for i in range(steps) if i not in taken]
    return min(open_steps, key=lambda i: (abs(i - wanted), i))


def similar_keys(similarity: Sequence[Sequence[float]], gamma: float) -> frozenset[int]:
    """Algorithm 1 of Streamlined Inference (Zhan et al. 2024, arXiv 2411.01171).

    An anchor, at first step 0, serves the steps after it whose similarity to it is at least
    ``gamma``; the first that is less similar is the next anchor. The last step is always a key.
    ``similarity`` [steps, steps], 1 on the diagonal. No forced steps are added.
    """
    steps = len(similarity)
    anchor, keys = 0, {0, steps - 1}
    for i in range(1, steps):
        if similarity[i][anchor] < gamma:
            keys.add(i)
            anchor = i
    return frozenset(keys)


def similar_keys_of_count(similarity: Sequence[Sequence[float]], count: int) -> frozenset[int]:
    """Keys of Algorithm 1 with the largest gamma that gives at most ``count`` of them, forced
    steps included.
    """
    steps = len(similarity)
    best = forced(steps)
    for gamma in sorted({s for row in similarity for s in row}):
        keys = similar_keys(similarity, gamma) | forced(steps)
        if len(best) < len(keys) <= count:
            best = keys
    return best


def weights(times: Sequence[float], at: float) -> list[float]:
    """Weights of values at ``times``, newest first, that give the line (or with one value, the
    constant) through them at time ``at``. Equal times, as in Heun's method, count as one value.
    """
    if len(times) == 1:
        return [1.0]
    newest, before = times[0], times[1]
    if newest == before:
        return [1.0, 0.0]
    a = (at - newest) / (newest - before)
    return [1.0 + a, -a]


class Rate:
    """Chooses key steps while a run goes on, from how well the last ones could be predicted.

    At each key step the output is compared with what reuse would have given. The error grows with
    the distance in steps, d (order 0) or d (d + h) (order 1; h between the two values the line goes
    through), so the rate per step follows; it counts with the step's length in the timestep and,
    because early errors are answered by all later steps, with the timestep itself. Where that is
    above its recent mean, the next gap is shorter, where it is below, longer, as in step-size
    control of differential equations. EasyCache (arXiv 2507.02860) has such a rate of order 0 and a
    threshold; here the number of computed steps is exactly ``count``.
    """

    MEMORY = 0.7  # share of the mean that stays at each observation

    def __init__(self, steps: int, count: int, order: int) -> None:
        self.steps, self.left, self.order = steps, count, order
        self.next = 0
        self._mean: float | None = None

    def key(self, step: int) -> bool:
        """Whether ``step`` is computed. Steps are asked for once each, in order."""
        if step in forced(self.steps):
            compute = True
        else:
            free = self.left - 1  # one is kept for the last step
            compute = free > 0 and (step >= self.next or self.steps - 1 - step <= free)
        self.left -= compute
        return compute

    def observe(self, step: int, error: float, known: Sequence[int], weight: float) -> None:
        """After key step ``step``: the relative ``error`` of predicting it from steps ``known``,
        newest first, and how much an error counts here.
        """
        distance = step - known[0]
        growth = distance * (step - known[1]) if self.order else distance
        gap = (self.steps - 1 - step) / max(self.left, 1)
        if step < head(self.steps) - 1:
            return  # the start of a run is unlike the rest
        rate = error * weight / growth if growth > 0 else 0.0
        if rate > 0 and math.isfinite(rate):
            log = math.log(rate)
            mean = log if self._mean is None else self._mean
            self._mean = self.MEMORY * mean + (1 - self.MEMORY) * log
            gap *= min(1.5, max(0.67, math.exp((mean - log) / (self.order + 2))))
        self.next = step + max(1, int(gap))  # rounded down: what is left over serves later steps

    def to_dict(self) -> dict[str, Any]:
        """Plain values that ``restore`` takes back."""
        return {"left": self.left, "next": self.next, "mean": self._mean}

    def restore(self, data: dict[str, Any]) -> None:
        """Inverse of ``to_dict``."""
        self.left, self.next, self._mean = data["left"], data["next"], data["mean"]
