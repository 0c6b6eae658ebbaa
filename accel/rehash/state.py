"""State of step rehash: what each branch keeps, the run's decisions, and what happened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, assert_never

import numpy as np

from accel.config import (
    MeasuredSchedule,
    Multistep,
    RehashConfig,
    Schedule,
    Wish,
)
from accel.core.run_state import RunState
from accel.rehash.schedule import FEW, UNMEASURED, Rate, budget, forced, head, stretch, weights
from accel.rehash.stored import Branch, Entry, Stored

MAX_BRANCHES = 8  # a pipeline whose branches cannot be recognized would add new ones forever


@dataclass
class RehashRecord:
    """What step rehash did so far.

    ``computed`` and ``reused`` count steps by reason, ``calls`` counts denoiser calls. ``keys`` are
    the computed steps of the last run and ``steps`` its length. ``state_bytes`` is the most that
    was kept at once. ``corrected`` counts computed calls whose output was corrected by measured
    weights. ``notes`` say what could not be done as requested.
    """

    computed: Counter[str] = field(default_factory=Counter)
    reused: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    keys: list[int] = field(default_factory=list)
    steps: int = 0
    state_bytes: int = 0
    corrected: int = 0
    notes: dict[str, None] = field(default_factory=dict)

    def note(self, text: str) -> None:
        """Add ``text`` to the report, once."""
        self.notes[text] = None


class RehashState:
    """Run state of a pipeline's rehash, shared by its denoisers and their branches.

    So all of them take the same decision at a step. It is cleared when a run starts and when the
    pipeline call ends.
    """

    def __init__(self, config: RehashConfig, order: int, run: RunState) -> None:
        self.config, self.order, self.run = config, order, run
        self.record = RehashRecord()
        self._number = -1
        self._decided: dict[int, tuple[bool, str]] = {}
        self._keys: frozenset[int] | None = None
        self._rate: Rate | None = None
        self._rows: tuple[tuple[float, ...], ...] = ()  # fitted weights, if they hold for this run
        self._first = 0.0  # largest timestep of the run
        self.branches: dict[Hashable, Branch] = {}

    def clear(self) -> None:
        """Drop everything that is kept."""
        self.branches.clear()

    def start(self) -> None:
        """Start a new run if the pipeline has; call this before each decision."""
        number = self.run.refresh()
        if number == self._number:
            return
        self._number, steps = number, self.run.steps
        self.clear()
        self._decided, self._keys, self._rate, self._first = {}, None, None, 0.0
        self._rows = ()
        self.record.keys, self.record.steps = [], steps or 0
        if steps is not None:
            self._plan(steps)

    def _plan(self, steps: int) -> None:
        """Choose how the steps of a run are selected."""
        if steps <= FEW:
            self.record.note(f"off in runs of {FEW} steps or fewer, which leave nothing to skip")
            return
        match self.config.choice:
            case MeasuredSchedule(keys, _, Multistep() as fitted) if self._fits(fitted):
                self._keys, self._rows = frozenset(keys), fitted.weights
            case Schedule(keys, measured):
                self._keys = stretch(keys, measured, steps)
                if steps != measured:
                    self.record.note(f"schedule of {measured} steps stretched to {steps}")
            case Wish(speedup):
                self._follow_a_rule(steps, speedup)
            case never:
                assert_never(never)

    def _follow_a_rule(self, steps: int, speedup: float) -> None:
        count = budget(steps, speedup)
        if count > round(steps / speedup):
            self.record.note(
                f"{speedup:g}× requested; the steps that are always computed allow "
                f"{steps / count:.2f}× in {steps} steps"
            )
        if steps / count > UNMEASURED:
            self.record.note(
                f"{steps / count:.2f}× without a measurement: beyond {UNMEASURED:g}× a run of "
                f"{count} steps can be better; measure, or lower the speedup"
            )
        self._rate = Rate(steps, count, self.order)

    def _fits(self, fitted: Multistep) -> bool:
        """Return whether fitted weights hold for this run's sampler and timesteps."""
        sampler, times = self.run.schedule
        why = ""
        if sampler != fitted.sampler:
            why = f"{fitted.sampler}, not {sampler}"
        elif len(times) != len(fitted.times):
            why = f"{len(fitted.times)} steps, not {len(times)}"
        elif not np.allclose(times, fitted.times, rtol=0, atol=1e-3 * abs(fitted.times[0])):
            why = "other timesteps (shift or resolution)"
        if why:
            self.record.note(f"measured weights hold for {why}: reuse extrapolates linearly")
        return not why

    def weights(
        self, step: int | None, time: float, entries: Sequence[Entry], computed: bool
    ) -> Sequence[float] | None:
        """Return the weights behind the sampler's input at ``step``; None if too little was kept.

        They are the weight of the new output if ``computed``, then those of kept ``entries``,
        newest first.
        """
        if self._rows and step is not None and self._keys is not None:
            row = self._rows[step]
            before = sorted((k for k in self._keys if k < step), reverse=True)
            needed = len(row) - computed
            if [e.step for e in entries[:needed]] == before[:needed]:
                return row
        if computed:
            return (1.0,)
        if len(entries) <= min(self.order, 1):
            return None
        return weights([e.time for e in entries[: min(self.order, 1) + 1]], time)

    @property
    def fitted(self) -> bool:
        """Whether measured weights are used in the current run."""
        return bool(self._rows)

    def decide(self, step: int | None) -> tuple[bool, str]:
        """Return whether ``step`` is computed, and why.

        Every branch asks; the first one that does sets the decision.
        """
        steps = self.run.steps
        if step is None or steps is None:
            return True, "step unknown"
        if step not in self._decided:
            self._decided[step] = decision = self._decide(step, steps)
            (self.record.computed if decision[0] else self.record.reused)[decision[1]] += 1
            if decision[0]:
                self.record.keys.append(step)
        return self._decided[step]

    def _decide(self, step: int, steps: int) -> tuple[bool, str]:
        if steps <= FEW:
            return True, "few steps"
        why = "first fifth" if step < head(steps) else "last step"
        if self._rate is not None:
            compute = self._rate.key(step)
            return compute, why if step in forced(steps) else "by rate"
        assert self._keys is not None
        return step in self._keys, why if step in forced(steps) else "scheduled"

    def observe(self, step: int, time: float, error: float, entries: Sequence[Entry]) -> None:
        """Tell the rule how well computed ``step`` could have been predicted from ``entries``."""
        if self._rate is None:
            return
        last = entries[0]
        self._first = max(self._first, abs(time), abs(last.time)) or 1.0
        length = abs(last.time - time) / max(1, step - last.step)
        weight = length / self._first * abs(time) / self._first
        self._rate.observe(step, error, [e.step for e in entries], weight)

    @property
    def by_rate(self) -> bool:
        """Whether the rule decides in the current run."""
        return self._rate is not None

    def branch(self, key: Hashable) -> Branch:
        """Return the state of a branch; an unknown ``key`` makes a new one."""
        if key not in self.branches and len(self.branches) >= MAX_BRANCHES:
            self.branches.pop(next(iter(self.branches)))
            self.record.note("branches of guidance change from step to step; less is reused")
        return self.branches.setdefault(key, Branch())

    def keep(self, branch: Branch, entry: Entry) -> None:
        """Add an entry to a branch and drop entries that are too old."""
        branch.entries = [entry, *branch.entries][: self.order + 1]
        kept = sum(b.bytes for b in self.branches.values())
        self.record.state_bytes = max(self.record.state_bytes, kept)

    # ------------------------------------------------------------------------------ checkpoints

    def to_dict(self) -> dict[str, Any]:
        """Return what decides the rest of the run, as tensors and plain values."""
        return {
            "decided": {str(k): list(v) for k, v in self._decided.items()},
            "rate": None if self._rate is None else self._rate.to_dict(),
            "first": self._first,
            "branches": [
                {"key": key, "signature": b.signature,
                 "entries": [(e.step, e.time, [v.to_dict() for v in e.values])
                             for e in b.entries]}
                for key, b in self.branches.items()
            ],
        }  # fmt: skip

    def restore(self, data: dict[str, Any]) -> None:
        """Set the state from ``to_dict``, for a run that continues from a saved step."""
        self.start()
        self._decided = {int(k): (bool(v[0]), str(v[1])) for k, v in data["decided"].items()}
        self.record.keys = [step for step, (compute, _) in self._decided.items() if compute]
        if self._rate is not None and data["rate"] is not None:
            self._rate.restore(data["rate"])
            self._first = data["first"]
        for saved in data["branches"]:
            entries = [
                Entry(step, time, tuple(Stored.from_dict(v, self.config.store) for v in values))
                for step, time, values in saved["entries"]
            ]
            self.branches[saved["key"]] = Branch(saved["signature"], entries)
