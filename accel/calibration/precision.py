"""Calibration: one generation per job measures what each precision would cost, everywhere.

While a job runs at full precision, every call of attention and of a linear layer is made again in
every precision that it may have, on a sample of its rows, and compared; one of each kind is timed
(``accel/calibration/probing.py``). During the first job the denoiser is also called again at a few
steps to see what errors do to its output (``accel/calibration/output_error.py``). Further runs
under plans that mix all precisions then measure what becomes of that in the video
(``accel/calibration/sensitivity.py``).
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from accel.calibration.choose import to_plan
from accel.calibration.output_error import Errors, gains, output_errors, sampled_steps
from accel.calibration.probing import ATTENDED, LAYERED, LinearProbe, Probe, Sums
from accel.calibration.sensitivity import fit, probes
from accel.calibration.table import ErrorTable
from accel.config import AttentionConfig, Impl, LinearConfig
from accel.core.origin import plan_origin_of
from accel.core.quality import psnr
from accel.core.run_pipeline import Run, as_run
from accel.core.structure import denoisers
from accel.kernels.attention_call import Options
from accel.patching import Handle, is_patched, patched
from accel.plans import Plan

MOST = 80.0  # dB that count as no difference


def calibrate(
    pipe: Any,
    jobs: Sequence[Mapping[str, Any] | Run],
    *,
    precisions: Sequence[str] = ATTENDED,
    linear: bool = True,
    rows: int = 128,
    probe_runs: int = 24,
    progress: bool = True,
    impl: Impl = "auto",
    smooth_q: bool = True,
    smooth_v: bool = True,
    hadamard: bool = False,
) -> ErrorTable:
    """Measure error and time of every precision at every site and step of ``pipe``.

    Sites are its attention modules and, with ``linear``, the linear layers of its blocks, which are
    tried in INT8 (and FP8 where the card has it) beside ``precisions`` of attention.

    ``jobs``: keyword arguments of the pipeline's call (and ``seed``, 0 if it is not there), or
    functions that generate with the pipeline and return uint8 frames [F, H, W, 3]. All must have
    one number of steps. ``rows``: sampled rows of each call, in blocks of 32.
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
    runs = [as_run(job) for job in jobs]
    bar = tqdm(total=len(runs) + probe_runs, desc="calibrate", disable=not progress)
    every = tuple(dict.fromkeys((*precisions, *(LAYERED if linear else ()))))
    sums = Sums(every, rows, impl, Options(**options))
    base = Plan(
        "calibrate",
        AttentionConfig("full", impl=impl, check_rows=0, **options),
        linear=LinearConfig("full", impl=impl, check_rows=0) if linear else None,
    )
    why_not: Counter[str] = Counter()
    lengths, videos, origin = set(), [], plan_origin_of(pipe, "calibrate")
    with bar:
        for i, run in enumerate(runs):
            first = probe_runs > 0 and not i
            with (
                _probing(pipe, base, sums) as handle,
                _effects(pipe, handle, sums) if first else nullcontext({}) as effects,
            ):
                frames = run(pipe)
            if first:
                gain = gains(effects, sums.caused, tuple(sums.work), sums.steps)
            for site in (*handle.sites.values(), *handle.layers.values()):
                why_not.update(site.record.kept)
            lengths.add(handle.steps)
            origin = origin.measured_on(handle.steps, handle.origin.inputs, frames)
            videos += [frames] if i < probe_runs else []
            bar.update()
        if not sums.calls:
            raise ValueError(
                f"{type(pipe).__name__} made no call to measure: "
                f"{'; '.join(why_not) or 'none was seen'}; impl='reference' measures all it can"
            )
        if len(lengths) > 1:
            raise ValueError(f"jobs must have one number of steps, got {sorted(map(str, lengths))}")
        table = replace(sums.table(len(runs)), origin=origin)
        if not probe_runs:
            return table
        return _with_sensitivity(pipe, runs, videos, table, gain, base, probe_runs, bar)


def _check(pipe: Any, jobs: Sequence[Any], precisions: Sequence[str]) -> None:
    if not jobs:
        raise ValueError("calibration needs at least one job")
    if unknown := [p for p in precisions if p not in ATTENDED] or not precisions:
        raise ValueError(f"precisions must be some of {list(ATTENDED)}, got {unknown}")
    if is_patched(pipe):
        raise ValueError("calibrate an unpatched pipeline: call accel.unpatch(pipe) first")


@contextmanager
def _probing(pipe: Any, plan: Plan, sums: Sums) -> Iterator[Handle]:
    kinds = functools.partial(Probe, sums=sums), functools.partial(LinearProbe, sums=sums)
    handle = Handle(pipe, plan, kinds)
    try:
        yield handle
    finally:
        handle.unpatch()


def _effects(pipe: Any, handle: Handle, sums: Sums) -> AbstractContextManager[Errors]:
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


def _with_sensitivity(
    pipe: Any, runs: list[Run], plain: list[np.ndarray], table: ErrorTable, gain: np.ndarray,
    base: Plan, count: int, bar: tqdm[Any],
) -> ErrorTable:  # fmt: skip
    """Fit the weights to ``count`` runs of plans that mix all precisions, of the jobs in turn."""
    outputs = {p: gain * np.nan_to_num(table.mean("l2", p)) for p in table.precisions}
    own = [[p for p in ("full", *table.precisions) if table.has(p)[i]] for i in range(len(gain))]
    choices = probes(own, gain.shape[1], count)
    errors, decibels = np.zeros((count, *gain.shape)), []
    for i, choice in enumerate(choices):
        for p, output in outputs.items():
            errors[i][choice == p] = output[choice == p]
        with patched(pipe, plan=to_plan(table, choice, "probe", like=base)):
            decibels.append(min(psnr(plain[i % len(plain)], runs[i % len(plain)](pipe)), MOST))
        bar.update()
    found = fit(errors, decibels, [i % len(plain) for i in range(count)])
    return replace(
        table, site_weight=found.site[:, None] * gain, step_weight=found.step, spread=found.spread
    )
