"""Who computes a kind of call at a site: contenders that the plan allows, and their verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from accel.attention import check, trial
from accel.attention.backend import BACKENDS
from accel.attention.baseline import Baseline
from accel.attention.call import Call, finite
from accel.attention.providers import CLASSES, NATIVE, OURS, candidates
from accel.attention.trial import Contender, Verdict
from accel.config import AttentionConfig
from accel.kernels import measured
from accel.kernels.dispatch import Decision


def kind_of(call: Call, precision: str, baseline: str) -> tuple[object, ...]:
    """Return what a site knows a verdict by; cheaper than the name of a kind."""
    mask, query = call.attn_mask, call.query
    known = None if mask is None else (mask.shape, mask.dtype)
    return (
        query.shape, call.key.shape, call.value.shape[-1], query.dtype, query.device,
        query.stride(), known, call.is_causal, precision, baseline, torch.get_num_threads(),
    )  # fmt: skip


def verdict(
    call: Call,
    precision: str,
    config: AttentionConfig,
    baseline: Baseline,
    decision: Decision,
    ours: Callable[[Call], Tensor],
) -> Verdict:
    """Return who computes calls like this one; the first of a kind on a machine is measured.

    ``decision``: what our kernels would run, by ``ours``.
    """
    kind = trial.kind_of(call, precision, _options(config, decision))
    quantizes = decision.precision != "full"
    if config.impl != "auto":
        return _unmeasured(kind, decision, baseline)
    contenders, reasons = _contenders(call, precision, config, baseline)
    if not quantizes:
        reasons[OURS] = decision.why
    elif BACKENDS.get(baseline.name, "full") != "full":
        reasons[OURS] = f"the pipeline's own backend is {baseline.name!r}, the same kernel"
    elif config.providers and OURS not in config.providers:
        reasons[OURS] = "the plan does not name it"
    else:
        contenders.append(Contender(OURS, decision.precision, ours))
    if not contenders:
        return Verdict(kind, (baseline.name,), why_not=reasons)
    if not measured.measuring() or _capturing(call):
        mine = any(one.name == OURS for one in contenders)
        fixed = _unmeasured(kind, decision if mine else None, baseline)
        return replace(fixed, why_not={**reasons, **fixed.why_not})
    contenders = [replace(one, run=_checked(one.run)) for one in contenders]
    names = (*(one.name for one in contenders), baseline.name)
    found = trial.find(call.query.device, kind, names)
    if found is None:
        dtype = call.query.dtype
        limits = {p: check.limit(config, p, dtype) for p in _allowed(precision)}
        last = Contender(baseline.name, "full", baseline.tried)
        found = trial.hold(call, kind, contenders, last, limits)
    return replace(found, why_not={**reasons, **found.why_not})


def _contenders(
    call: Call, precision: str, config: AttentionConfig, baseline: Baseline
) -> tuple[list[Contender], dict[str, str]]:
    """Return the providers of others that take a call, and why the rest does not."""
    found, reasons = candidates(config.providers, baseline.name, call.query.device)
    contenders = []
    if baseline.name != NATIVE and (not config.providers or NATIVE in config.providers):
        contenders.append(Contender(NATIVE, "full", Call.full))
    for one in found:
        if one.claim in CLASSES and one.claim not in _allowed(precision):
            reasons[one.name] = f"it is {one.claim}, which the plan does not allow"
        elif why := one.why_not(call):
            reasons[one.name] = why
        else:
            contenders.append(Contender(one.name, one.claim, one.run))
    return contenders, reasons


def _checked(run: Callable[[Call], Tensor]) -> Callable[[Call], Tensor]:
    """Return a contender's run with the check that each of its results will have."""

    def checked(call: Call) -> Tensor:
        out = run(call)
        finite(out)
        return out

    return checked


def _allowed(precision: str) -> tuple[str, ...]:
    """Return the precisions that a plan's ``precision`` allows, most exact first."""
    return CLASSES[: CLASSES.index(precision) + 1]


def _unmeasured(kind: str, decision: Decision | None, baseline: Baseline) -> Verdict:
    """Return the verdict of fixed rules: our kernel where it quantizes, else the baseline."""
    if decision is None or decision.precision == "full":
        why = {} if decision is None else {OURS: decision.why}
        return Verdict(kind, (baseline.name,), why_not=why)
    return Verdict(kind, (OURS, baseline.name), {OURS: decision.precision})


def _options(config: AttentionConfig, decision: Decision) -> str:
    named = ("smooth_q", "smooth_v", "hadamard")
    share = [f"share {decision.kept_share:g}"] if decision.kept_share < 1 else []
    limit = [] if config.max_error is None else [f"error {config.max_error:g}"]
    return " ".join([*(name for name in named if getattr(config, name)), *share, *limit])


def _capturing(call: Call) -> bool:
    return call.query.is_cuda and torch.cuda.is_current_stream_capturing()
