"""Options that a site's calls run without, where its first result shows that they cost too much.

Smoothing V makes some heads worse, and the estimate of which blocks of keys matter can be wrong
(a key that draws all queries). Where a result is further off than half of what its precision may
be, the call runs without such an option too, and later calls of the run as the better one did.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from accel.kernels.attention_call import AttentionCall
from accel.kernels.dispatch import Decision
from accel.kernels.sparse import DENSE

WITHOUT = {  # what is tried, in this order
    "dense": "ran with all blocks of keys, since leaving some out is further off here",
    "unsmoothed": "ran without smooth_v, which is further off here",
}
Way = tuple[AttentionCall, Decision]


@dataclass
class Simpler:
    """Precisions that run without ``smooth_v``, and those that leave out no blocks, in one run."""

    unsmoothed: set[str] = field(default_factory=set)
    dense: set[str] = field(default_factory=set)

    def found(self, ours: AttentionCall, decision: Decision, instead: Counter[str]) -> Way:
        """Return a call as it was found to be better, and count what it runs without."""
        for name in WITHOUT:
            if decision.precision in getattr(self, name) and (way := less(name, ours, decision)):
                ours, decision = way
                self.count(name, decision.precision, instead)
        return ours, decision

    def take(self, name: str, precision: str, instead: Counter[str]) -> None:
        """Let later calls in ``precision`` run without an option."""
        getattr(self, name).add(precision)
        self.count(name, precision, instead)

    def count(self, name: str, precision: str, instead: Counter[str]) -> None:
        """Count a call that ran without an option."""
        instead[f"{precision} {WITHOUT[name]}"] += 1


def less(name: str, ours: AttentionCall, decision: Decision) -> Way | None:
    """Return the call without an option, None where it does not have it."""
    if name == "dense":
        dense = replace(decision, kept_share=DENSE)
        return (replace(ours, block_mask=None), dense) if decision.kept_share < DENSE else None
    if not ours.options.smooth_v:
        return None
    return replace(ours, options=replace(ours.options, smooth_v=False)), decision


def saved(sites: Mapping[str, Any], run: int) -> dict[str, dict[str, list[str]]]:
    """Return what sites ran without in that run, as plain values."""
    return {
        what: {
            name: sorted(found)
            for name, site in sites.items()
            if site.checked_run == run and (found := getattr(site.simpler, what))
        }
        for what in WITHOUT
    }


def restore(sites: Mapping[str, Any], run: int, state: Mapping[str, Any]) -> None:
    """Bring back what ``saved`` gave, in the run of that number."""
    for what in WITHOUT:
        for name, precisions in state.get(what, {}).items():
            sites[name].enter_run(run)
            setattr(sites[name].simpler, what, set(precisions))
