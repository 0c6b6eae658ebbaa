"""Hold a plan's origin against the model and the runs that it is used on.

What no longer holds is one line each, once, in the report and in the log: a warning where the
plan's promise is affected, else information. Models are compared at patch time and, with their
weights and sampler, again at the start of each run.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from accel.core.key_steps import FEW, INSTEAD
from accel.core.origin import here, moved
from accel.core.plan_origin import PlanOrigin
from accel.core.rehash_config import RehashConfig
from accel.core.run_log import logger
from accel.core.run_state import RunState
from accel.core.structure import denoisers

SHORT = f"8-bit layers in a part of the run; in {FEW} steps or fewer {INSTEAD}"


class OriginCheck:
    """Follows the runs of one patch.

    ``inputs`` are sizes of the last run's input without batch.

    Args:
        pipe: What is patched.
        origin: The plan's origin, if it has one.
        rehash: The plan's step rehash, which compares what its schedule was measured with itself.
        state: Where the run is.
        long: The plan is a preset for more than ``FEW`` steps, which is noted in shorter runs.
    """

    def __init__(
        self,
        pipe: Any,
        origin: PlanOrigin | None,
        rehash: RehashConfig | None,
        state: RunState,
        *,
        long: bool,
    ) -> None:
        self.inputs: tuple[int, ...] = ()
        self.notes: dict[str, None] = {}
        self._origin, self._state, self._long, self._run = origin, state, long, 0
        known = None if origin is None else origin.measured
        self._measured = None if rehash is not None and rehash.origin == known else known
        modules = denoisers(pipe)
        self._modules = {name: weakref.ref(module) for name, module in modules.items()}
        if origin is not None:
            now = here(pipe, origin.made_by)
            self.notes[f"the plan was {origin}"] = None
            self.say(origin.other_model(now))
            self.say(origin.other_machine(now), logger.info)

    def say(self, lines: Iterable[str], log: Any = logger.warning) -> None:
        """Put each line that was not said before into report and log."""
        for line in lines:
            if line not in self.notes:
                log("plan: %s", line)
            self.notes[line] = None

    def called(self, run: int, args: Any, kwargs: Any) -> None:
        """Compare a run at the first denoiser call of it."""
        if run == self._run:
            return
        self._run = run
        sample = kwargs.get("hidden_states", kwargs.get("sample", args[0] if args else None))
        self.inputs = tuple(sample.shape[1:]) if isinstance(sample, Tensor) else ()
        if self._long and 0 < (self._state.steps or 0) <= FEW:
            self.notes[SHORT] = None
        if self._origin is not None:
            why = moved(self._measured, self._modules, self._state.scheduler)
            self.say([f"it was {why}"] if why else [])
            self.say(self._origin.other_run(self._state.steps, self.inputs))
