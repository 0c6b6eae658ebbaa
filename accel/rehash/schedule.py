"""Policy of step rehash: which steps are computed. Pure functions over numbers.

Steps are 0-based; a key step is one that is computed. Whatever chooses them, the first fifth of a
run, where the picture is laid out, and the last step, which nothing corrects any more, are keys.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

HEAD = 0.2  # part of a run that is always computed, from its start
FEW = 8  # runs of this many steps or fewer leave nothing to skip


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

    At each key step the output is compared with what reuse would have given. From the error's
    known growth with distance (order 0: r d; order 1: r d (d + h), h the distance of the two
    values the line goes through) follows the rate r. Gaps get longer where it is below its mean so
    far and shorter where it is above, as in step-size control of differential equations, and as in
    EasyCache (arXiv 2507.02860), whose rate is of order 0. The number of computed steps is exactly
    ``count``.
    """

    def __init__(self, steps: int, count: int, order: int) -> None:
        self.steps, self.left, self.order = steps, count, order
        self.next = 0
        self._logs: list[float] = []

    def key(self, step: int) -> bool:
        """Whether ``step`` is computed. Steps are asked for once each, in order."""
        if step in forced(self.steps):
            compute = True
        else:
            free = self.left - 1  # one is kept for the last step
            compute = free > 0 and (step >= self.next or self.steps - 1 - step <= free)
        self.left -= compute
        return compute

    def observe(self, step: int, error: float, distance: float, before: float) -> None:
        """After key step ``step``: the relative ``error`` of predicting it over ``distance``, from
        values ``before`` apart.
        """
        growth = distance * (distance + before) if self.order else distance
        gap = (self.steps - 1 - step) / max(self.left, 1)
        if error > 0 and growth > 0 and math.isfinite(error):
            log = math.log(error / growth)
            self._logs.append(log)
            mean = sum(self._logs) / len(self._logs)
            gap *= min(2.0, max(0.5, math.exp((mean - log) / (self.order + 2))))
        self.next = step + max(1, round(gap))

    def to_dict(self) -> dict[str, object]:
        """Plain values that ``restore`` takes back."""
        return {"left": self.left, "next": self.next, "logs": list(self._logs)}

    def restore(self, data: dict[str, object]) -> None:
        """Inverse of ``to_dict``."""
        self.left, self.next = int(data["left"]), int(data["next"])  # type: ignore[call-overload]
        self._logs = list(data["logs"])  # type: ignore[call-overload]
