"""State of step rehash: what each branch keeps, and the decisions of the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any, assert_never

from accel.config import RehashConfig
from accel.core.held_steps import held
from accel.core.key_steps import INSTEAD, MeasuredSchedule, Multistep, Schedule, Wish
from accel.core.noise_levels import places
from accel.core.origin import moved
from accel.core.run_log import logger
from accel.core.run_state import RunState
from accel.rehash.prediction import Choice, candidates
from accel.rehash.rehash_record import RehashRecord
from accel.rehash.schedule import (
    FEW,
    OFF,
    Rate,
    budget,
    forced,
    head,
    holds_for,
    remarks,
    stretch,
    weights,
)
from accel.rehash.steadiness import Steadiness
from accel.rehash.stored import Branch, Entry

MAX_BRANCHES = 8  # a pipeline whose branches cannot be recognized would add new ones forever
MORE = "more than asked"  # why a step was computed beyond the speed-up
LATE = 0.8  # share of a run after which no further denoiser is expected


class RehashState:
    """Run state of a pipeline's rehash, shared by its denoisers and their branches.

    So all of them take the same decision at a step. It is cleared when a run starts and ends. Steps
    are those of the schedule; a run can go through a part of it.
    """

    def __init__(self, config: RehashConfig, order: int, run: RunState) -> None:
        self.config, self.order, self.run = config, order, run
        self.chosen = order == 1 and config.chosen  # during the run, from how well it went so far
        self.depth = config.entries if self.chosen else order + 1  # entries of a branch
        self.record = RehashRecord()
        self.denoisers: dict[str, Callable[[], Any]] = {}  # weak, all that the pipeline has
        self.branches: dict[Hashable, Branch] = {}
        self._number = -1
        self._forget()

    def _forget(self) -> None:
        """Forget the decisions of a run."""
        self._span = range(0)
        self._decided: dict[int, tuple[bool, str]] = {}
        self._keys: frozenset[int] | None = None
        self._rate: Rate | None = None
        self.steadiness = Steadiness()
        self._rows: tuple[tuple[float, ...], ...] = ()  # fitted weights, if they hold for this run
        self._first = 0.0  # largest timestep of the run
        self._places: list[float] = []  # of each step of the schedule, from 1 to 0
        self._choices: dict[str, Choice] = {}  # of each denoiser, where the prediction is chosen
        self._computed: Counter[str] = Counter()  # computed steps of each denoiser
        self._last_key = -1
        self._step: int | None = None
        self._turns: Counter[Hashable] = Counter()  # calls of each branch in the current step
        self.branches.clear()

    @property
    def off(self) -> bool:
        """Whether nothing is reused or kept in the current run, since it has few steps."""
        return 0 < len(self._span) <= FEW

    def clear(self) -> None:
        """Drop everything that is kept."""
        self.branches.clear()
        self.steadiness = Steadiness()

    def start(self) -> None:
        """Start a new run if the pipeline has; call this before each decision."""
        number = self.run.refresh()
        if number == self._number or self.run.begin is None:
            return
        self._number = number
        self._forget()
        self._span = self.run.span
        self.record.keys, self.record.steps = [], len(self._span)
        self.record.begin = self._span.start
        if self._span:
            self._plan(len(self._span))

    def _plan(self, steps: int) -> None:
        """Choose how the steps of a run are selected."""
        if self.off:
            self.record.note(f"{OFF}; {INSTEAD}", logger.info)
            return
        if why := moved(self.config.origin, self.denoisers, self.run.scheduler):
            self.record.note(f"its schedule was {why}", logger.warning)
        self._places = places(self.run.scheduler)
        match self.config.choice:
            case MeasuredSchedule(keys, _, Multistep() as fitted) if self._fits(fitted):
                self._keys, self._rows = frozenset(keys), fitted.weights
            case Schedule(keys, measured):
                begin, whole = self._span.start, self.run.steps or steps
                inside = {key - begin for key in stretch(keys, measured, whole)}
                self._keys = frozenset(
                    begin + key for key in inside & set(range(steps)) | forced(steps)
                )
                if whole != measured:
                    self.record.note(f"schedule of {measured} steps stretched to {whole}")
            case Wish(speedup):
                for remark in remarks(steps, speedup):
                    self.record.note(remark, logger.warning)
                self._rate = Rate(steps, budget(steps, speedup), self.order)
            case never:
                assert_never(never)

    def _fits(self, fitted: Multistep) -> bool:
        """Return whether fitted weights hold for this run's sampler and timesteps."""
        if why := holds_for(fitted, *self.run.schedule, len(self._span)):
            self.record.note(f"measured weights hold for {why}: reuse extrapolates linearly")
        return not why

    def weights(
        self, step: int | None, time: float, branch: Branch, computed: bool
    ) -> Sequence[float] | None:
        """Return the weights behind the sampler's input at ``step``; None if too little was kept.

        They are the weight of the new output if ``computed``, then those of the branch's entries,
        newest first.
        """
        entries = branch.entries
        if self._rows and step is not None and self._keys is not None:
            row = self._rows[step]
            before = sorted((k for k in self._keys if k < step), reverse=True)
            needed = len(row) - computed
            if [e.step for e in entries[:needed]] == before[:needed]:
                return row
        if computed:
            return (1.0,)
        if len(entries) < self.needed:
            return None
        known, at = branch.places(self._places, step, time, self._first)
        choice = self.prediction(branch.denoiser)
        return choice.weights(known, at) if self.chosen else weights(known[: self.needed], at)

    def prediction(self, denoiser: str) -> Choice:
        """Return the choice of the prediction of a denoiser's outputs."""
        return self._choices.setdefault(denoiser, Choice())

    def tries(self, branch: Branch, step: int, time: float) -> dict[str, list[float]]:
        """Return the weights of all candidates for the output of a step, by name."""
        return candidates(*branch.places(self._places, step, time, self._first))

    @property
    def fitted(self) -> bool:
        """Whether measured weights are used in the current run."""
        return bool(self._rows)

    def decide(self, step: int, denoiser: str) -> tuple[bool, str]:
        """Return whether ``step`` is computed, and why.

        Every branch of every denoiser asks; the first one that does sets the decision.
        """
        if step != self._step:
            self._step = step
            self._turns.clear()
        if step not in self._decided:
            self._decided[step] = decision = self._decide(step, denoiser)
            (self.record.computed if decision[0] else self.record.reused)[decision[1]] += 1
            if decision[0]:
                self._computed[denoiser] += 1
                self._last_key = step
                self.record.keys.append(step)
            if step + 1 == self._span.stop:
                self.steadiness.log()
        return self._decided[step]

    def _decide(self, step: int, denoiser: str) -> tuple[bool, str]:
        at = step - self._span.start
        if self.off:
            return True, "few steps"
        if step not in self._span:
            return True, "after the last step"
        steps = len(self._span)
        why = "first fifth" if at < head(steps) else "last step"
        led = at < held(steps)
        must = led or self._computed[denoiser] < self.needed
        reason = "led from outside" if led else "first steps of a denoiser"
        if self._rate is not None:
            compute = self._rate.key(at, must, self._reserved(at, denoiser))
            self.steadiness.judge(self._span.start, *self.run.guidance)
            if not compute and self.steadiness.why:
                self.record.more[self.steadiness.count()] += 1
                return True, MORE
            why = "first steps" if at < self._rate.head < head(steps) else why
            always = at < self._rate.head or at == steps - 1
            return compute, why if always else reason if must else "by rate"
        if at in forced(steps):
            return True, why
        assert self._keys is not None
        return (True, reason) if must else (step in self._keys, "scheduled")

    @property
    def needed(self) -> int:
        """How many computed steps a prediction is made of."""
        return min(self.order, 1) + 1

    def _reserved(self, at: int, denoiser: str) -> int:
        """Return how many steps are kept for denoisers not called yet, as Wan 2.2's second."""
        if at >= LATE * len(self._span):
            return 0
        unseen = set(self.denoisers) - {denoiser} - set(self._computed)
        return self.needed * len(unseen)

    def observe(self, step: int, time: float, error: float, entries: Sequence[Entry]) -> None:
        """Tell the rule how well computed ``step`` could have been predicted from ``entries``."""
        if self._rate is None or self._decided[step][1] == MORE:
            return
        last, begin = entries[0], self._span.start
        first = max(self._first, abs(time), abs(last.time)) or 1.0
        length = abs(last.time - time) / max(1, step - last.step)
        weight = length / first * abs(time) / first
        self._rate.observe(step - begin, error, [e.step - begin for e in entries], weight)

    def outdated(self, entries: Sequence[Entry]) -> bool:
        """Return whether a branch was not called at the last computed step.

        Guidance that is cut off or changed does that.
        """
        return bool(entries) and entries[0].step < self._last_key

    @property
    def by_rate(self) -> bool:
        """Whether the rule decides in the current run."""
        return self._rate is not None

    def branch(self, denoiser: str, key: tuple[Hashable, ...]) -> Branch:
        """Return the state of a branch; an unknown ``key`` makes a new one.

        A second call of one branch in a step is a branch of its own: skip-layer guidance and its
        kin call the denoiser again with the same prompt, and leave something out.
        """
        name: tuple[Hashable, ...] = (denoiser, *key)
        turn = self._turns[name]
        self._turns[name] += 1
        if turn:
            name = (*name, turn)
        if name not in self.branches and len(self.branches) >= MAX_BRANCHES:
            self.branches.pop(next(iter(self.branches)))
            self.record.note("branches of guidance change from step to step; less is reused")
        return self.branches.setdefault(name, Branch(denoiser, name))

    def leads(self, branch: Branch) -> bool:
        """Return whether the rule listens to a branch, the first one of its denoiser."""
        same = (b for b in self.branches.values() if b.denoiser == branch.denoiser)
        return next(same) is branch

    def keep(self, branch: Branch, entry: Entry) -> None:
        """Add an entry to a branch and drop entries that are too old, after the last step all."""
        branch.entries = [entry, *branch.entries][: self.depth]
        self._first = max(self._first, abs(entry.time))
        kept = sum(b.bytes for b in self.branches.values())
        self.record.state_bytes = max(self.record.state_bytes, kept)
        if entry.step + 1 == self._span.stop:
            branch.entries = []

    def to_dict(self) -> dict[str, Any]:
        """Return what decides the rest of the run, as tensors and plain values."""
        return {
            "decided": {str(k): list(v) for k, v in self._decided.items()},
            "rate": None if self._rate is None else self._rate.to_dict(),
            "steadiness": self.steadiness.to_dict(),
            "first": self._first,
            "errors": {name: choice.errors for name, choice in self._choices.items()},
            "begin": self._span.start,
            "computed": dict(self._computed),
            "last_key": self._last_key,
            "branches": [branch.to_dict() for branch in self.branches.values()],
        }

    def restore(self, data: dict[str, Any]) -> None:
        """Set the state from ``to_dict``, for a run that continues from a saved step."""
        self.run.refresh()
        self.run.begin = data["begin"]
        self.start()
        self._computed, self._last_key = Counter(data["computed"]), data["last_key"]
        self._decided = {int(k): (bool(v[0]), str(v[1])) for k, v in data["decided"].items()}
        self.record.keys = [step for step, (compute, _) in self._decided.items() if compute]
        if self._rate is not None and data["rate"] is not None:
            self._rate.restore(data["rate"])
        self.steadiness = Steadiness.from_dict(data["steadiness"])
        self._first = data["first"]
        self._choices = {name: Choice(errors) for name, errors in data.get("errors", {}).items()}
        for saved in data["branches"]:
            self.branches[saved["key"]] = Branch.from_dict(saved, self.config.store)
