"""What a report says of attention's providers: who won each kind of call, and why not others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from accel.attention.providers import COMMON, NATIVE, absent
from accel.attention.site import Site
from accel.attention.trial import Verdict

MOST_KINDS = 6  # in the text; the values have all


@dataclass(frozen=True)
class ProviderReport:
    """What was measured of one kind of call on this machine.

    ``winner`` computes it at ``precision``, and ``baseline`` is what the user's own code would run.
    ``milliseconds`` and ``errors`` (relative L1 of the worst head against fp32 on sampled rows) are
    by provider, and ``why_not`` says why others are not used. ``gain`` is the baseline's time over
    the winner's, None if nothing was timed. ``doubt``: why the times are measured again by the next
    process, or "".
    """

    kind: str
    winner: str
    precision: str
    baseline: str
    gain: float | None
    milliseconds: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    why_not: dict[str, str] = field(default_factory=dict)
    doubt: str = ""


def provider_reports(sites: Iterable[Site]) -> list[ProviderReport]:
    """Return what was found of each kind of call, once."""
    verdicts = {v.kind: v for site in sites for v in site.verdicts.values() if v.why_not or v.ran}
    return [_report(verdict) for verdict in verdicts.values()]


def _report(v: Verdict) -> ProviderReport:
    return ProviderReport(
        v.kind, v.winner, v.ran.get(v.winner, "full"), v.baseline,
        v.gain(v.winner) if len(v.order) > 1 else None, dict(v.milliseconds), dict(v.errors),
        dict(v.why_not), v.doubt,
    )  # fmt: skip


def provider_lines(reports: list[ProviderReport]) -> list[str]:
    """Return lines on the kinds that were measured, then on what took no part."""
    measured = [r for r in reports if r.errors or r.milliseconds]
    lines = [line for r in measured[:MOST_KINDS] for line in _lines(r)]
    if len(measured) > MOST_KINDS:
        lines.append(f"{len(measured) - MOST_KINDS} more kinds of call were measured")
    if measured or any(r.baseline != NATIVE for r in reports):
        lines += absent([r.why_not for r in reports])
    return lines


def _lines(r: ProviderReport) -> list[str]:
    """Return who computes a kind of call, and why nobody else."""
    first = f"{r.kind}: {r.winner}"
    if r.winner in r.milliseconds:
        first += f" {r.milliseconds[r.winner]:.3g} ms"
    if r.gain is not None:
        first += f", {r.gain:.2f}x {r.baseline}"
    if r.winner in r.errors:
        first += f", error {r.errors[r.winner]:.3g}"
    if r.doubt:
        first += f" (on a busy machine, so not kept: {r.doubt})"
    others = [f"{name}: {why}" for name, why in r.why_not.items() if why not in COMMON]
    return [first, *(f"  not {other}" for other in others)]
