"""What quantized sites of every technique share: the record, the checks, the way to full precision.

A result that is not usable takes its site to full precision for the rest of the run. Sampled rows
of a site's first call in each precision and quarter of a run are compared with full precision.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from accel.attention.call import finite
from accel.attention.site_record import Now, SiteRecord
from accel.config import Quantized
from accel.core.described import described
from accel.core.run_state import RunState

# Parts of a run. In each the first call of a precision is compared with full precision, in the
# first part on ``check_rows`` rows and later on a quarter of them.
QUARTERS = 4
BY_PLAN = "full precision by plan"  # the reason that a site counts for what its plan leaves alone


@dataclass
class GuardedSite:
    """One place of a denoiser whose calls are quantized, and its record.

    ``checked``: precisions and quarters of run ``checked_run`` whose first call was compared with
    full precision; ``demoted_run``: in that run a result was not usable (``demoted_why``), so the
    rest stays at full precision.
    """

    name: str
    config: Quantized | None
    state: RunState
    note: str = ""
    record: SiteRecord = field(default_factory=SiteRecord)
    checks: Any = None  # where checks wait for the end of the denoiser's call, on a card
    checked_run: int = -1
    checked: set[tuple[str, int]] = field(default_factory=set)
    demoted_run: int = -1
    demoted_why: str = ""

    def keep(self, reason: str) -> None:
        """Count a call left at full precision."""
        self.keep_at(reason, (self.state.refresh(), self.state.step))

    def keep_at(self, reason: str, now: Now) -> None:
        """Count a call left at full precision at a known place of the run."""
        self.record.kept[reason] += 1
        self.record.at(now, "full")

    def enter_run(self, run: int) -> None:
        """Forget the checks of an earlier run."""
        if self.checked_run != run:
            self.checked_run, self.checked = run, set()

    def rows_due(self, precision: str, step: int | None) -> int | None:
        """Return how many rows of a call are compared, and count it as compared.

        None where an earlier call of the quarter was.
        """
        assert self.config is not None
        part = QUARTERS * (step or 0) // (self.state.steps or 1)
        if (precision, part) in self.checked:
            return None
        first = all(known != precision for known, _ in self.checked)
        self.checked.add((precision, part))
        return self.config.check_rows if first else -(-self.config.check_rows // QUARTERS)

    def judge(self, precision: str, found: Sequence[float], limit: float) -> str:
        """Record error and cosine of a comparison; return why the result is too far off, or ""."""
        record, (error, cosine) = self.record, found
        record.error = error if record.error is None else max(record.error, error)
        record.cosine = cosine if record.cosine is None else min(record.cosine, cosine)
        if error <= limit:
            return ""
        return f"{precision} has error {error:.3g} on sampled rows, over the limit of {limit}"

    def usable(self, out: Tensor, precision: str) -> tuple[bool, bool]:
        """Return whether a result is finite as far as is read now, and whether more is read later.

        Later is the end of the denoiser's call, on a card.
        """
        if self.checks is not None and self.checks.takes(out, self, precision):
            self.checks.finite(self, out)
            return True, True
        return finite(out), False

    def compare(self, precision: str, values: Tensor, limit: float, later: bool) -> str:
        """Judge error and cosine [2]; return why they are too far off, or "", as if later."""
        if later:
            self.checks.add(self, values, lambda found: self.judge(precision, found, limit))
            return ""
        return self.judge(precision, values.tolist(), limit)

    def demote(self, why: str, run: int) -> None:
        """Keep the site at full precision for the rest of a run."""
        self.demoted_run, self.demoted_why = run, why


def failed(what: str, error: Exception) -> str:
    """Return a reason for what raised."""
    return f"{what} failed: {described(error)}"


def ran(sites: Iterable[GuardedSite]) -> int:
    """Return how many calls were quantized."""
    return sum(n for site in sites for (what, _), n in site.record.ran.items() if what != "full")


def kept(sites: Iterable[GuardedSite]) -> Counter[str]:
    """Return the calls left at full precision by reason, but those outside all sites."""
    found: Counter[str] = Counter()
    for site in sites:
        if site.config is not None:
            found.update(site.record.kept)
    return found


def saved(sites: Mapping[str, GuardedSite], run: int) -> dict[str, Any]:
    """Return which sites were demoted in that run, and what ran at its steps, as plain values."""
    return {
        "demoted": [name for name, site in sites.items() if site.demoted_run == run],
        "steps": {
            name: list(site.record.steps)
            for name, site in sites.items()
            if site.record.steps_run == run
        },
    }


def restore(sites: Mapping[str, GuardedSite], run: int, state: Mapping[str, Any]) -> None:
    """Bring back what ``saved`` gave, in the run of that number."""
    for name, steps in state.get("steps", {}).items():
        sites[name].record.steps_run, sites[name].record.steps = run, list(steps)
    for name in state.get("demoted", ()):
        sites[name].demote("before the saved step", run)


def defer(sites: Iterable[GuardedSite], checks: Any) -> None:
    """Let sites of one denoiser leave checks to the end of its calls; not with None."""
    for site in sites:
        site.checks = checks
