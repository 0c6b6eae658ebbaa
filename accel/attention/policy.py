"""Policy: how exact a site is at a step. Pure functions over numbers and names."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from accel.config import AttentionConfig, LinearConfig, Quantized, Rule, RulePrecision

_ACCURACY: tuple[RulePrecision, ...] = ("int4", "int6", "fp8", "int8", "full")

MOST_NAMED = 3  # sites that one line names


def covers(rule: Rule, site: str) -> bool:
    """Whether a rule is about a site, at some step."""
    if isinstance(rule.sites, str):
        return fnmatchcase(site, rule.sites)
    return site in rule.sites or any(fnmatchcase(site, pattern) for pattern in rule.sites)


def unmatched(
    attention: AttentionConfig | None,
    sites: Iterable[str],
    linear: LinearConfig | None,
    layers: Iterable[str],
) -> list[str]:
    """Return a line for each technique whose rules name sites that are not there."""
    found = []
    for what, config, names in (("attention", attention, sites), ("linear", linear, layers)):
        known, lost = {"*", *names}, dict[str, None]()
        for rule in () if config is None else config.rules:
            for pattern in (rule.sites,) if isinstance(rule.sites, str) else rule.sites:
                if pattern not in known and not any(fnmatchcase(s, pattern) for s in known):
                    lost[pattern] = None
        if lost:
            more = f" and {len(lost) - MOST_NAMED} more" if len(lost) > MOST_NAMED else ""
            first = ", ".join(list(lost)[:MOST_NAMED])
            found.append(f"{what} rules name what this model does not have: {first}{more}")
    return found


def always(rule: Rule) -> bool:
    """Whether a rule holds for all steps of a run."""
    return rule.start == 0.0 and rule.end == 1.0


def matches(rule: Rule, site: str, step: int | None, steps: int | None) -> bool:
    """Whether a rule applies. A rule over part of a run cannot match an unknown step."""
    if not covers(rule, site):
        return False
    if always(rule):
        return True
    if step is None or not steps:
        return False
    return rule.start <= step / steps < rule.end


def precisions_of(config: Quantized, site: str) -> set[RulePrecision]:
    """Return the precisions that ``site`` may have at some step."""
    found: set[RulePrecision] = set()
    for rule in config.rules:
        if covers(rule, site):
            found.add(rule.precision)
            if always(rule):
                return found
    return {*found, config.precision}


def precision_at(
    config: Quantized, site: str, step: int | None, steps: int | None
) -> RulePrecision:
    """Precision of ``site`` at 0-based ``step`` of ``steps``.

    With the step unknown (None) the most accurate precision the site can have at any step is used.
    """
    for rule in config.rules:
        if matches(rule, site, step, steps):
            return rule.precision
    if step is None or not steps:
        possible = [r.precision for r in config.rules if covers(r, site)]
        return max([config.precision, *possible], key=_ACCURACY.index)
    return config.precision


def kept_share_at(
    config: AttentionConfig, site: str, step: int | None, steps: int | None
) -> float | None:
    """Share of the softmax whose blocks ``site`` computes at ``step`` of ``steps``; None: all.

    With the step unknown (None) the largest share the site can have at any step is used.
    """
    for rule in config.rules:
        if matches(rule, site, step, steps):
            return config.kept_share if rule.kept_share is None else rule.kept_share
    if step is None or not steps:
        asked = [r.kept_share for r in config.rules if covers(r, site)]
        shares = [config.kept_share if share is None else share for share in (None, *asked)]
        return None if None in shares else max(s for s in shares if s is not None)
    return config.kept_share
