"""Calibration: one generation per job measures what each precision would cost, everywhere.

While a job runs at full precision, every attention call is made again in every candidate precision
on a sample of its query rows and compared. Only sums are kept. A few further runs of the first job
then measure how much an error at a site, or in a part of the run, shows in the video: one run per
site (or group of neighbours) and one per part, in the least exact candidate. Their effects are
taken as a product of a weight for the site and one for the step, fitted to all of those runs.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from accel.attention import Site
from accel.calibration import METRICS, ErrorTable
from accel.call import Call, compare
from accel.config import AttentionConfig, Impl, Rule
from accel.frames import call
from accel.kernels.attention import run as run_attention
from accel.kernels.dispatch import ATTENTION, resolve
from accel.patch import Handle, is_patched, patched
from accel.plan import Plan
from accel.quality import psnr

CANDIDATES = ("int8", "int6", "int4")
BLOCK = 32  # neighbouring query rows that are sampled together
MAX_GROUPS = 12  # runs that measure sensitivity by site
# and by part of the run: early errors matter most, so the first parts are the shortest
PARTS = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
MOST = 80.0  # dB that count as no difference

Run = Callable[[Any], np.ndarray]  # generates with a pipeline: frames uint8 [F, H, W, 3]
Key = tuple[str, int, int]  # site, step, branch


@dataclass
class _Sums:
    """Running sums per site, step and branch: calls, then ``METRICS`` by precision [P, 5]."""

    precisions: tuple[str, ...]
    rows: int
    impl: str
    options: dict[str, Any]
    calls: dict[Key, int] = field(default_factory=dict)
    errors: dict[Key, np.ndarray] = field(default_factory=dict)
    work: dict[str, float] = field(default_factory=dict)
    sigmas: dict[int, float] = field(default_factory=dict)

    def add(self, key: Key, call: Call, out: Tensor) -> None:
        """Compare every precision with ``out`` on sampled rows of one call."""
        q, k, v = call.query, call.key, call.value
        index = sample(q.shape[-2], self.rows).to(q.device)
        rows, mask = call.rows(index)
        exact, scale = out[..., index, :], call.scale
        impl = resolve(ATTENTION, self.impl, q.device)
        found = np.zeros((len(self.precisions), len(METRICS)))
        for i, precision in enumerate(self.precisions):
            mine, _ = run_attention(
                rows, k, v, precision, impl, mask, None, False,
                q.shape[-1] ** -0.5 if scale is None else scale, **self.options, return_lse=False,
            )  # fmt: skip
            l1, cosine, l2 = compare(mine, exact)
            found[i] = l1, cosine, cosine * (1 - l1), l2, l1
        before = self.errors.get(key, np.zeros_like(found))
        worst = np.maximum(before[:, -1], found[:, -1])
        self.errors[key] = before + found
        self.errors[key][:, -1] = worst
        self.calls[key] = self.calls.get(key, 0) + 1
        self.work[key[0]] = float(q.shape[:-1].numel() * k.shape[-2] * (q.shape[-1] + v.shape[-1]))


@dataclass
class _Probe(Site):
    """A site that runs at full precision and measures the others on the side."""

    sums: _Sums | None = None
    at: tuple[int, int] = (-1, -1)
    branch: int = 0

    def attend(self, *arguments: Any) -> Tensor:
        """Attention of one call at full precision."""
        assert self.config is not None and self.sums is not None
        call = Call(*arguments)
        out = call.full()
        run, step = self.state.refresh(), self.state.step or 0
        self.branch = self.branch + 1 if self.at == (run, step) else 0
        self.at = (run, step)
        reason = "causal" if call.is_causal else call.why_full(self.config)
        if reason:
            self.keep(reason)
        else:
            sigma = self.state.sigma
            self.sums.sigmas[step] = float(-step) if sigma is None else sigma
            self.sums.add((self.name, step, self.branch), call, out)
        return out


def calibrate(
    pipe: Any,
    jobs: Sequence[Mapping[str, Any] | Run],
    *,
    precisions: Sequence[str] = CANDIDATES,
    rows: int = 128,
    sensitivity: int = 1,
    progress: bool = True,
    impl: Impl = "auto",
    smooth_q: bool = True,
    smooth_v: bool = True,
    hadamard: bool = False,
) -> ErrorTable:
    """Measure the error of every precision at every attention site and step of ``pipe``.

    ``jobs``: keyword arguments of the pipeline's call (and ``seed``, 0 if it is not there),
    or functions that generate with the pipeline and return uint8 frames [F, H, W, 3]. All must
    have one number of steps. ``rows``: sampled query rows of each call, in blocks of 32.
    ``sensitivity``: so many of the jobs are run again, once for each site (at most 12, else groups
    of neighbours) and 5 times more; 0 leaves that out, and choices by quality with it.

    ``impl`` "auto" leaves out calls that it would leave to torch at run time; a named
    implementation measures all. The other options are those of ``AttentionConfig``. The pipeline is
    left as it was.

    Raises ValueError without jobs, for an unknown precision, for a pipeline that is patched (or has
    nothing to measure), and for jobs of different lengths.
    """
    if not jobs:
        raise ValueError("calibration needs at least one job")
    if unknown := [p for p in precisions if p not in CANDIDATES] or not precisions:
        raise ValueError(f"precisions must be some of {list(CANDIDATES)}, got {unknown}")
    if is_patched(pipe):
        raise ValueError("calibrate an unpatched pipeline: call accel.unpatch(pipe) first")
    options: dict[str, Any] = {"smooth_q": smooth_q, "smooth_v": smooth_v, "hadamard": hadamard}
    runs = [_as_run(job) for job in jobs]
    bar = tqdm(total=len(runs), desc="calibrate", disable=not progress)
    sums = _Sums(tuple(precisions), rows, impl, options)
    base = AttentionConfig("full", impl=impl, check_rows=0, **options)
    why_not: Counter[str] = Counter()
    lengths, videos = set(), []
    with bar:
        for i, run in enumerate(runs):
            with _probing(pipe, Plan("calibrate", base), sums) as handle:
                frames = run(pipe)
            for site in handle.sites.values():
                why_not.update(site.record.kept)
            lengths.add(handle.steps)
            videos += [frames] if i < sensitivity else []
            bar.update()
        if not sums.calls:
            raise ValueError(
                f"{type(pipe).__name__} made no attention call to measure: "
                f"{'; '.join(why_not) or 'none was seen'}; impl='reference' measures all it can"
            )
        if len(lengths) > 1:
            raise ValueError(f"jobs must have one number of steps, got {sorted(map(str, lengths))}")
        table = _table(sums, len(runs))
        if sensitivity:
            worst = max(precisions, key=lambda p: table.mean("l2", p).mean())
            table = _with_sensitivity(pipe, runs, videos, table, worst, base, bar)
    return table


def sample(tokens: int, rows: int) -> Tensor:
    """Indices of about ``rows`` of ``tokens`` query rows: evenly spread blocks of ``BLOCK``."""
    if tokens <= rows:
        return torch.arange(tokens)
    blocks = max(1, rows // BLOCK)
    starts = torch.linspace(0, tokens - BLOCK, blocks).long() // BLOCK * BLOCK
    return (starts[:, None] + torch.arange(BLOCK)).flatten().unique()


@contextmanager
def _probing(pipe: Any, plan: Plan, sums: _Sums) -> Iterator[Handle]:
    handle = Handle(pipe, plan, functools.partial(_Probe, sums=sums))
    try:
        yield handle
    finally:
        handle.unpatch()


def _as_run(job: Mapping[str, Any] | Run) -> Run:
    return job if callable(job) else lambda pipe: call(pipe, job)


def _table(sums: _Sums, jobs: int) -> ErrorTable:
    sites = tuple(sums.work)
    steps = max(step for _, step, _ in sums.calls) + 1
    branches = max(branch for _, _, branch in sums.calls) + 1
    counts = np.zeros((len(sites), steps, branches))
    errors = np.zeros((len(sums.precisions), len(METRICS), *counts.shape))
    for (site, step, branch), n in sums.calls.items():
        at = (sites.index(site), step, branch)
        counts[at] = n
        found = sums.errors[site, step, branch] / n
        found[:, -1] *= n  # the worst is no mean
        errors[(slice(None), slice(None), *at)] = found
    known = sorted(sums.sigmas)
    sigmas = np.interp(range(steps), known, [sums.sigmas[i] for i in known])
    work = np.array(list(sums.work.values()))
    return ErrorTable(
        sites, sigmas, work, counts, dict(zip(sums.precisions, errors, strict=True)), jobs=jobs
    )


def _with_sensitivity(
    pipe: Any, runs: list[Run], plain: list[np.ndarray], table: ErrorTable, precision: Any,
    base: AttentionConfig, bar: tqdm[Any],
) -> ErrorTable:  # fmt: skip
    """Fit ``site_weight`` and ``step_weight`` to runs with errors in one group or part only."""
    sites, steps = len(table.sites), len(table.sigmas)
    groups = np.array_split(np.arange(sites), min(sites, MAX_GROUPS))
    ends = sorted({0, *(round(steps * x) for x in PARTS), steps})
    parts = [np.arange(a, b) for a, b in pairwise(ends)]
    bar.total = len(runs) + len(plain) * (len(groups) + len(parts))

    def harm(rule: Rule) -> float:
        decibels = []
        for run, video in zip(runs, plain, strict=False):
            with patched(pipe, plan=Plan("probe", replace(base, rules=(rule,)))):
                decibels.append(min(psnr(video, run(pipe)), MOST))
            bar.update()
        return float(10 ** (-np.mean(decibels) / 10))

    by_group = [harm(Rule(precision, tuple(table.sites[i] for i in g))) for g in groups]
    by_part = [harm(Rule(precision, "*", p[0] / steps, (p[-1] + 1) / steps)) for p in parts]
    l2 = table.mean("l2", precision)
    each = np.array([[l2[np.ix_(g, p)].sum() for p in parts] for g in groups])
    a, b = fit_product(each, np.array(by_group), np.array(by_part))
    site_weight, step_weight = np.zeros(sites), np.zeros(steps)
    for values, members, weight in ((a, groups, site_weight), (b, parts, step_weight)):
        for value, member in zip(values, members, strict=True):
            weight[member] = value
    return replace(table, site_weight=site_weight, step_weight=step_weight)


def fit_product(
    each: np.ndarray, rows: np.ndarray, columns: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weights a [G] and b [P] with ``a_g * sum_p b_p each_gp`` near ``rows`` and ``b_p * sum_g a_g
    each_gp`` near ``columns``, all at least 0; ``b`` has mean 1. The two totals need not agree: the
    fit's total is their geometric mean.
    """
    a, b = np.ones(len(rows)), np.ones(len(columns))
    for _ in range(100):
        a = rows / np.maximum(each @ b, 1e-300)
        b = columns / np.maximum(a @ each, 1e-300)
        b = b / max(b.mean(), 1e-300)
    total = float(a @ each @ b)
    a = a * np.sqrt(rows.sum() * columns.sum()) / max(total, 1e-300)
    return a, b
