"""Calibration: one generation per job measures what each precision would cost, everywhere.

While a job runs at full precision, every attention call is made again in every candidate precision
on a sample of its query rows and compared. Only sums are kept. During the first job the denoiser is
also called again at a few steps to see what errors do to its output
(``accel/calibration/output_error.py``). Further runs under plans that mix all precisions then
measure what becomes of that in the video (``accel/calibration/sensitivity.py``).
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from accel.attention.call import Call, compare
from accel.attention.site import Site
from accel.calibration.choose import to_plan
from accel.calibration.output_error import Errors, gains, output_errors, sampled_steps
from accel.calibration.sensitivity import fit, probes
from accel.calibration.table import METRICS, ErrorTable
from accel.config import AttentionConfig, Impl
from accel.core.quality import psnr
from accel.core.run_pipeline import call
from accel.core.structure import denoisers
from accel.kernels.attention import BITS
from accel.kernels.attention import run as run_attention
from accel.kernels.attention_call import Options
from accel.kernels.dispatch import ATTENTION, decide, resolve
from accel.patching import Handle, is_patched, patched
from accel.plans import Plan

CANDIDATES = ("int8", "int6", "int4")
BLOCK = 32  # neighboring query rows that are sampled together
MOST = 80.0  # dB that count as no difference

Run = Callable[[Any], np.ndarray]  # generates with a pipeline: frames uint8 [F, H, W, 3]
Key = tuple[str, int, int]  # site, step, branch


@dataclass
class _Sums:
    """Running sums per site, step and branch: calls, then ``METRICS`` by precision [P, 5]."""

    precisions: tuple[str, ...]
    rows: int
    impl: str
    options: Options
    calls: dict[Key, int] = field(default_factory=dict)
    errors: dict[Key, np.ndarray] = field(default_factory=dict)
    work: dict[str, float] = field(default_factory=dict)
    sigmas: dict[int, float] = field(default_factory=dict)
    low: tuple[str, ...] | None = None  # in a call for its effect: the sites that are not full

    @property
    def least(self) -> str:
        """The least exact precision."""
        return min(self.precisions, key=BITS.__getitem__)

    @property
    def steps(self) -> int:
        """Steps so far."""
        return max((step for _, step, _ in self.calls), default=-1) + 1

    def attend(self, call: Call, precision: str) -> Tensor:
        """Compute attention in one precision, also where that does not pay."""
        ours = call.for_kernels(self.options)
        impl = resolve(ATTENTION, self.impl, call.query.device)
        return run_attention(ours, decide(ours, precision, impl))[0]

    def why_full(self, call: Call) -> str:
        """Return why a call is not measured: why no precision would run for it, or ""."""
        if reason := "causal" if call.is_causal else call.why_not_ours():
            return reason
        if self.impl != "auto":
            return ""
        ours = call.for_kernels(self.options)
        decisions = [decide(ours, precision, self.impl) for precision in self.precisions]
        return decisions[0].why if all(d.precision == "full" for d in decisions) else ""

    def caused(self, site: str, step: int) -> float:
        """Return relative squared error of the least exact precision, summed over the calls."""
        at = self.precisions.index(self.least), METRICS.index("l2")
        return sum(float(e[at]) for k, e in self.errors.items() if k[:2] == (site, step))

    def add(self, key: Key, call: Call, out: Tensor) -> None:
        """Compare every precision with ``out`` on sampled rows of one call."""
        q, k, v = call.query, call.key, call.value
        index = sample(q.shape[-2], self.rows).to(q.device)
        rows, mask = call.rows(index)
        exact, part = out[..., index, :], replace(call, query=rows, attn_mask=mask)
        found = np.zeros((len(self.precisions), len(METRICS)))
        for i, precision in enumerate(self.precisions):
            mine = self.attend(part, precision)
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
        """Compute attention of one call at full precision."""
        assert self.sums is not None
        call = Call(*arguments)
        reason = self.sums.why_full(call)
        if (low := self.sums.low) is not None:
            quantized = self.name in low and not reason
            return self.sums.attend(call, self.sums.least) if quantized else call.full()
        out = call.full()
        run, step = self.state.refresh(), self.state.step or 0
        self.branch = self.branch + 1 if self.at == (run, step) else 0
        self.at = (run, step)
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
    probe_runs: int = 24,
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
    ``probe_runs``: so many further runs, of the jobs in turn (several jobs tell more than one),
    measure how errors show in the video; 0 leaves that out, and choices by quality with it.

    ``impl`` "auto" leaves out calls that it would leave to torch at run time; a named
    implementation measures all. The other options are those of ``AttentionConfig``. The pipeline is
    left as it was.

    Raises ValueError without jobs, for an unknown precision, for a pipeline that is patched (or has
    nothing to measure), and for jobs of different lengths.
    """
    _check(pipe, jobs, precisions)
    options: dict[str, Any] = {"smooth_q": smooth_q, "smooth_v": smooth_v, "hadamard": hadamard}
    runs = [_as_run(job) for job in jobs]
    bar = tqdm(total=len(runs) + probe_runs, desc="calibrate", disable=not progress)
    sums = _Sums(tuple(precisions), rows, impl, Options(**options))
    base = AttentionConfig("full", impl=impl, check_rows=0, **options)
    why_not: Counter[str] = Counter()
    lengths, videos = set(), []
    with bar:
        for i, run in enumerate(runs):
            first = probe_runs > 0 and not i
            with (
                _probing(pipe, Plan("calibrate", base), sums) as handle,
                _effects(pipe, handle, sums) if first else nullcontext({}) as effects,
            ):
                frames = run(pipe)
            if first:
                gain = gains(effects, sums.caused, tuple(sums.work), sums.steps)
            for site in handle.sites.values():
                why_not.update(site.record.kept)
            lengths.add(handle.steps)
            videos += [frames] if i < probe_runs else []
            bar.update()
        if not sums.calls:
            raise ValueError(
                f"{type(pipe).__name__} made no attention call to measure: "
                f"{'; '.join(why_not) or 'none was seen'}; impl='reference' measures all it can"
            )
        if len(lengths) > 1:
            raise ValueError(f"jobs must have one number of steps, got {sorted(map(str, lengths))}")
        table = _table(sums, len(runs))
        if not probe_runs:
            return table
        return _with_sensitivity(pipe, runs, videos, table, gain, base, probe_runs, bar)


def _check(pipe: Any, jobs: Sequence[Any], precisions: Sequence[str]) -> None:
    if not jobs:
        raise ValueError("calibration needs at least one job")
    if unknown := [p for p in precisions if p not in CANDIDATES] or not precisions:
        raise ValueError(f"precisions must be some of {list(CANDIDATES)}, got {unknown}")
    if is_patched(pipe):
        raise ValueError("calibrate an unpatched pipeline: call accel.unpatch(pipe) first")


def sample(tokens: int, rows: int) -> Tensor:
    """Return about ``rows`` of ``tokens`` row indices, in evenly spread blocks of ``BLOCK``."""
    if tokens <= rows:
        return torch.arange(tokens, dtype=torch.int64, device="cpu")
    blocks = max(1, rows // BLOCK)
    ends = torch.linspace(0, tokens - BLOCK, blocks, dtype=torch.float32, device="cpu")
    one = torch.arange(BLOCK, dtype=torch.int64, device="cpu")
    return (ends.long()[:, None] // BLOCK * BLOCK + one).flatten().unique()


@contextmanager
def _probing(pipe: Any, plan: Plan, sums: _Sums) -> Iterator[Handle]:
    handle = Handle(pipe, plan, functools.partial(_Probe, sums=sums))
    try:
        yield handle
    finally:
        handle.unpatch()


def _effects(pipe: Any, handle: Handle, sums: _Sums) -> AbstractContextManager[Errors]:
    """Measure what errors at each site do to the output of the denoisers, at sampled steps."""
    modules = denoisers(pipe)
    prefixes = {m: f"{name}." if len(modules) > 1 else "" for name, m in modules.items()}

    def where(module: torch.nn.Module) -> tuple[int, list[str]] | None:
        step = sums.steps - 1
        if handle.steps is None or step not in sampled_steps(handle.steps):
            return None
        sites = dict.fromkeys(s for s, k, _ in sums.calls if k == step)
        return step, [s for s in sites if s.startswith(prefixes[module])]

    def only(group: tuple[str, ...] | None) -> None:
        sums.low = group

    return output_errors(modules, where, only)


def _as_run(job: Mapping[str, Any] | Run) -> Run:
    return job if callable(job) else lambda pipe: call(pipe, job)


def _table(sums: _Sums, jobs: int) -> ErrorTable:
    sites = tuple(sums.work)
    steps = sums.steps
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
    pipe: Any, runs: list[Run], plain: list[np.ndarray], table: ErrorTable, gain: np.ndarray,
    base: AttentionConfig, count: int, bar: tqdm[Any],
) -> ErrorTable:  # fmt: skip
    """Fit the weights to ``count`` runs of plans that mix all precisions, of the jobs in turn."""
    outputs = {p: gain * table.mean("l2", p) for p in table.precisions}
    sites, steps = gain.shape
    choices = probes(sites, steps, ("full", *table.precisions), count)
    errors, decibels = np.zeros((count, *gain.shape)), []
    options = {f.name: getattr(base, f.name) for f in fields(base)}
    for name in ("precision", "rules"):
        del options[name]
    for i, choice in enumerate(choices):
        for p, output in outputs.items():
            errors[i][choice == p] = output[choice == p]
        with patched(pipe, plan=to_plan(table, choice, "probe", **options)):
            decibels.append(min(psnr(plain[i % len(plain)], runs[i % len(plain)](pipe)), MOST))
        bar.update()
    found = fit(errors, decibels, [i % len(plain) for i in range(count)])
    return replace(
        table, site_weight=found.site[:, None] * gain, step_weight=found.step, spread=found.spread
    )
