"""Log one line for each finished run of a patched pipeline, and warn where it gained nothing.

A site that went back to full precision is a warning too.

The logger is named "accel". As in any library no handler and no level is set here:
``logging.basicConfig(level=logging.INFO)`` in a program shows the lines. A patch is not told that a
pipeline has returned, so a run counts as finished when the last scheduled step has had as many
denoiser calls as any step before it, when the next run begins, or when the patch is taken back.
Between those moments nothing is counted but calls and steps, and nothing is formatted.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

logger = logging.getLogger("accel")

MOST_NAMED = 3  # sites or reasons that one line names


@dataclass(frozen=True)
class Totals:
    """Counts since patching.

    ``calls`` and ``seconds`` of the denoisers, ``reused`` steps, ``quantized`` attention calls,
    ``sliced`` block calls, ``layers``: calls of 8-bit linear layers; ``reasons``: calls or steps
    that went unaccelerated although the plan asked for it, by reason; ``kept``: attention calls at
    full precision for whatever reason, and ``full_layers``: calls of linear layers.
    """

    calls: int = 0
    seconds: float = 0.0
    reused: int = 0
    quantized: int = 0
    kept: int = 0
    sliced: int = 0
    layers: int = 0
    full_layers: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


class RunLog:
    """Follows the runs of one patch.

    Args:
        plan: Name of the plan.
        totals: Returns the counts since patching; asked at the start and at the end of a run.
        demoted: Returns name and reason of each site that was demoted in the run of that number.
    """

    def __init__(
        self,
        plan: str,
        totals: Callable[[], Totals],
        demoted: Callable[[int], Iterable[tuple[str, str]]],
    ) -> None:
        self._plan, self._totals, self._demoted = plan, totals, demoted
        self._run: int | None = None
        self._open = False
        self._before = Totals()
        self._step: int | None = None
        self._steps = self._at_step = self._most = 0

    def call(self, run: int, step: int | None) -> None:
        """Note that a denoiser starts a call in run ``run`` at 0-based ``step`` (None: unknown)."""
        if run != self._run:
            self.finish()
            self._run, self._open, self._before = run, True, self._totals()
            self._step, self._steps, self._at_step, self._most = None, 0, 0, 0
        if step != self._step:
            self._most = max(self._most, self._at_step)
            self._step, self._at_step = step, 0
            self._steps += step is not None
        self._at_step += 1

    def called(self, steps: int | None) -> None:
        """Note that the call is done; ``steps`` is the schedule's length, None without one."""
        last = self._step is not None and self._step + 1 == steps
        if self._open and last and 0 < self._most <= self._at_step:
            self.finish()

    def finish(self) -> None:
        """Write the lines of the current run, unless that is done or no run has begun."""
        if not self._open or self._run is None:
            return
        self._open = False
        now, then, run = self._totals(), self._before, self._run
        reused, quantized = now.reused - then.reused, now.quantized - then.quantized
        if self._steps:
            what = f"{self._steps - reused} steps computed, {reused} reused"
        else:
            what = f"{now.calls - then.calls} denoiser calls"
        layers, full = now.layers - then.layers, now.full_layers - then.full_layers
        if layers or full:
            what = f"{what}; {layers} of {layers + full} linear calls in 8 bits"
        logger.info(
            "run %d with plan %r: %s; %d of %d attention calls quantized; %.2f s in the denoiser",
            run, self._plan, what, quantized, quantized + now.kept - then.kept,
            now.seconds - then.seconds,
        )  # fmt: skip
        reasons = now.reasons - then.reasons
        if reasons and not (reused or quantized or layers or now.sliced - then.sliced):
            why = [f"{n} × {reason}" for reason, n in reasons.most_common()]
            logger.warning(
                "run %d with plan %r: nothing in the denoiser was accelerated: %s",
                run, self._plan, _some(why),
            )  # fmt: skip
        demoted = [f"{name} ({why})" for name, why in self._demoted(run)]
        if demoted:
            logger.warning(
                "run %d with plan %r: sites that went back to full precision: %s",
                run, self._plan, _some(demoted),
            )  # fmt: skip


def _some(texts: list[str]) -> str:
    """Return the first few, and how many more there are."""
    more = len(texts) - MOST_NAMED
    return "; ".join(texts[:MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")
