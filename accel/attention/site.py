"""Quantized attention in a model: every attention call of a denoiser, decided at run time.

A site is one attention module. A call takes the precision that the policy gives for the current
step, and is computed by the fastest provider that has it on this machine
(``accel/attention/choice.py``): our kernel, somebody else's, or the baseline, which is what the
user's own code would run. It stays with the baseline, with a reason, where nothing can quantize it
or that does not pay. Sampled rows of a provider's first call in a quarter of a run are compared
with torch (``accel/attention/check.py``). Where a provider fails, or its result is not finite or
too far off on those rows, the next one computes the call, and the site does without it for the rest
of the run.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from accel.attention import check, choice, sdpa, simpler
from accel.attention import policy as policy
from accel.attention.baseline import Baseline, rescued
from accel.attention.call import Call, finite
from accel.attention.guard import BY_PLAN, GuardedSite, failed
from accel.attention.providers import OURS, provider
from accel.attention.site_record import Now
from accel.attention.trial import Verdict
from accel.config import AttentionConfig
from accel.kernels.attention import BITS, with_blocks
from accel.kernels.attention import run as run_attention
from accel.kernels.attention_call import AttentionCall, Options
from accel.kernels.cpu.attention import scratch_bytes
from accel.kernels.dispatch import PAYS_FROM, Decision, decide
from accel.kernels.sparse import computed


@dataclass
class Site(GuardedSite):
    """One attention module, or a denoiser itself (``config`` None).

    ``short``: sizes of queries and keys that are too short to gain, and the reason. ``simpler``:
    options that calls of run ``checked_run`` go without. ``out``: providers that failed in that
    run. ``verdicts``: who computes each kind of call; ``lost``: of those that stay with the
    baseline, why.
    """

    config: AttentionConfig | None
    finished: int = 0
    baseline: Baseline = field(default_factory=Baseline)
    simpler: simpler.Simpler = field(default_factory=simpler.Simpler)
    out: dict[str, str] = field(default_factory=dict)
    short: dict[Any, str] = field(default_factory=dict)
    lost: dict[Any, str] = field(default_factory=dict)
    verdicts: dict[Any, Verdict] = field(default_factory=dict)
    options: Options = field(init=False)

    def __post_init__(self) -> None:
        config = self.config
        self.options = (
            Options()
            if config is None
            else Options(config.smooth_q, config.smooth_v, config.hadamard)
        )
        self._sparse = config is not None and (
            config.kept_share is not None or any(r.kept_share is not None for r in config.rules)
        )

    def begin(self) -> None:
        """Note that a call of the module begins."""
        self.baseline.begin()

    def done(self) -> None:
        """Note that a call of the module came to its end."""
        self.finished += 1

    def enter_run(self, run: int) -> None:
        """Forget what was found in an earlier run."""
        if self.checked_run != run:
            self.simpler, self.out = simpler.Simpler(), {}
        super().enter_run(run)

    def attend(self, *arguments: Any) -> Tensor:
        """Compute attention of one call (see ``Call``) as the plan wants it at this step."""
        now = run, step = self.state.refresh(), self.state.step
        if (reason := self.short.get((arguments[0].shape, arguments[1].shape))) is not None:
            self.keep_at(reason, now)
            return self.baseline.run_plain(*arguments)
        raw, config = Call(*arguments), self.config
        if config is None:
            return self._full(raw, "not inside an attention module accel knows", now)
        precision = policy.precision_at(config, self.name, step, self.state.steps)
        if precision == "full":
            return self._full(raw, BY_PLAN, now)
        share = None
        if self._sparse:
            share = policy.kept_share_at(config, self.name, step, self.state.steps)
        lost = (*self._place(raw), precision, share)
        if (reason := self.lost.get(lost)) is not None:
            return self._full(raw, reason, now)
        call = Call(*sdpa.autocast(*arguments))
        if reason := call.why_not_ours():
            return self._full(raw, reason, now)
        options = self.options if share is None else replace(self.options, kept_share=share)
        ours = call.for_kernels(options)
        decision = self._decide(ours, precision)
        verdict = self._verdict(call, ours, decision)
        if len(verdict.order) == 1:
            self.lost[lost] = self._why_full(raw, verdict, decision)
            return self._full(raw, self.lost[lost], now)
        if self.demoted_run == run:
            return self._rescue(raw, f"demoted: {self.demoted_why}", self.record.kept, now)
        return self._quantized(raw, call, ours, decision, verdict, now)

    def _place(self, call: Call) -> tuple[Any, ...]:
        """Return what a lost call is known by; others of it may win, but none is ever wrong."""
        q, k = call.query, call.key
        cast = torch.is_autocast_enabled(q.device.type) if q.device.type != "meta" else False
        masked = call.attn_mask is not None
        return q.shape, k.shape, q.dtype, cast, masked, call.is_causal, self.baseline.name

    def _full(self, call: Call, reason: str, now: Now) -> Tensor:
        """Compute a call as the user's code would, and count it with the reason."""
        self.keep_at(reason, now)
        return self.baseline.run(call)

    def _decide(self, ours: AttentionCall, precision: str) -> Decision:
        """Return what our kernels run; with "auto" nothing where deciding fails."""
        assert self.config is not None
        try:
            return decide(ours, precision, self.config.impl, True)  # measured in a trial
        except Exception as error:
            if self.config.impl != "auto":
                raise
            return Decision(precision, "full", "torch", failed("choosing a kernel", error))

    def _verdict(self, call: Call, ours: AttentionCall, decision: Decision) -> Verdict:
        """Return who computes calls like this one."""
        assert self.config is not None
        key = choice.kind_of(call, decision.asked, self.baseline.name)
        key = (*key, decision.precision, decision.kept_share)
        found = self.verdicts.get(key)
        if found is None:

            def run(part: Call) -> Tensor:  # with what a call costs around it
                part.why_not_ours()
                mine = part.for_kernels(ours.options)
                self._decide(mine, decision.asked)
                return run_attention(mine, decision)[0]

            found = self.verdicts[key] = choice.verdict(
                call, decision.asked, self.config, self.baseline, decision, run
            )
        return found

    def _why_full(self, call: Call, verdict: Verdict, decision: Decision) -> str:
        """Return why the baseline computes a call, and remember sizes that are too short."""
        reason = verdict.why_not.get(OURS) or decision.why
        if PAYS_FROM in reason and not verdict.errors:
            self.short[call.query.shape, call.key.shape] = reason
        return reason or f"no provider is faster than {self.baseline.name} here"

    def _quantized(
        self, raw: Call, call: Call, ours: AttentionCall, decision: Decision, verdict: Verdict,
        now: Now,
    ) -> Tensor:  # fmt: skip
        """Have a call computed by the first in order that gives a usable result."""
        record, why = self.record, ""
        self.enter_run(now[0])
        for name in verdict.order[:-1]:
            if name in self.out:
                continue
            if why:
                record.instead[f"{why}; {name} computed it"] += 1
            mine = name == OURS
            impl = decision.impl if mine else name
            precision = decision.precision if mine else verdict.ran[name]
            if mine and decision.why:
                record.instead[f"{decision.asked} ran as {precision}: {decision.why}"] += 1
            try:
                out, why = (
                    self._attempt(call, ours, decision, now)
                    if mine
                    else self._by_provider(call, name, precision, now)
                )
            except Exception as error:  # whatever fails in a kernel, the next computes the call
                why = failed(f"{precision} by {impl}", error)
            if not why:
                record.ran[(precision, impl)] += 1
                record.at(now, precision)
                return out
            self.out[name] = why
        return self._demote(raw, why, now)

    def _by_provider(self, call: Call, name: str, precision: str, now: Now) -> tuple[Tensor, str]:
        """Return somebody else's result, and why it is not usable, or ""."""
        assert self.config is not None
        one = provider(name)
        if one is None:
            return call.query, f"{name} is not registered any more"
        start = time.perf_counter()
        out = one.run(call)
        self.record.seconds += time.perf_counter() - start
        fine, later = self.usable(out, name)
        if not fine:
            return out, f"result of {name} not finite"
        rows = self.rows_due(name, now[1])
        if not rows:
            return out, ""
        limit = check.limit(self.config, precision, call.query.dtype)
        values = check.sample(call, rows).values(out)
        return out, self.compare(f"{precision} by {name}", values, limit, later)

    def _attempt(
        self, call: Call, ours: AttentionCall, decision: Decision, now: Now
    ) -> tuple[Tensor, str]:
        """Return our kernel's result, and why it is not usable, or ""."""
        precision = decision.precision
        ours, decision = self.simpler.found(ours, decision, self.record.instead)
        out = self._run(ours, decision)
        fine, later = self.usable(out, precision)
        if not fine:
            return out, "result not finite"
        rows = self.rows_due(precision, now[1])
        if rows is None or (later and not rows):
            return out, ""
        if not later:
            return self._first(call, ours, decision, out, rows)
        assert self.config is not None
        limit = check.limit(self.config, precision, call.query.dtype)
        return out, self.compare(precision, check.sample(call, rows).values(out), limit, later)

    def _run(self, ours: AttentionCall, decision: Decision) -> Tensor:
        record, start = self.record, time.perf_counter()
        ours = with_blocks(ours, decision)
        out, _ = run_attention(ours, decision)
        record.seconds += time.perf_counter() - start
        if ours.block_mask is not None:
            record.sparse_calls += 1
            record.blocks_computed += computed(ours)
        return out

    def _first(
        self, call: Call, ours: AttentionCall, decision: Decision, out: Tensor, rows: int
    ) -> tuple[Tensor, str]:
        """Return a precision's first result in a quarter, and why it is not usable, or "".

        ``rows`` of them are compared with full precision. Where the result is off by more than half
        of what the precision may be, the call runs without some options too (``simpler.py``).
        Scratch memory and error are noted.
        """
        record, config, precision = self.record, self.config, decision.precision
        assert config is not None
        if decision.impl == "cpu":
            bytes_ = scratch_bytes(call.query, call.key, call.value, BITS[precision])
            record.scratch_bytes = max(record.scratch_bytes, bytes_)
        if not rows:
            return out, ""
        sample, limit = check.sample(call, rows), check.limit(config, precision, out.dtype)
        error, cosine = sample.error(out)
        for name in simpler.WITHOUT:
            way = simpler.less(name, ours, decision)
            if error <= limit / 2 or way is None:
                continue
            other = self._run(*way)
            error2, cosine2 = sample.error(other)
            if error2 < error and finite(other):
                out, error, cosine, (ours, decision) = other, error2, cosine2, way
                self.simpler.take(name, precision, record.instead)
        return out, self.judge(precision, (error, cosine), limit)

    def _demote(self, call: Call, why: str, now: Now) -> Tensor:
        """Compute again at full precision, and keep the site there for the rest of the run."""
        self.demote(why, now[0])
        return self._rescue(call, why, self.record.recomputed, now)

    def _rescue(self, call: Call, why: str, counter: Counter[str], now: Now) -> Tensor:
        out, how = rescued(call, self.baseline)
        self.record.at(now, "full")
        counter[f"{why}; computed {how}" if how else why] += 1
        return out
