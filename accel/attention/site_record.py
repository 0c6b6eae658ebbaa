"""The record of one attention site."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

Now = tuple[int, int | None]  # number of the run, 0-based step where it is known


@dataclass
class SiteRecord:
    """What happened at one site, over all runs since patching.

    ``kept`` counts calls left at full precision by reason, ``instead`` those that did not run as
    the plan says, ``recomputed`` those that were thrown away and computed again, by reason.
    ``error`` is the worst head's relative L1 error against full precision on the sampled rows, and
    ``cosine`` the worst similarity. ``steps``: what ran at each step of run ``steps_run``; "" for
    no call, several joined by "+".
    """

    ran: Counter[tuple[str, str]] = field(default_factory=Counter)  # (precision, implementation)
    kept: Counter[str] = field(default_factory=Counter)
    instead: Counter[str] = field(default_factory=Counter)
    recomputed: Counter[str] = field(default_factory=Counter)
    error: float | None = None
    cosine: float | None = None
    seconds: float = 0.0
    sparse_calls: int = 0  # that left out blocks of keys
    blocks_computed: float = 0.0  # sum over those of the share of their blocks that was computed
    scratch_bytes: int = 0  # memory of one call beside inputs and result, where it is known
    steps: list[str] = field(default_factory=list)
    steps_run: int = -1

    def at(self, now: Now, precision: str) -> None:
        """Record that a call gave its result in ``precision``."""
        run, step = now
        if run != self.steps_run:
            self.steps_run, self.steps = run, []
        if step is None:
            return
        self.steps += [""] * (step + 1 - len(self.steps))
        known = self.steps[step]
        if precision not in known.split("+"):
            self.steps[step] = f"{known}+{precision}" if known else precision
