"""Report what ran: collected from the live patch, as text for people and as JSON for tools."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from accel.attention import guard
from accel.attention.guard import GuardedSite
from accel.attention.provider_report import ProviderReport, provider_lines
from accel.attention.site import Site
from accel.core.run_log import Totals
from accel.core.units import count
from accel.linear.summary import LinearTotals, some
from accel.rehash.rehash_report import RehashReport as RehashReport
from accel.rehash.state import RehashState
from accel.slicing.block_record import BlockRecord

UNSEEN = "not called, or only under torch.compile, where this part runs on all tokens at once"
_KERNELS = {"cpu": "the CPU kernel", "gpu": "the Triton kernel", "reference": "the eager reference"}


@dataclass(frozen=True)
class SiteReport:
    """What one attention module or linear layer did.

    ``ran`` maps text such as "int8 by reference" to calls, ``kept`` a reason for full precision to
    calls, and ``recomputed`` a reason to results that were discarded and computed again at full
    precision. ``error`` is the worst head's relative L1 error against full precision on sampled
    rows, and ``cosine`` the worst similarity. ``seconds`` is the time in quantized calls, and
    ``scratch_bytes`` the memory of one such call besides its inputs and result. ``steps`` is what
    ran at the steps of the last run, in order, as [number of steps, precision]; "" stands for steps
    without a call, and "full+int8" for steps whose calls differed. ``sparse_calls`` left out blocks
    of keys, and computed ``blocks_computed`` of them on average.
    """

    name: str
    ran: dict[str, int]
    kept: dict[str, int]
    recomputed: dict[str, int]
    error: float | None
    cosine: float | None
    seconds: float
    scratch_bytes: int = 0
    note: str = ""
    steps: list[list[Any]] = field(default_factory=list)
    sparse_calls: int = 0
    blocks_computed: float = 1.0


@dataclass(frozen=True)
class BlockReport:
    """What one transformer block did.

    ``sliced`` maps a number of slices to calls, and ``whole`` the reason why calls were not sliced
    to calls. ``in_place`` counts calls that overwrote their input. ``note`` says why others did
    not, which functions needed all tokens at once, and anything else that happened.
    """

    name: str
    sliced: dict[int, int]
    whole: dict[str, int]
    in_place: int
    note: str = ""


@dataclass(frozen=True)
class Report:
    """Everything a patch did so far.

    ``seconds`` is the time in the denoisers, and ``calls`` counts their forward calls.
    ``placement``: lines on where weights were put and why, of a pipeline that accel loaded.
    """

    pipeline: str
    plan: str
    environment: dict[str, str]
    runs: int
    calls: int
    seconds: float
    sites: list[SiteReport] = field(default_factory=list)
    blocks: list[BlockReport] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rehash: RehashReport | None = None
    placement: list[str] = field(default_factory=list)
    linear: LinearTotals | None = None
    layers: list[SiteReport] = field(default_factory=list)
    providers: list[ProviderReport] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        data = dict(vars(self))
        for name in ("sites", "layers", "providers"):
            data[name] = [vars(site) for site in data[name]]
        data["blocks"] = [vars(block) for block in self.blocks]
        for name in ("rehash", "linear"):
            data[name] = None if data[name] is None else vars(data[name])
        return data

    def __str__(self) -> str:
        lines = [
            f"accel report: {self.pipeline}, plan {self.plan!r}",
            f"  {count(self.runs, 'run')}, {count(self.calls, 'denoiser call')} in "
            f"{self.seconds:.2f} s",
            "  " + ", ".join(f"{key} {value}" for key, value in self.environment.items()),
        ]
        if self.sites:
            lines.append("  attention")
        for group in _grouped(self.sites):
            lines.append("    " + _describe(group))
        lines += ["    " + line for line in provider_lines(self.providers)]
        if self.linear is not None:
            lines += ["  linear layers", *("    " + line for line in self.linear.lines())]
        for group in _grouped(self.layers, lambda name: ""):
            lines.append("    " + _describe(group, some([site.name for site in group])))
        if self.blocks:
            lines.append("  slicing")
        lines += ["    " + line for line in _block_lines(self.blocks)]
        if self.rehash is not None:
            first, *more = self.rehash.lines()
            lines += [f"  step rehash: {first}", *("    " + line for line in more)]
        lines += ["  " + line for line in self.placement]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


def site_report(site: GuardedSite) -> SiteReport:
    """Return a snapshot of a live site."""
    record, note = site.record, site.note
    ran = {f"{p} by {impl}": n for (p, impl), n in sorted(record.ran.items())}
    finished = isinstance(site, Site) and site.config is not None and site.finished
    if finished and not record.ran and not record.kept:
        note = "; ".join(filter(None, [note, "its processor never calls torch's attention"]))
    instead = record.instead
    if isinstance(site, Site):
        instead = instead + site.baseline.instead
        full = (f"full precision here is {name}" for name in site.baseline.ran)
        note = "; ".join(filter(None, [note, *full]))
    note = "; ".join(filter(None, [note, *(f"{why}: {n} calls" for why, n in instead.items())]))
    return SiteReport(
        site.name or "(outside attention modules)",
        ran,
        dict(record.kept),
        dict(record.recomputed),
        record.error,
        record.cosine,
        record.seconds,
        record.scratch_bytes,
        note,
        [[len(list(same)), what] for what, same in groupby(record.steps)],
        record.sparse_calls,
        record.blocks_computed / max(record.sparse_calls, 1) if record.sparse_calls else 1.0,
    )


def block_report(name: str, record: BlockRecord) -> BlockReport:
    """Return a snapshot of a live block."""
    notes = [f"result in new memory: {record.copied}"] if record.copied else []
    if record.mixing:
        notes.append(f"on all tokens at once: {', '.join(sorted(set(record.mixing)))}")
    notes += [record.note] if record.note else []
    sliced, whole = dict(record.sliced), dict(record.whole)
    return BlockReport(
        name or "(the block itself)", sliced, whole, record.in_place, "; ".join(notes)
    )


def _block_lines(blocks: list[BlockReport]) -> list[str]:
    """Return one line for all blocks of one pattern that did the same."""
    alike: dict[tuple[Any, ...], list[BlockReport]] = {}
    for b in blocks:
        key = (_pattern(b.name), *map(str, (b.sliced, b.whole, b.in_place, b.note)))
        alike.setdefault(key, []).append(b)
    lines = []
    for same in alike.values():
        b = same[0]
        name = b.name if len(same) == 1 else f"{_pattern(b.name)} (each of {len(same)} blocks)"
        parts = [f"{count(calls, 'call')} in {n} slices" for n, calls in b.sliced.items()]
        parts += [f"{count(calls, 'call')} not sliced: {why}" for why, calls in b.whole.items()]
        parts += ["written over the input"] if b.in_place and not b.note else []
        lines.append(f"{name}: " + ("; ".join([*parts, *filter(None, [b.note])]) or UNSEEN))
    return lines


def _pattern(name: str) -> str:
    return re.sub(r"\d+", "*", name, count=1)


def _grouped(
    sites: list[SiteReport], pattern: Callable[[str], str] = _pattern
) -> list[list[SiteReport]]:
    """Group sites of one pattern, such as ``blocks.*.attn1``, that did the same."""
    groups: dict[tuple[Any, ...], list[SiteReport]] = {}
    for s in sites:
        key = (pattern(s.name), *map(str, (s.ran, s.kept, s.recomputed, s.note)))
        groups.setdefault(key, []).append(s)
    return list(groups.values())


def _describe(group: list[SiteReport], name: str = "") -> str:
    first = group[0]
    if not name:
        several = f"{_pattern(first.name)} (all {len(group)} sites)"
        name = first.name if len(group) == 1 else several
    total: Counter[str] = Counter()
    for site in group:
        total.update(site.ran)
    parts = [f"{count(n, 'call')} in {_spelled(what)}" for what, n in total.items()]
    kept: Counter[str] = Counter()
    for site in group:
        kept.update(site.kept)
    parts += [f"{count(n, 'call')} at full precision: {why}" for why, n in kept.items()]
    again: Counter[str] = Counter()
    for site in group:
        again.update(site.recomputed)
    parts += [f"{count(n, 'result')} recomputed: {why}" for why, n in again.items()]
    errors = [site.error for site in group if site.error is not None]
    if errors:
        worst = min(site.cosine for site in group if site.cosine is not None)
        parts.append(
            f"largest error on sampled rows: relative L1 {max(errors):.4f}, cosine {worst:.5f}"
        )
    if sparse := sum(site.sparse_calls for site in group):
        mean = sum(site.blocks_computed * site.sparse_calls for site in group) / sparse
        parts.append(f"{mean:.0%} of the blocks of keys computed in {count(sparse, 'call')}")
    scratch = max(site.scratch_bytes for site in group)
    if scratch:
        parts.append(f"{scratch / 2**20:.2f} MiB of scratch memory")
    if not total and not kept and not again and not first.note:
        parts.append("not called yet")
    if first.note:
        parts.append(first.note)
    return f"{name}: " + "; ".join(parts)


def _spelled(what: str) -> str:
    """Return text such as "INT8 by the CPU kernel" for "int8 by cpu"."""
    precision, _, kernel = what.partition(" by ")
    if precision == "full":
        return f"full precision by {kernel}"
    return f"{precision.upper()} by {_KERNELS.get(kernel, kernel)}"


def totals(
    calls: int,
    seconds: float,
    sites: Collection[GuardedSite],
    layers: Collection[GuardedSite],
    blocks: Iterable[BlockRecord],
    rehash: RehashState | None,
) -> Totals:
    """Return counts for the log; reasons are those of what the plan wanted faster."""
    kept, full = guard.kept(sites), guard.kept(layers)
    reasons = Counter({why: n for why, n in (kept + full).items() if why != guard.BY_PLAN})
    sliced = 0
    for block in blocks:
        reasons.update(block.whole)
        sliced += sum(block.sliced.values())
    if rehash is not None:
        reasons.update(rehash.record.computed)
    return Totals(
        calls=calls,
        seconds=seconds,
        reused=0 if rehash is None else sum(rehash.record.reused.values()),
        quantized=guard.ran(sites),
        kept=sum(kept.values()),
        layers=guard.ran(layers),
        full_layers=sum(full.values()),
        sliced=sliced,
        reasons=reasons,
    )
