"""Policy of step rehash: which steps are computed, as pure functions over numbers.

Steps are 0-based; a key step is one that is computed. The first fifth of a run and the last step
are always keys: the first fifth lays out the picture, and nothing corrects an error of the last.
Where a speed-up leaves few steps to compute, the rule computes fewer of the first fifth (``lead``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from accel.core.key_steps import FEW as FEW
from accel.core.key_steps import Multistep

HEAD = 0.2  # fraction of a run, from its start, that is always computed
LEAD = 0.3  # largest fraction of the rule's computed steps that are in that part
OFF = f"off in runs of {FEW} steps or fewer, which leave nothing to skip"
UNMEASURED = 25 / 8  # steps per computed one up to which the rule is known to beat a shorter run


def head(steps: int) -> int:
    """Return the number of steps at the start of a run that are always computed."""
    return math.ceil(HEAD * steps)


def forced(steps: int) -> frozenset[int]:
    """Return the steps that are always computed."""
    if steps <= FEW:
        return frozenset(range(steps))
    return frozenset((*range(head(steps)), steps - 1))


def lead(steps: int, count: int) -> int:
    """Return how many of the rule's ``count`` key steps are at the start of a run.

    They are at most as many as ``head``, and about the part ``LEAD`` of the key steps where that is
    fewer, so that enough of them are left for the rest of the run.
    """
    return head(steps) if steps <= FEW else min(head(steps), max(2, round(LEAD * count)))


def budget(steps: int, speedup: float) -> int:
    """Return how many steps to compute for ``speedup`` = steps / computed.

    There are at least the forced ones.
    """
    return min(steps, max(len(forced(steps)), round(steps / speedup)))


def remarks(steps: int, speedup: float) -> list[str]:
    """Return what the rule cannot do as requested in a run of ``steps`` steps."""
    count, found = budget(steps, speedup), []
    if count > round(steps / speedup):
        found.append(
            f"{speedup:g}× requested; the steps that are always computed allow "
            f"{steps / count:.2f}× in {steps} steps"
        )
    if steps / count > UNMEASURED:
        found.append(
            f"{steps / count:.2f}× without a measurement: beyond {UNMEASURED:.1f}× a run of "
            f"{count} steps can be better; measure, or lower the speedup"
        )
    return found


def stretch(keys: Sequence[int], measured: int, steps: int) -> frozenset[int]:
    """Return the keys of a run of ``measured`` steps stretched to ``steps``, forced ones included.

    The share of keys and their density along the run stay the same.
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
    """Return the keys of Algorithm 1 of Streamlined Inference (Zhan et al. 2024, arXiv 2411.01171).

    An anchor, at first step 0, serves the steps after it whose similarity to it is at least
    ``gamma``. The first step that is less similar is the next anchor. The last step is always a
    key. ``similarity`` is [steps, steps] with 1 on the diagonal. No forced steps are added.
    """
    steps = len(similarity)
    anchor, keys = 0, {0, steps - 1}
    for i in range(1, steps):
        if similarity[i][anchor] < gamma:
            keys.add(i)
            anchor = i
    return frozenset(keys)


def similar_keys_of_count(similarity: Sequence[Sequence[float]], count: int) -> frozenset[int]:
    """Return the keys of Algorithm 1, forced steps included, for at most ``count`` of them.

    Gamma is the largest value that gives no more than ``count`` keys.
    """
    steps = len(similarity)
    best = forced(steps)
    for gamma in sorted({s for row in similarity for s in row}):
        keys = similar_keys(similarity, gamma) | forced(steps)
        if len(best) < len(keys) <= count:
            best = keys
    return best


def weights(known: Sequence[float], at: float, damping: float = 1.0) -> list[float]:
    """Return weights of values at places ``known``, newest first, that predict the one at ``at``.

    Two values give the line through them, with a part ``damping`` of its slope; one value gives a
    constant. Equal places, as in Heun's method, count as one value.
    """
    if len(known) == 1:
        return [1.0]
    newest, before = known[0], known[1]
    if newest == before:
        return [1.0, 0.0]
    a = damping * (at - newest) / (newest - before)
    return [1.0 + a, -a]


def holds_for(fitted: Multistep, sampler: str, times: Sequence[float], steps: int) -> str:
    """Return what fitted weights hold for other than a run of ``steps`` steps, "" if nothing.

    ``sampler`` and ``times`` are the schedule that the run goes through, or a part of it.
    """
    if steps != len(times):
        return f"all {len(times)} steps of a schedule, not {steps}"
    if sampler != fitted.sampler:
        return f"{fitted.sampler}, not {sampler}"
    if len(times) != len(fitted.times):
        return f"{len(fitted.times)} steps, not {len(times)}"
    if not np.allclose(times, fitted.times, rtol=0, atol=1e-3 * abs(fitted.times[0])):
        return "other timesteps (shift or resolution)"
    return ""


class Rate:
    """Chooses key steps during a run: along a plan, and nearer where outputs are hard to predict.

    The plan spreads what is left after the first key steps so that the k-th of n lies at the part
    (k / n) ** ``LEAN`` of the rest: all later steps respond to early errors, so early gaps are the
    short ones. At each key step the output is compared with what reuse would have given. That error
    grows with the distance in steps, as d (order 0) or as d (d + h) (order 1, where h is the
    distance between the two values of the line), which gives an error rate per step. Where it is
    more than ``SURPRISE`` times its recent mean the next gap is shorter than planned, where it is
    that much below, longer; smaller differences say more about the last gap than about the next.
    EasyCache (arXiv 2507.02860) has such a rate of order 0 and a threshold, SeaCache (arXiv
    2602.18993) a threshold on a distance of filtered inputs; here the number of computed steps is
    exactly ``count``.
    """

    MEMORY = 0.9  # share of the mean that each observation keeps
    LEAN = 1.4
    SURPRISE = 8.0
    REACH = 2.0  # how much longer or shorter than planned a gap can be

    def __init__(self, steps: int, count: int, order: int) -> None:
        self.steps, self.left, self.order = steps, count, order
        self.head = lead(steps, count)
        self.next = 0
        self._free = count - self.head - 1  # planned key steps between the first and the last
        self._mean: float | None = None

    def key(self, step: int, must: bool = False, reserved: int = 0) -> bool:
        """Return whether ``step`` is computed.

        Call it once for each step, in order.

        Args:
            step: The step.
            must: It has to be computed, whatever the rule says.
            reserved: How many of the steps that are left to compute are for later.
        """
        if must or step < self.head or step == self.steps - 1 or self.steps <= FEW:
            compute = True
        else:
            free = self.left - 1 - reserved  # one is kept for the last step
            compute = free > 0 and (step >= self.next or self.steps - 1 - step <= free)
        self.left -= compute
        if compute:
            self.next = step + max(1, round(self._gap(step)))
        return compute

    def _gap(self, step: int) -> float:
        """Return the planned distance from ``step`` to the next key step."""
        rest, last = self.steps - 1 - step, max(self._free, 0) + 1
        done = min(max(last - self.left, 0), last - 1)
        now, then = ((k / last) ** self.LEAN for k in (done, done + 1))
        return rest * (then - now) / (1 - now)

    def observe(self, step: int, error: float, known: Sequence[int], weight: float) -> None:
        """Learn from key step ``step`` how well it could have been predicted.

        Args:
            step: The key step.
            error: Relative error of predicting it from the steps ``known``.
            known: Earlier key steps, newest first.
            weight: How much an error counts at this step.
        """
        distance = step - known[0]
        growth = distance * (step - known[1]) if self.order else distance
        if step < self.head - 1:
            return  # the start of a run is unlike the rest
        gap = self._gap(step)
        rate = error * weight / growth if growth > 0 else 0.0
        if rate > 0 and math.isfinite(rate):
            log = math.log(rate)
            mean = log if self._mean is None else self._mean
            self._mean = self.MEMORY * mean + (1 - self.MEMORY) * log
            if abs(log - mean) > math.log(self.SURPRISE):
                scale = math.exp((mean - log) / (self.order + 2))
                gap *= min(self.REACH, max(1 / self.REACH, scale))
        self.next = step + max(1, round(gap))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that ``restore`` takes."""
        return {"left": self.left, "next": self.next, "mean": self._mean}

    def restore(self, data: dict[str, Any]) -> None:
        """Set the state from the values of ``to_dict``."""
        self.left, self.next, self._mean = data["left"], data["next"], data["mean"]
