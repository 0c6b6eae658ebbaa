"""Sites that run at full precision and measure every other precision on the side.

Only sums are kept: errors on a sample of a call's rows, by site, step and branch, and the time of
one call of each kind (sizes and dtype), taken in turn with full precision.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from accel.attention.call import Call, compare, finite
from accel.attention.site import Site
from accel.calibration.table import METRICS, ErrorTable
from accel.config import LinearPrecision
from accel.kernels import linear as kernels
from accel.kernels import measured
from accel.kernels.attention import run as run_attention
from accel.kernels.attention_call import Options
from accel.kernels.dispatch import ATTENTION, decide, resolve
from accel.linear.linear_site import Forward, LinearSite, Product, Then

ATTENDED = ("int8", "int6", "int4")  # what is tried of attention, most exact first
LAYERED: tuple[LinearPrecision, ...] = ("int8", "fp8")  # and of linear layers
BLOCK = 32  # neighboring rows that are sampled together
EQUAL = 1.03  # times nearer than this count as equal
TURN = 1e-3  # seconds of a timed turn, in calls that are shorter
TURNS = {0.05: 5, 1.0: 3, math.inf: 1}  # of a call up to that many seconds

Key = tuple[str, int, int]  # site, step, branch


@dataclass
class Sums:
    """Running sums per site, step and branch: calls, then ``METRICS`` by precision [P, 5].

    ``own``: the precisions of each site, most exact first. ``low``: in a call for its effect on
    the denoiser's output, the sites that run in their least exact precision; all others are full.
    """

    precisions: tuple[str, ...]
    rows: int
    impl: str
    options: Options
    own: dict[str, tuple[str, ...]] = field(default_factory=dict)
    linear: set[str] = field(default_factory=set)
    calls: dict[Key, int] = field(default_factory=dict)
    errors: dict[Key, np.ndarray] = field(default_factory=dict)
    work: dict[str, float] = field(default_factory=dict)
    costs: dict[str, dict[str, float]] = field(default_factory=dict)
    sigmas: dict[int, float] = field(default_factory=dict)
    low: tuple[str, ...] | None = None
    _timed: dict[Hashable, dict[str, float]] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Steps so far."""
        return max((step for _, step, _ in self.calls), default=-1) + 1

    def caused(self, site: str, step: int) -> float:
        """Return relative squared error of a site's least exact precision, over its calls."""
        at = self.precisions.index(self.own[site][-1]), METRICS.index("l2")
        return sum(float(e[at]) for k, e in self.errors.items() if k[:2] == (site, step))

    def add(
        self, key: Key, names: Sequence[str], exact: Tensor, quantized: Callable[[str], Tensor]
    ) -> None:
        """Compare the precisions ``names`` of one call with full precision, on the same rows."""
        found = np.zeros((len(self.precisions), len(METRICS)))
        for name in names:
            l1, cosine, l2 = compare(quantized(name), exact)
            found[self.precisions.index(name)] = l1, cosine, cosine * (1 - l1), l2, l1
        before = self.errors.get(key, np.zeros_like(found))
        worst = np.maximum(before[:, -1], found[:, -1])
        self.errors[key] = before + found
        self.errors[key][:, -1] = worst
        self.calls[key] = self.calls.get(key, 0) + 1
        self.own[key[0]] = tuple(names)

    def time(
        self, site: str, kind: Hashable, jobs: dict[str, Callable[[], Tensor]], device: torch.device
    ) -> None:
        """Measure one call of a kind in each precision, in turn; "full" comes first."""
        if kind not in self._timed:
            start = time.perf_counter()
            jobs["full"]()
            seconds = max(time.perf_counter() - start, 1e-6)
            turns = next(n for most, n in TURNS.items() if seconds <= most)
            burst = max(1, round(TURN / seconds))
            calls = [job if name == "full" else _checked(job) for name, job in jobs.items()]
            taken = measured.alternate(calls, device, turns, burst)
            self._timed[kind] = _rounded(dict(zip(jobs, taken, strict=True)))
        self.costs[site] = self._timed[kind]

    def table(self, jobs: int) -> ErrorTable:
        """Return the means."""
        sites, steps = tuple(self.work), self.steps
        names = [p for p in self.precisions if any(p in own for own in self.own.values())]
        branches = max(branch for _, _, branch in self.calls) + 1
        counts = np.zeros((len(sites), steps, branches))
        errors = np.zeros((len(self.precisions), len(METRICS), *counts.shape))
        for (site, step, branch), n in self.calls.items():
            at = (sites.index(site), step, branch)
            counts[at] = n
            found = self.errors[site, step, branch] / n
            found[:, -1] *= n  # the worst is no mean
            errors[(slice(None), slice(None), *at)] = found
        known = sorted(self.sigmas)
        sigmas = np.interp(range(steps), known, [self.sigmas[i] for i in known])
        costs = {
            p: np.array([self.costs[site].get(p, np.inf) for site in sites])
            for p in ("full", *names)
        }
        return ErrorTable(
            sites, sigmas, np.array(list(self.work.values())), counts,
            {p: errors[self.precisions.index(p)] for p in names}, costs, frozenset(self.linear),
            jobs=jobs,
        )  # fmt: skip


def _checked(job: Callable[[], Tensor]) -> Callable[[], object]:
    """Return a call with the check that it has at run time."""
    return lambda: finite(job())


def _rounded(times: dict[str, float]) -> dict[str, float]:
    """Return the times, where nearly equal ones are equal: noise is no reason to be less exact."""
    found: dict[str, float] = {}
    for name, value in times.items():
        near = [
            other for other in found.values() if value <= other * EQUAL and other <= value * EQUAL
        ]
        found[name] = near[0] if near else value
    return found


@dataclass
class _Place:
    """Which call of a site at a step this is: its branch."""

    at: tuple[int, int] = (-1, -1)
    branch: int = 0

    def next(self, run: int, step: int) -> tuple[int, int]:
        """Count a call; return its step and branch."""
        self.branch = self.branch + 1 if self.at == (run, step) else 0
        self.at = (run, step)
        return step, self.branch


def _key(site: Site | LinearSite, place: _Place, sums: Sums) -> Key:
    run, step = site.state.refresh(), site.state.step or 0
    sigma = site.state.sigma
    sums.sigmas[step] = float(-step) if sigma is None else sigma
    return (site.name, *place.next(run, step))


@dataclass
class Probe(Site):
    """An attention site that measures."""

    sums: Sums | None = None
    place: _Place = field(default_factory=_Place)

    def attend(self, *arguments: Any) -> Tensor:
        """Compute attention of one call at full precision."""
        assert self.sums is not None
        call, sums = Call(*arguments), self.sums
        reason = self.why_full(call)
        if sums.low is not None:
            low = self.name in sums.low and not reason
            return self._attend(call, sums.own[self.name][-1]) if low else call.full()
        out = call.full()
        if reason:
            self.keep(reason)
            return out
        key, names = _key(self, self.place, sums), self._names()
        index = sample(call.query.shape[-2], sums.rows).to(call.query.device)
        rows, mask = call.rows(index)
        part = replace(call, query=rows, attn_mask=mask)
        sums.add(key, names, out[..., index, :], lambda p: self._attend(part, p))
        q, k, v = call.query, call.key, call.value
        sums.work[self.name] = float(
            q.shape[:-1].numel() * k.shape[-2] * (q.shape[-1] + v.shape[-1])
        )
        masked = None if call.attn_mask is None else (call.attn_mask.shape, call.attn_mask.dtype)
        kind = ("attention", q.shape, k.shape, v.shape, q.dtype, masked)
        ours = {p: functools.partial(self._attend, call, p) for p in names}
        sums.time(self.name, kind, {"full": call.full, **ours}, q.device)
        return out

    def _names(self) -> list[str]:
        assert self.sums is not None
        return [p for p in ATTENDED if p in self.sums.precisions]

    def _attend(self, call: Call, precision: str) -> Tensor:
        """Compute attention in one precision, also where that does not pay."""
        assert self.sums is not None
        ours = call.for_kernels(self.sums.options)
        impl = resolve(ATTENTION, self.sums.impl, call.query.device)
        return run_attention(ours, decide(ours, precision, impl))[0]

    def why_full(self, call: Call) -> str:
        """Return why a call is not measured: why no precision would run for it, or ""."""
        assert self.sums is not None
        if reason := "causal" if call.is_causal else call.why_not_ours():
            return reason
        if self.sums.impl != "auto":
            return ""
        ours = call.for_kernels(self.sums.options)
        decisions = [decide(ours, precision, "auto") for precision in self._names()]
        return decisions[0].why if all(d.precision == "full" for d in decisions) else ""


@dataclass
class LinearProbe(LinearSite):
    """A linear layer that measures."""

    sums: Sums | None = None
    place: _Place = field(default_factory=_Place)

    def call(
        self, layer: nn.Linear, forward: Forward, x: Tensor, then: Then | None = None
    ) -> Tensor:
        """Return the layer's result at full precision."""
        out = self._measured(layer, forward, x)
        return out if then is None else then.exact(out)

    def _measured(self, layer: nn.Linear, forward: Forward, x: Tensor) -> Tensor:
        assert self.sums is not None
        sums, impl = self.sums, self.config.impl
        reason = self._why_full(layer, x)
        if sums.low is not None:
            low = self.name in sums.low and not reason
            return self._run(layer, x, x, sums.own[self.name][-1]) if low else forward(x)
        out = forward(x)
        names: list[str] = []
        if not reason:
            rows = x.reshape(-1, x.shape[-1])
            why = {p: kernels.why_not(rows, layer.weight, p, impl) for p in LAYERED}
            names = [p for p in LAYERED if p in sums.precisions and not why[p]]
            reason = why[LAYERED[0]]
        if not names:
            self.keep(reason)
            return out
        key, index = _key(self, self.place, sums), sample(len(rows), sums.rows).to(x.device)
        exact = out.reshape(-1, out.shape[-1])[index]
        sums.add(key, names, exact, lambda p: self._run(layer, rows, rows[index], p))
        sums.work[self.name] = float(len(rows) * layer.weight.numel())
        sums.linear.add(self.name)
        kind = ("linear", rows.shape, x.stride(), x.dtype, tuple(layer.weight.shape))
        ours = {p: functools.partial(self._run, layer, x, x, p) for p in names}
        sums.time(self.name, kind, {"full": functools.partial(forward, x), **ours}, x.device)
        return out

    def _run(self, layer: nn.Linear, x: Tensor, some: Tensor, precision: str) -> Tensor:
        """Compute some rows of ``x`` in a precision."""
        now, rows = (self.state.refresh(), self.state.step), x.reshape(-1, x.shape[-1])
        packed = self.weight.find(layer.weight, rows, cast(LinearPrecision, precision), now)
        return Product(packed, layer.bias)(some)


def sample(tokens: int, rows: int) -> Tensor:
    """Return about ``rows`` of ``tokens`` row indices, in evenly spread blocks of ``BLOCK``."""
    if tokens <= rows:
        return torch.arange(tokens, dtype=torch.int64, device="cpu")
    blocks = max(1, rows // BLOCK)
    ends = torch.linspace(0, tokens - BLOCK, blocks, dtype=torch.float32, device="cpu")
    one = torch.arange(BLOCK, dtype=torch.int64, device="cpu")
    return (ends.long()[:, None] // BLOCK * BLOCK + one).flatten().unique()
