"""What a plan's denoising steps cost: its sites in fewer bits where they pay, and skipped steps."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from accel.attention.policy import precision_at, precisions_of
from accel.config import AttentionConfig, LinearConfig, RehashConfig
from accel.core.key_steps import Schedule
from accel.kernels import measured
from accel.memory.seconds.job_work import JobWork, Work
from accel.memory.seconds.operators import Operator
from accel.memory.seconds.rates import Rates
from accel.plans import Plan
from accel.rehash import schedule


class Priced(dict[str, float]):
    """Seconds by kind of operator."""

    def add(self, kind: str, seconds: float) -> None:
        """Add seconds of a kind."""
        self[kind] = self.get(kind, 0.0) + seconds

    def add_all(self, other: Priced, times: float = 1.0) -> None:
        """Add so many times the seconds of others."""
        for kind, seconds in other.items():
            self.add(kind, times * seconds)

    def total(self) -> float:
        """Return the seconds of all kinds."""
        return sum(self.values())


def computed_steps(rehash: RehashConfig | None, steps: int) -> tuple[int, ...]:
    """Return the 0-based steps that are computed; a rule's as it plans them before the run."""
    if rehash is None:
        return tuple(range(steps))
    choice = rehash.choice
    if isinstance(choice, Schedule):
        return tuple(sorted(schedule.stretch(choice.keys, choice.steps, steps)))
    rate = schedule.Rate(steps, schedule.budget(steps, choice.speedup), 1)
    return tuple(step for step in range(steps) if rate.key(step))


def _group(operator: Operator) -> str:
    """Return the name under which an operator's seconds are summed up."""
    return operator.kind.split(" ")[0]


def whole_call(work: Work, rates: Rates, *, sites: bool = True) -> Priced:
    """Return the seconds of one call at full precision; without ``sites``, those of no site."""
    found = Priced()
    counted = work.counted.all() if sites else work.counted.rest
    for operator, number in counted.items():
        found.add(_group(operator), number * rates.seconds(operator))
    return found


def fewer_bits(
    operator: Operator, precision: str, kind: str, config: AttentionConfig | LinearConfig | None
) -> Operator | None:
    """Return what computes a site's operator in fewer bits, None where it stays as it is."""
    few = isinstance(config, LinearConfig) and operator.sizes[0] < config.min_rows
    if config is None or precision == "full" or few:
        return None
    return replace(operator, kind=f"{kind} {precision}")


def operators(work: JobWork, plan: Plan, computed: int) -> Counter[Operator]:
    """Return all operators of a job with their numbers, those in fewer bits beside the others."""
    found: Counter[Operator] = Counter()
    for calls, repeats in ((work.encode, 1), (work.denoise, computed), (work.decode, 1)):
        for one in calls:
            times = one.times * repeats
            found.update({op: n * times for op, n in one.counted.all().items()})
    for one in work.denoise:
        for kind, config, sites in (
            ("attention", plan.attention, one.counted.attention),
            ("linear", plan.linear, one.counted.linear),
        ):
            for name, counts in sites.items():
                for precision in precisions_of(config, name) if config else ():
                    for op, number in counts.items():
                        if ours := fewer_bits(op, precision, kind, config):
                            found[ours] += number * one.times * computed
    return found


class Prices:
    """Prices of one step's denoiser calls with a plan; equal steps are priced once."""

    def __init__(self, calls: tuple[Work, ...], plan: Plan, rates: Rates) -> None:
        self._calls, self._plan, self._rates = calls, plan, rates
        self._fixed = [whole_call(work, rates, sites=False) for work in calls]
        self._known: dict[tuple[bool, ...], Priced] = {}

    def of_step(self, step: int, steps: int) -> Priced:
        """Return seconds of a computed step."""
        rules = [rule for c in (self._plan.attention, self._plan.linear) if c for rule in c.rules]
        at = tuple(rule.start <= step / steps < rule.end for rule in rules)
        if at not in self._known:
            found = Priced()
            for work, fixed in zip(self._calls, self._fixed, strict=True):
                found.add_all(fixed, work.times)
                found.add_all(self._sites(work, step, steps), work.times)
            self._known[at] = found
        return self._known[at]

    def of_reused(self, mean: float) -> Priced:
        """Return seconds of a skipped step; ``mean`` is that of a computed one."""
        rehash, found = self._plan.rehash, Priced()
        for work in self._calls:
            size = 3 * work.output
            kept = Operator("pointwise", "float32", (size,), 0, size)
            found.add("pointwise", 2 * work.times * self._rates.seconds(kept))
        if rehash is not None and rehash.level == "features":
            blocks = max(1, min((work.blocks for work in self._calls), default=1))
            found.add("last blocks", mean * min(1.0, rehash.tail / blocks))
        return found

    def _sites(self, work: Work, step: int, steps: int) -> Priced:
        found = Priced()
        for config, price, sites in (
            (self._plan.attention, self._attention, work.counted.attention),
            (self._plan.linear, self._linear, work.counted.linear),
        ):
            for name, counts in sites.items():
                precision = precision_at(config, name, step, steps) if config else "full"
                for operator, number in counts.items():
                    found.add(_group(operator), number * price(operator, precision))
        return found

    def _attention(self, operator: Operator, precision: str) -> float:
        return self._faster(operator, precision, "attention", self._plan.attention)

    def _linear(self, operator: Operator, precision: str) -> float:
        return self._faster(operator, precision, "linear", self._plan.linear)

    def _faster(
        self, operator: Operator, precision: str, kind: str,
        config: AttentionConfig | LinearConfig | None,
    ) -> float:  # fmt: skip
        """Return the seconds of what a site runs: fewer bits where they pay, else torch's own."""
        full = self._rates.seconds(operator)
        ours = fewer_bits(operator, precision, kind, config)
        if config is None or ours is None:
            return full
        quick = self._rates.seconds(ours) + self._check(operator)
        return full if config.impl == "auto" and full < measured.MIN_GAIN * quick else quick

    def _check(self, operator: Operator) -> float:
        """Return the seconds of looking whether every value of a result is finite."""
        item = {"float32": 4}.get(operator.dtype, 2)
        first, second, last = operator.sizes[0], operator.sizes[1], operator.sizes[-1]
        attends = operator.kind == "attention"
        size = first * second * (last if attends else 1) * item
        return self._rates.seconds(Operator("reduce", operator.dtype, (size,), 0, size))
