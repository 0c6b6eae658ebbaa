"""What step rehash did, for the report: counts, and lines of text about them."""

from __future__ import annotations

from dataclasses import dataclass

from accel.rehash.state import RehashState

_WHY = {
    "first fifth": "in the first fifth",
    "by rate": "by the rule",
    "scheduled": "by the schedule",
}
_KEPT = {"native": "", "int8": " as 8-bit integers", "cpu": " in the CPU's memory"}


@dataclass(frozen=True)
class RehashReport:
    """What step rehash did.

    ``what`` says how skipped steps were replaced. ``computed`` and ``reused`` map a reason to
    steps, over all runs. ``calls`` counts denoiser calls, computed and reused. ``keys`` are the
    computed steps of the last run of ``steps`` steps, whose first is ``begin``. ``state_bytes`` is
    the most that was kept at once, stored as ``store`` says. ``corrected`` counts computed calls
    whose output was corrected by measured weights.
    """

    what: str
    computed: dict[str, int]
    reused: dict[str, int]
    calls: dict[str, int]
    keys: list[int]
    steps: int
    state_bytes: int
    notes: list[str]
    corrected: int = 0
    store: str = "native"
    begin: int = 0

    def lines(self) -> list[str]:
        """Return the counts, then the notes."""
        computed, reused = sum(self.computed.values()), sum(self.reused.values())
        if not computed:
            when = "at a known step" if self.calls else "yet, or was compiled after the patch"
            return [f"the denoiser was not called {when}", *self.notes]
        why = ", ".join(f"{n} {_WHY.get(reason, reason)}" for reason, n in self.computed.items())
        calls = self.calls.get("computed", 0), self.calls.get("reused", 0)
        keys, corrected = " ".join(map(str, self.keys)), "corrected by measured weights"
        begin = f", from step {self.begin} of the schedule on" if self.begin else ""
        return [
            f"{computed} of {computed + reused} steps computed, {reused} {self.what}",
            f"why computed: {why}",
            f"denoiser calls: {calls[0]} computed, {calls[1]} skipped; at most "
            f"{self.state_bytes / 2**20:.2f} MiB kept{_KEPT[self.store]}",
            f"computed steps of the last run of {self.steps}{begin}: {keys}",
            *([f"{self.corrected} computed calls {corrected}"] if self.corrected else []),
            *self.notes,
        ]


def rehash_report(state: RehashState) -> RehashReport:
    """Return a snapshot of a live step rehash."""
    record, config = state.record, state.config
    what = "extrapolated linearly" if state.order else "repeated"
    if state.chosen:
        named = (f"{calls} calls by {name}" for name, calls in record.predicted.items())
        what = f"predicted ({', '.join(named)})" if record.predicted else "predicted"
    if config.level == "features":
        what = "run on the features of the last computed step"
    if config.multistep is not None:
        what = "combined from computed steps with measured weights"
    return RehashReport(
        what, dict(record.computed), dict(record.reused), dict(record.calls), list(record.keys),
        record.steps, record.state_bytes, record.told, record.corrected, config.store,
        record.begin,
    )  # fmt: skip
