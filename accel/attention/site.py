"""Quantized attention in a model: every attention call of a denoiser, decided at run time.

Config is ``AttentionConfig``, State the record of each site, Hook the op that stands behind the
seam (``accel/attention/sdpa.py``), and ``apply`` puts a denoiser's attention modules there. A call
takes the precision that the policy gives for the current step, has the kernels decide what runs for
it (``accel/kernels/dispatch.py``), and stays at full precision, with a reason, where they cannot
quantize it or that does not pay. Sampled rows of each site's first call in a quarter of a run are
compared with full precision (``accel/attention/check.py``). Where a kernel fails, or its result is
not finite or too far off on those rows, the call is computed at full precision and its site stays
there for the rest of the run.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from accel.attention import check, sdpa
from accel.attention import policy as policy
from accel.attention.call import Call, finite
from accel.attention.guard import BY_PLAN, GuardedSite, failed
from accel.attention.site_record import Now
from accel.config import AttentionConfig
from accel.core.diffusers_bridge import use_native_backend
from accel.core.run_state import RunState
from accel.kernels.attention import BITS
from accel.kernels.attention import run as run_attention
from accel.kernels.attention_call import AttentionCall, Options
from accel.kernels.cpu.attention import scratch_bytes
from accel.kernels.dispatch import PAYS_FROM, Decision, decide

# ------------------------------------------------------------------------------------------- State


UNSMOOTHED = "ran without smooth_v, which is further off here"


@dataclass
class Site(GuardedSite):
    """One attention module, or a denoiser itself (``config`` None).

    ``short``: sizes of queries and keys that are too short to gain, and the reason. ``unsmoothed``:
    the precisions that in run ``checked_run`` are nearer to full precision without
    ``smooth_v``.
    """

    config: AttentionConfig | None
    finished: int = 0
    unsmoothed: set[str] = field(default_factory=set)
    short: dict[Any, str] = field(default_factory=dict)
    options: Options = field(init=False)

    def __post_init__(self) -> None:
        config = self.config
        self.options = (
            Options()
            if config is None
            else Options(config.smooth_q, config.smooth_v, config.hadamard)
        )

    def done(self) -> None:
        """Note that a call of the module came to its end."""
        self.finished += 1

    def enter_run(self, run: int) -> None:
        """Forget what was found in an earlier run."""
        if self.checked_run != run:
            self.unsmoothed = set()
        super().enter_run(run)

    def attend(self, *arguments: Any) -> Tensor:
        """Compute attention of one call (see ``Call``) as the plan wants it at this step."""
        now = run, step = self.state.refresh(), self.state.step
        shapes = arguments[0].shape, arguments[1].shape
        if (reason := self.short.get(shapes)) is not None:
            self.keep_at(reason, now)
            return Call(*arguments).full()
        call, config = Call(*sdpa.autocast(*arguments)), self.config
        if config is None:
            self.keep_at("not inside an attention module accel knows", now)
            return call.full()
        precision = policy.precision_at(config, self.name, step, self.state.steps)
        reason = BY_PLAN if precision == "full" else call.why_not_ours()
        if not reason:
            ours = call.for_kernels(self.options)
            decision = self._decide(ours, precision)
            if decision.precision != "full":
                if self.demoted_run == run:
                    why = f"demoted: {self.demoted_why}"
                    return self._rescue(call, why, self.record.kept, now)
                return self._quantized(call, ours, decision, now)
            reason = decision.why
            if PAYS_FROM in reason:
                self.short[shapes] = reason
        self.keep_at(reason, now)
        return call.full()

    def _decide(self, ours: AttentionCall, precision: str) -> Decision:
        """Return what runs; with "auto" that is torch's attention where deciding fails."""
        assert self.config is not None
        try:
            return decide(ours, precision, self.config.impl)
        except Exception as error:
            if self.config.impl != "auto":
                raise
            return Decision(precision, "full", "torch", failed("choosing a kernel", error))

    def _quantized(self, call: Call, ours: AttentionCall, decision: Decision, now: Now) -> Tensor:
        """Run a call as it was decided; at full precision if there is no usable result."""
        record, precision = self.record, decision.precision
        if decision.why:
            record.instead[f"{decision.asked} ran as {precision}: {decision.why}"] += 1
        self.enter_run(now[0])
        try:
            out, why = self._attempt(call, ours, decision, now)
        except Exception as error:  # whatever fails in a kernel of ours, torch computes the call
            out, why = call.query, failed(f"{precision} by {decision.impl}", error)
        if why:
            return self._demote(call, why, now)
        record.ran[(precision, decision.impl)] += 1
        record.at(now, precision)
        return out

    def _attempt(
        self, call: Call, ours: AttentionCall, decision: Decision, now: Now
    ) -> tuple[Tensor, str]:
        """Return a quantized result, and why it is not usable, or ""."""
        precision = decision.precision
        if precision in self.unsmoothed:
            ours = _unsmoothed(ours)
            self.record.instead[f"{precision} {UNSMOOTHED}"] += 1
        out = self._run(ours, decision)
        if not finite(out):
            return out, "result not finite"
        rows = self.rows_due(precision, now[1])
        return (out, "") if rows is None else self._first(call, ours, decision, out, rows)

    def _run(self, ours: AttentionCall, decision: Decision) -> Tensor:
        start = time.perf_counter()
        out, _ = run_attention(ours, decision)
        self.record.seconds += time.perf_counter() - start
        return out

    def _first(
        self, call: Call, ours: AttentionCall, decision: Decision, out: Tensor, rows: int
    ) -> tuple[Tensor, str]:
        """Return a precision's first result in a quarter, and why it is not usable, or "".

        ``rows`` of them are compared with full precision.

        Where ``smooth_v`` costs more than half of what the precision may cost, the call runs
        without it too; the better result is taken, and later calls run like it. Scratch memory and
        error are noted.
        """
        record, config, precision = self.record, self.config, decision.precision
        assert config is not None
        if decision.impl == "cpu":
            bytes_ = scratch_bytes(call.query, call.key, call.value, BITS[precision])
            record.scratch_bytes = max(record.scratch_bytes, bytes_)
        if not rows:
            return out, ""
        sample, limit = check.sample(call, rows), check.limit(config, precision)
        error, cosine = sample.error(out)
        if ours.options.smooth_v and not error <= limit / 2:
            other = self._run(_unsmoothed(ours), decision)
            error2, cosine2 = sample.error(other)
            if error2 < error and finite(other):
                out, error, cosine = other, error2, cosine2
                self.unsmoothed.add(precision)
                record.instead[f"{precision} {UNSMOOTHED}"] += 1
        return out, self.judge(precision, error, cosine, limit)

    def _demote(self, call: Call, why: str, now: Now) -> Tensor:
        """Compute again at full precision, and keep the site there for the rest of the run."""
        self.demote(why, now[0])
        return self._rescue(call, why, self.record.recomputed, now)

    def _rescue(self, call: Call, why: str, counter: Counter[str], now: Now) -> Tensor:
        out, how = call.rescued()
        self.record.at(now, "full")
        counter[f"{why}; computed {how}" if how else why] += 1
        return out


def unsmoothed(sites: Mapping[str, Site], run: int) -> dict[str, list[str]]:
    """Return the precisions that ran without ``smooth_v`` in that run, by site."""
    return {
        name: sorted(site.unsmoothed)
        for name, site in sites.items()
        if site.unsmoothed and site.checked_run == run
    }


def _unsmoothed(ours: AttentionCall) -> AttentionCall:
    return replace(ours, options=replace(ours.options, smooth_v=False))


# -------------------------------------------------------------------------------------------- Hook


@torch.library.custom_op("accel::site_attention", mutates_args=())
def _site_op(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    label: Tensor,
) -> Tensor:
    """Return a site's call inside a compiled graph; eager code calls ``Site.attend`` itself."""
    arguments = (query, key, value, attn_mask, is_causal, scale, enable_gqa)
    site: Site | None = sdpa.caller(int(label))
    # A graph can outlive its patch; then there is no site any more.
    out = Call(*arguments).full() if site is None else site.attend(*arguments)
    # An op's result must be contiguous and must not alias an input.
    return out.clone() if out.data_ptr() == query.data_ptr() else out.contiguous()


@_site_op.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    label: Tensor,
) -> Tensor:
    return query.new_empty(*query.shape[:-1], value.shape[-1])


# ------------------------------------------------------------------------------------------- apply


def apply_attention(
    denoiser: nn.Module,
    modules: dict[str, nn.Module],
    config: AttentionConfig,
    state: RunState,
    undo: ExitStack,
    make: Callable[..., Site] = Site,
) -> dict[str, Site]:
    """Put every attention module of ``denoiser`` behind the seam and return its sites by name.

    Each site is made by ``make(name, config, state, note=...)``.

    The site "" stands for calls from the denoiser outside all of ``modules``. What has to be undone
    is put on ``undo`` as it is done, so a failure midway can be unwound.
    """
    sdpa.install()
    undo.callback(sdpa.uninstall)
    sites = {"": Site("", None, state)}
    sdpa.hook(denoiser, sites[""], undo)
    for name, module in modules.items():
        sites[name] = make(name, config, state, note=use_native_backend(module, undo))
        sdpa.hook(module, sites[name], undo)
    return sites
