"""Policy: from measured errors to a plan, as pure functions over numbers.

A choice gives every site and step a precision, in few phases of the run. Each entry has a damage
and a cost, its time as it was measured, and both add up. So the best choice for a limit on one of
them minimizes ``cost + price * damage`` for some price, which a bisection finds.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np

from accel.calibration.table import ErrorTable
from accel.config import AttentionConfig, LinearConfig, Rule
from accel.core.plan_origin import PlanOrigin
from accel.plans import Plan

MAX_BOUNDARIES = 21  # steps at which a phase may end, chosen evenly where a run has more

Choice = np.ndarray  # precisions as strings, [S, N]


def uniform(table: ErrorTable, precision: str) -> Choice:
    """Return the choice [S, N] of one precision for all sites that have it, else "full".

    Args:
        table: Measured errors of S sites and N steps.
        precision: "int8", "int6", "int4", "fp8" or "full".
    """
    column = np.where(table.has(precision), precision, "full").astype(object)
    return np.repeat(column[:, None], len(table.sigmas), 1)


def by_share(
    table: ErrorTable,
    share: float,
    *,
    low: str = "int4",
    high: str = "int8",
    rank: str = "damage",
    phases: int | None = 3,
    axis: str = "both",
) -> Choice:
    """Return the choice that runs a share of attention's work in ``low``, the rest in ``high``.

    Sites that do not have both, as linear layers, are "full".

    Args:
        table: Measured errors of S sites and N steps.
        share: Share of the work in ``low``, 0 to 1.
        low: The cheaper precision.
        high: The more exact precision.
        rank: "damage" puts the pairs of site and step in ``low`` that harm the video least, "score"
            those with the best score (adaptive rule of SageAttention2, Zhang et al. 2024).
        phases: Most parts of the run that have a choice of their own; None allows one per step.
        axis: "both", or "site" or "step" to let the choice depend on that alone.

    Returns:
        Precisions [S, N].

    Raises:
        ValueError: A share outside 0 to 1, or rank "damage" without a measured sensitivity.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be between 0 and 1, got {share}")
    both = table.has(low) & table.has(high)
    if rank == "score":
        damage = [1 - table.mean("score", p)[both] for p in (low, high)]
    else:
        damage = [table.damage(p)[both] for p in (low, high)]
    work = table.amount[both]
    cost, limit = [np.zeros_like(work), work], (1 - share) * float(work.sum())
    choice = uniform(table, "full")
    choice[both] = _search(np.array(damage), np.array(cost), (low, high), limit, phases, axis)[0]
    return choice


def by_bound(table: ErrorTable, bound: float, *, metric: str = "worst") -> Choice:
    """Return the cheapest precision of each site and step with a relative L1 error up to ``bound``.

    Args:
        table: Measured errors of S sites and N steps.
        bound: Largest relative L1 error against full precision.
        metric: "worst" bounds the worst call, "l1" the mean.

    Returns:
        Precisions [S, N], "full" where no other one is within the bound.

    Raises:
        ValueError: A metric that was not measured.
    """
    names = _names(table)
    fits = [table.mean(metric, p) <= bound for p in names[1:]]
    times = [np.where(fit, table.time(p), np.inf) for fit, p in zip(fits, names[1:], strict=True)]
    # Of those that cost the same the first is taken, which is the most exact.
    return np.array(names, object)[np.argmin([table.time("full"), *times], 0)]


def by_quality(table: ErrorTable, decibels: float, *, phases: int | None = 3) -> Choice:
    """Return the fastest choice that is predicted to reach a PSNR.

    Args:
        table: Measured errors of S sites and N steps, with sensitivities.
        decibels: Least predicted PSNR in dB against the pipeline's own output.
        phases: Most parts of the run that have a choice of their own; None allows one per step.

    Returns:
        Precisions [S, N].

    Raises:
        ValueError: No sensitivity was measured.
    """
    names = _names(table)
    damage = np.array([table.damage(p) for p in names])
    cost = np.array([table.time(p) for p in names])
    limit = 10 ** (-decibels / 10)
    # Damage and cost swap roles: the least cost with damage under the limit.
    return _search(damage, cost, names, limit, phases, "both", limit_damage=True)[0]


def by_cost(table: ErrorTable, limit: float, *, phases: int | None = 3) -> Choice:
    """Return the choice with the best predicted quality within a limit on the time of all sites.

    Args:
        table: Measured errors of S sites and N steps, with sensitivities.
        limit: Largest time relative to full precision (``relative_cost``).
        phases: Most parts of the run that have a choice of their own; None allows one per step.

    Returns:
        Precisions [S, N].

    Raises:
        ValueError: A limit below the time of the fastest precisions, or no measured sensitivity.
    """
    names = _names(table)
    damage = np.array([table.damage(p) for p in names])
    cost = np.array([table.time(p) for p in names])
    least = float(cost.min(0).sum() / cost[0].sum())
    if not limit >= least:
        raise ValueError(
            f"these sites need {least:.2f} of full precision's time, the limit is {limit}"
        )
    return _search(damage, cost, names, limit * float(cost[0].sum()), phases, "both")[0]


def _names(table: ErrorTable) -> tuple[str, ...]:
    """Return "full" and the precisions, most exact first."""
    return ("full", *sorted(table.precisions, key=lambda p: float(np.nanmean(table.mean("l1", p)))))


def predicted(table: ErrorTable, choice: Choice) -> float:
    """Return the predicted PSNR in dB of a choice [S, N] against the pipeline's own output.

    It is inf for a choice without damage. It is that of the choice as it stands: where the check at
    run time sends a site back to full precision, the run is another one. Raises ValueError if no
    sensitivity was measured.
    """
    total = sum(float(table.damage(p)[choice == p].sum()) for p in set(choice.ravel().tolist()))
    return math.inf if total <= 0 else -10 * math.log10(total)


def relative_cost(table: ErrorTable, choice: Choice) -> float:
    """Return the time of all sites under a choice [S, N] relative to full precision's."""
    taken = sum(float(table.time(p)[choice == p].sum()) for p in set(choice.ravel().tolist()))
    return taken / float(table.time("full").sum())


def to_plan(
    table: ErrorTable, choice: Choice, name: str = "calibrated", *, like: Plan | None = None
) -> Plan:
    """Return the plan of a choice.

    Args:
        table: Measured errors of S sites and N steps.
        choice: Precisions [S, N].
        name: The plan's name.
        like: A plan whose other fields this one has; by default they are the usual ones.

    Returns:
        A plan whose most frequent precisions are the defaults and whose rules set the others. It
        has no attention, or no linear layers, where the choice leaves all of them at "full". It has
        the table's origin, with what is predicted of the choice.
    """
    like = Plan() if like is None else like
    layers = np.array([site in table.linear for site in table.sites], bool)
    made: dict[str, Any] = {}
    kinds = (("attention", ~layers, AttentionConfig), ("linear", layers, LinearConfig))
    for field, rows, kind in kinds:
        part, sites = choice[rows], np.array(table.sites, object)[rows].tolist()
        base = getattr(like, field) or kind()
        quantized = bool((part != "full").any())
        made[field] = replace(base, **_rules(part, sites)) if quantized else None
    return replace(like, name=name, origin=_origin(table, choice), **made)


def _origin(table: ErrorTable, choice: Choice) -> PlanOrigin | None:
    """Return the table's origin with what is predicted of a choice [S, N]."""
    if table.origin is None:
        return None
    decibels = None if table.site_weight is None else predicted(table, choice)
    known = decibels is not None and math.isfinite(decibels)
    return replace(
        table.origin, jobs=table.jobs, decibels=decibels if known else None,
        decibels_are="predicted" if known else "",
        speedup=1 / relative_cost(table, choice), speedup_is="of its sites alone, predicted",
    )  # fmt: skip


def _rules(choice: Choice, sites: list[str]) -> dict[str, Any]:
    """Return the fields ``precision`` and ``rules`` of a choice [S, N]."""
    usual = Counter(choice.ravel().tolist()).most_common(1)[0][0]
    steps, rules, start = choice.shape[1], [], 0
    for end in range(1, steps + 1):
        if end < steps and (choice[:, end] == choice[:, start]).all():
            continue
        column = choice[:, start]
        for precision in sorted(set(column.tolist()) - {usual}):
            chosen = tuple(s for s, p in zip(sites, column, strict=True) if p == precision)
            names = "*" if len(chosen) == len(sites) else chosen
            rules.append(Rule(precision, names, start / steps, end / steps))
        start = end
    return {"precision": usual, "rules": tuple(rules)}


def _search(
    damage: np.ndarray, cost: np.ndarray, names: tuple[str, ...], limit: float,
    phases: int | None, axis: str, *, limit_damage: bool = False,
) -> tuple[Choice, float]:  # fmt: skip
    """Return the best choice over all ways to cut the run in phases, and its value.

    ``damage`` and ``cost`` are [P, S, N]. The limit is on cost, or on damage.
    """
    (sites, steps), work = damage.shape[1:], cost
    if axis == "site":
        phases = 1
    elif axis == "step":
        damage, work = damage.sum(1, keepdims=True), work.sum(1, keepdims=True)
    best: tuple[Choice, float] | None = None
    for cuts in _cuts(steps, phases):
        ends = [0, *cuts]
        d, c = (np.add.reduceat(x, ends, axis=-1) for x in (damage, work))
        picked = _price(c, d, limit) if limit_damage else _price(d, c, limit)
        value = np.take_along_axis(c if limit_damage else d, picked[None], 0).sum()
        if best is None or value < best[1] * (1 - 1e-12):
            lengths = np.diff([*ends, steps])
            whole = np.repeat(np.array(names, object)[picked], lengths, -1)
            best = (np.broadcast_to(whole, (sites, steps)).copy(), float(value))
    assert best is not None
    return best


def _cuts(steps: int, phases: int | None) -> list[tuple[int, ...]]:
    """Return where phases after the first may begin: every way with at most ``phases`` phases."""
    if phases is None:
        return [tuple(range(1, steps))]
    places = sorted({round(x) for x in np.linspace(0, steps, min(steps, MAX_BOUNDARIES) + 1)})
    inner = [x for x in places if 0 < x < steps]
    return [cut for n in range(min(phases, steps)) for cut in combinations(inner, n)]


def _price(value: np.ndarray, limited: np.ndarray, limit: float) -> np.ndarray:
    """Return the index [S, K] along the first axis of ``value`` and ``limited`` [P, S, K].

    It minimizes the sum of ``value`` with the sum of ``limited`` at most ``limit``, as far as one
    price can. What is left of the limit improves single entries.
    """
    low, high = -60.0, 60.0  # logarithm of the price
    for _ in range(60):
        middle = (low + high) / 2
        picked = (value + math.exp(middle) * limited).argmin(0)
        over = np.take_along_axis(limited, picked[None], 0).sum() > limit
        low, high = (middle, high) if over else (low, middle)
    picked = (value + math.exp(high) * limited).argmin(0)
    return _fill(picked, value, limited, limit)


def _fill(picked: np.ndarray, value: np.ndarray, limited: np.ndarray, limit: float) -> np.ndarray:
    """Spend what is left of the limit, starting with the best gain for its price."""
    now_v, now_l = (np.take_along_axis(x, picked[None], 0)[0] for x in (value, limited))
    left = limit * (1 + 1e-12) - now_l.sum()
    gain, price = np.where(np.isfinite(value), now_v - value, 0.0), limited - now_l
    for flat in np.argsort(-(gain / np.maximum(price, 1e-30)).ravel()):
        p, s, k = np.unravel_index(flat, value.shape)
        now = picked[s, k]
        more = limited[p, s, k] - limited[now, s, k]
        if value[p, s, k] < value[now, s, k] and more <= left:
            picked[s, k], left = p, left - more
    return picked
