"""Quantized attention in a model: every attention call of a denoiser, decided at run time.

Config is ``AttentionConfig``, State the record of each site, Hook the op that stands behind the
seam (``accel/attention/sdpa.py``), and ``apply`` puts a denoiser's attention modules there. A call
takes the precision that the policy gives for the current step, has the kernels decide what runs for
it (``accel/kernels/dispatch.py``), and stays at full precision, with a reason, where they cannot
quantize it or that does not pay. Sampled rows of each site's first call in a run are compared with
full precision. A result that is not finite, or too far off on those rows, is recomputed at full
precision and its site stays there for the rest of the run.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from accel.attention import policy as policy
from accel.attention import sdpa
from accel.attention.call import Call, compare, finite
from accel.config import AttentionConfig
from accel.core.diffusers_bridge import use_native_backend
from accel.core.run_state import RunState
from accel.kernels.attention import BITS
from accel.kernels.attention import run as run_attention
from accel.kernels.attention_call import AttentionCall, Options
from accel.kernels.cpu.attention import scratch_bytes
from accel.kernels.dispatch import Decision, decide

# ------------------------------------------------------------------------------------------- State


Now = tuple[int, int | None]  # number of the run, 0-based step where it is known


@dataclass
class SiteRecord:
    """What happened at one site, over all runs since patching.

    ``kept`` counts calls left at full precision by reason, ``instead`` those that ran in another
    precision than the plan's, ``recomputed`` those that were thrown away and computed again, by
    reason; ``error`` is the worst relative L1 and ``cosine`` the worst similarity to full precision
    on the sampled rows. ``steps``: what ran at each step of run ``steps_run``; "" for no call,
    several joined by "+".
    """

    ran: Counter[tuple[str, str]] = field(default_factory=Counter)  # (precision, implementation)
    kept: Counter[str] = field(default_factory=Counter)
    instead: Counter[str] = field(default_factory=Counter)
    recomputed: Counter[str] = field(default_factory=Counter)
    error: float | None = None
    cosine: float | None = None
    seconds: float = 0.0
    scratch_bytes: int = 0  # memory of one call beside inputs and result, where it is known
    steps: list[str] = field(default_factory=list)
    steps_run: int = -1

    def at(self, now: Now, precision: str) -> None:
        """Record that a call gave its result in ``precision``."""
        run, step = now
        if run != self.steps_run:
            self.steps_run, self.steps = run, []
        if step is None:
            return
        self.steps += [""] * (step + 1 - len(self.steps))
        known = self.steps[step]
        if precision not in known.split("+"):
            self.steps[step] = f"{known}+{precision}" if known else precision


@dataclass
class Site:
    """One attention module (or a denoiser itself, ``config`` None) and its record.

    ``checked``: precisions whose first call in run ``checked_run`` was compared with full one;
    ``demoted_run``: in that run a result was not usable (``demoted_why``), so the rest stays at
    full precision.
    """

    name: str
    config: AttentionConfig | None
    state: RunState
    note: str = ""
    record: SiteRecord = field(default_factory=SiteRecord)
    finished: int = 0
    checked_run: int = -1
    checked: set[str] = field(default_factory=set)
    demoted_run: int = -1
    demoted_why: str = ""
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

    def keep(self, reason: str) -> None:
        """Count a call left at full precision."""
        self._keep(reason, (self.state.refresh(), self.state.step))

    def _keep(self, reason: str, now: Now) -> None:
        self.record.kept[reason] += 1
        self.record.at(now, "full")

    def attend(self, *arguments: Any) -> Tensor:
        """Compute attention of one call (see ``Call``) as the plan wants it at this step."""
        call, config = Call(*sdpa.autocast(*arguments)), self.config
        now = run, step = self.state.refresh(), self.state.step
        if config is None:
            self._keep("not inside an attention module accel knows", now)
            return call.full()
        precision = policy.precision_at(config, self.name, step, self.state.steps)
        reason = "full precision by plan" if precision == "full" else call.why_not_ours()
        if not reason:
            ours = call.for_kernels(self.options)
            decision = decide(ours, precision, config.impl)
            if decision.precision != "full":
                if self.demoted_run == run:
                    why = f"demoted: {self.demoted_why}"
                    return self._rescue(call, why, self.record.kept, now)
                return self._quantized(call, ours, decision, now)
            reason = decision.why
        self._keep(reason, now)
        return call.full()

    def _quantized(self, call: Call, ours: AttentionCall, decision: Decision, now: Now) -> Tensor:
        """Run a call as it was decided; at full precision if the result is not usable."""
        record, precision = self.record, decision.precision
        if decision.why:
            record.instead[f"{decision.asked} ran as {precision}: {decision.why}"] += 1
        start = time.perf_counter()
        out, _ = run_attention(ours, decision)
        record.seconds += time.perf_counter() - start
        if not finite(out):
            return self._demote(call, "result not finite", now)
        if self.checked_run != now[0]:
            self.checked_run, self.checked = now[0], set()
        if precision not in self.checked:
            self.checked.add(precision)
            if why := self._first(call, out, decision):
                return self._demote(call, why, now)
        record.ran[(precision, decision.impl)] += 1
        record.at(now, precision)
        return out

    def _first(self, call: Call, out: Tensor, decision: Decision) -> str:
        """Return why the first result of a precision in a run is not usable, or "".

        Its scratch memory and error are noted.
        """
        record, config, precision = self.record, self.config, decision.precision
        assert config is not None
        if decision.impl == "cpu":
            bytes_ = scratch_bytes(call.query, call.key, call.value, BITS[precision])
            record.scratch_bytes = max(record.scratch_bytes, bytes_)
        if config.check_rows and not call.is_causal:
            error = self._check(call, out, config.check_rows)
            if not error <= config.max_error:
                why = f"{precision} has error {error:.2f} on sampled rows, over the limit of "
                return f"{why}{config.max_error}"
        return ""

    def _check(self, call: Call, out: Tensor, rows: int) -> float:
        """Return the relative L1 error of ``out`` on evenly spread query rows; note the worst."""
        tokens, record = call.query.shape[-2], self.record
        index = torch.linspace(
            0, tokens - 1, min(rows, tokens), dtype=torch.float32, device=out.device
        ).long()
        error, cosine, _ = compare(out[..., index, :], call.full(*call.rows(index)))
        record.error = error if record.error is None else max(record.error, error)
        record.cosine = cosine if record.cosine is None else min(record.cosine, cosine)
        return error

    def _demote(self, call: Call, why: str, now: Now) -> Tensor:
        """Compute again at full precision, and keep the site there for the rest of the run."""
        self.demoted_run, self.demoted_why = now[0], why
        return self._rescue(call, why, self.record.recomputed, now)

    def _rescue(self, call: Call, why: str, counter: Counter[str], now: Now) -> Tensor:
        out, how = call.rescued()
        self.record.at(now, "full")
        counter[f"{why}; computed {how}" if how else why] += 1
        return out


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
        aside = use_native_backend(module, undo)
        note = f"diffusers backend {aside!r} set aside while patched" if aside else ""
        sites[name] = make(name, config, state, note=note)
        sdpa.hook(module, sites[name], undo)
    return sites
