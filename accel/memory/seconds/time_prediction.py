"""Seconds of a job by phase, predicted: operators counted on meta, priced with measured tables.

A plan changes the price of its sites: attention and linear layers of fewer bits have tables of
their own, and as at run time the faster of both is taken. Steps that step rehash skips cost what
their prediction reads and writes. Nothing of the model runs, and nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from accel.core.diffusers_bridge import execution_device
from accel.core.validate import whole
from accel.families.family import Model
from accel.memory.meta_models import Size, Video, find, in_dtype, of_pipeline
from accel.memory.seconds import rate_bench
from accel.memory.seconds.job_work import JobWork, job_work
from accel.memory.seconds.plan_prices import (
    Priced,
    Prices,
    computed_steps,
    operators,
    whole_call,
)  # fmt: skip
from accel.memory.seconds.rates import Rates
from accel.plans import Plan


@dataclass(frozen=True)
class TimePrediction:
    """Predicted seconds of one job.

    ``encode`` has each encoder's, ``step`` is the mean of the ``computed`` ones of all ``steps``,
    ``reused`` that of a skipped one, ``denoise`` all of them. ``kinds``: where all of it goes, by
    kind of operator. ``notes``: what is counted roughly or not at all.
    """

    encode: Mapping[str, float]
    step: float
    steps: int
    computed: int
    denoise: float
    decode: float
    kinds: Mapping[str, float]
    notes: tuple[str, ...] = ()
    reused: float = 0.0

    @property
    def total(self) -> float:
        """Seconds of all phases."""
        return sum(self.encode.values()) + self.denoise + self.decode

    def with_computed(self, computed: int) -> float:
        """Return the seconds of all phases where a run computes another number of steps.

        Step rehash computes more than planned where outputs cannot be predicted.
        """
        more = computed - self.computed
        return self.total + more * (self.step - self.reused)

    def __str__(self) -> str:
        rows = [(f"encode, {name}", seconds) for name, seconds in self.encode.items()]
        rows += [
            ("one step", self.step),
            (f"denoise, {self.computed} of {self.steps} steps computed", self.denoise),
            ("decode", self.decode),
            ("total", self.total),
        ]
        lines = ["predicted seconds:"]
        lines += [f"  {name:<44}{_text(seconds):>12}" for name, seconds in rows]
        whole_ = sum(self.kinds.values()) or 1.0
        ranked = sorted(self.kinds.items(), key=lambda item: -item[1])
        shares = [f"{kind} {s / whole_:.0%}" for kind, s in ranked if s >= 0.02 * whole_]
        lines += [f"  of it {', '.join(shares)}"]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def _text(seconds: float) -> str:
    return f"{seconds:,.1f}" if seconds >= 10 else f"{seconds:.3g}"


def predict_time(
    model: Any,
    job: Size,
    plan: Plan | str | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    rates: Rates | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> TimePrediction:
    """Return the seconds that a job is predicted to take on this machine.

    Times of operators are measured when they are first needed, some minutes on a new machine,
    and kept in the user's cache. Operators of a model are counted once per size, so further plans
    cost next to nothing. Not counted: loading, first calls, compiled graphs, moving weights.

    Args:
        model: A loaded pipeline, or a model that need not be here: the name of a released one such
            as "wan-1.3b", a folder, a hub id.
        job: Anything with ``width``, ``height`` (pixels) and ``frames``, and if it has them
            ``steps`` and ``guidance``; the pipeline's own otherwise.
        plan: What the patch would do, or the name of a preset; None for the plain pipeline.
        device: Where it runs; that of the pipeline, or a card if there is one.
        dtype: Of a model that is not loaded; by default fp32 on a CPU, else as released.
        rates: Tables to use instead of this machine's.
        say: Called with one line of text before something is measured.

    Raises:
        ValueError: A model, size or plan that there is not, or a device without its times.
    """
    found, where = _resolved(model, device, dtype)
    if not job.width or not job.height or not job.frames:
        raise ValueError(
            "a prediction needs the job's width, height and frames, got "
            f"{job.width} x {job.height}, {job.frames} frames"
        )
    guidance, steps = getattr(job, "guidance", None), getattr(job, "steps", None)
    work = job_work(found, Video(job.width, job.height, job.frames), guidance)
    steps = work.steps if steps is None else whole("job steps", steps, 1)
    plan = Plan.preset(plan) if isinstance(plan, str) else plan
    plan = Plan("plain", attention=None) if plan is None else plan
    known = rate_bench.rates(where, say) if rates is None else rates
    if rates is None:
        number = len(computed_steps(plan.rehash, steps))
        rate_bench.measure_own(operators(work, plan, number), known, where, say)
    prediction = of_work(work, plan, steps, known)
    doubts = () if rates is not None else rate_bench.doubts(where)
    busy = (f"measured on a busy machine: {'; '.join(doubts)}",) if doubts else ()
    return replace(prediction, notes=(*prediction.notes, *busy))


def _resolved(
    model: Any, device: str | torch.device | None, dtype: torch.dtype | None
) -> tuple[Model, torch.device]:
    """Return the model on meta, and where it would run."""
    usual = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded = not isinstance(model, (str, Model))
    if loaded:
        usual = execution_device(model) or usual
    where = usual if device is None else torch.device(device)
    if loaded:
        return of_pipeline(model), where
    found = find(model) if isinstance(model, str) else model
    if dtype is None and where.type == "cpu":
        dtype = torch.float32
    return found if dtype is None else in_dtype(found, dtype), where


def of_work(work: JobWork, plan: Plan, steps: int, rates: Rates) -> TimePrediction:
    """Return the seconds of counted work with a plan, in ``steps`` steps."""
    rates.missing.clear()
    kinds, denoise, decode = Priced(), Priced(), Priced()
    encode: dict[str, float] = {}
    for one in work.encode:
        priced = whole_call(one, rates)
        encode[one.component] = encode.get(one.component, 0.0) + one.times * priced.total()
        kinds.add_all(priced, one.times)
    computed = computed_steps(plan.rehash, steps)
    prices = Prices(work.denoise, plan, rates)
    for step in computed:
        denoise.add_all(prices.of_step(step, steps))
    mean = denoise.total() / max(1, len(computed))
    reused = prices.of_reused(mean) if plan.rehash else Priced()
    denoise.add_all(reused, steps - len(computed))
    for one in work.decode:
        decode.add_all(whole_call(one, rates), one.times)
    kinds.add_all(denoise)
    kinds.add_all(decode)
    notes = (*work.notes, *_notes(plan), *_missing(rates))
    return TimePrediction(
        encode, mean, steps, len(computed), denoise.total(), decode.total(), dict(kinds), notes,
        reused.total(),
    )  # fmt: skip


def _notes(plan: Plan) -> list[str]:
    found = []
    if plan.rehash is not None:
        found.append("step rehash computes more steps where outputs cannot be predicted")
    if plan.slicing is not None:
        found.append("slices are counted as if blocks ran whole")
    if any(c and c.impl != "auto" for c in (plan.attention, plan.linear)):
        found.append("a named implementation is counted as what auto runs")
    config = plan.attention
    if config and (config.kept_share or any(rule.kept_share for rule in config.rules)):
        found.append("blocks of keys that kept_share leaves out are counted as computed")
    return found


def _missing(rates: Rates) -> list[str]:
    if not rates.missing:
        return []
    return [f"counted as reading and writing memory: {', '.join(sorted(rates.missing))}"]
