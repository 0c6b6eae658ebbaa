"""What a report says of 8-bit layers beside what each of them did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from accel.config import LinearConfig
from accel.linear.linear_site import LinearSite
from accel.linear.pays import MIN_GAIN


@dataclass(frozen=True)
class LinearTotals:
    """What the 8-bit layers of a pipeline did together.

    ``ran`` maps text such as "int8 by cpu" to calls. ``left`` maps a reason to the layers that were
    left alone. ``packed_bytes`` is the memory of all packed weights. ``gains`` maps a kind of call
    to how many times as fast as torch's it was measured on this machine.
    """

    ran: dict[str, int] = field(default_factory=dict)
    left: dict[str, list[str]] = field(default_factory=dict)
    packed_bytes: int = 0
    gains: dict[str, float] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Return them as text."""
        lines = [f"{self.packed_bytes / 2**20:.2f} MiB of packed weights"]
        lines += [f"{some(names)} left alone: {why}" for why, names in self.left.items()]
        lines += [
            f"measured {gain:.2f}x of torch, {'used' if gain >= MIN_GAIN else 'not used'}: {kind}"
            for kind, gain in self.gains.items()
        ]
        return lines


def linear_totals(sites: Collection[LinearSite]) -> LinearTotals:
    """Return a snapshot."""
    ran: Counter[str] = Counter()
    left: dict[str, list[str]] = {}
    gains: dict[str, float] = {}
    for site in sites:
        if site.left:
            left.setdefault(site.left, []).append(site.name)
        ran.update({f"{p} by {by}": n for (p, by), n in site.record.ran.items()})
        gains.update(site.gains)
    return LinearTotals(
        dict(sorted(ran.items())), left, sum(s.weight.nbytes for s in sites),
        dict(sorted(gains.items())),
    )  # fmt: skip


def linear_notes(
    config: LinearConfig | None, sites: Collection[LinearSite], calls: int
) -> list[str]:
    """Return what there is to say of a plan's 8-bit layers after ``calls`` denoiser calls."""
    if config is None:
        return []
    notes = []
    if changed := sum(site.weight.changes for site in sites):
        notes.append(f"weights of linear layers were packed again, since they changed: {changed}")
    doubts = {kind: why for site in sites for kind, why in site.doubts.items()}
    for kind, why in sorted(doubts.items()):
        notes.append(f"measured on a busy machine ({why}), so not kept for later runs: {kind}")
    if fused := sum(site.activated > 0 for site in sites):
        notes.append(f"GELU ran in one pass with the linear layer before it: {fused} layers")
    if calls and not any(site.record.ran for site in sites):
        notes.append("no linear layer ran in 8 bits")
    return notes


def some(names: list[str]) -> str:
    """Return the first of these layers, and how many more there are."""
    more = len(names) - 1
    return names[0] + (f" and {more} layer{'s' * (more > 1)} more" if more else "")
