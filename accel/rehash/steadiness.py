"""Whether a run's outputs can be predicted at all, judged by the guided output.

What the sampler gets at a step is y = u + g (c - u), with the outputs c and u of the two branches
of guidance and its scale g; without guidance it is the output. Two things foretell that a run with
predicted steps ends elsewhere:

* y changes by more than ``FAST`` of its norm, times the root of the distance in steps: then the
  steps are too coarse.
* y turns back: its changes in two steps in a row have a cosine below ``TURNING``, and the last one
  is more than ``SMALL`` of its norm. With much guidance a sampler can be unstable at its number of
  steps, as any solver of a stiff differential equation is: the outputs swing to and fro, and the
  swing grows until the end, with any error.

From there on every step is computed, until the changes of ``CALM`` steps in a row have had a cosine
of ``STEADY`` or more, or until they have differed by less than ``BEND`` of y's norm in ``QUIET``
steps in a row: rounding of low precision, which guidance multiplies, never lets small changes agree
in direction. Constants were chosen on 24 jobs, each at guidance 3, 5 and 7 (docs/rehash.md).

Kept are ``SAMPLES`` values for each picture or clip of a batch of the last two guided outputs, in
fp32: at most 64 KiB for each of them with the values of the step that runs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from accel.core.run_log import logger
from accel.rehash.stored import Branch

FAST = 0.4  # relative change of the guided output
TURNING = 0.3  # cosine of two changes in a row
SMALL = 0.3  # relative change
STEADY, CALM = 0.7, 2  # cosine, steps
BEND, QUIET = 0.15, 4  # relative difference of two changes, steps
SAMPLES = 4096
GUIDANCE = 5.0  # where a pipeline with two branches does not say its scale
TOO_FAST = "the guided output changed too fast to be predicted"
TURNED = "the guided output turned back from one step to the next"


class Steadiness:
    """Follows the guided outputs of a run; ``why`` says why its steps are not predicted, or "".

    Steps are those of the schedule. ``more`` counts steps that were computed for it, by reason.
    """

    def __init__(self) -> None:
        self.why = ""
        self.more: Counter[str] = Counter()
        self._calm = self._quiet = 0  # steps in a row
        self._past: list[tuple[int, float, Tensor]] = []  # step, time, values [B, E]; newest first
        self._denoiser = ""
        self._now: dict[Hashable, Tensor] = {}  # values [B, E] of each branch at the current step
        self._at = (-1, 0.0)

    def take(self, branch: Branch, step: int, time: float, output: Tensor) -> None:
        """Take note of a computed output [B, ...] of one branch of guidance."""
        if branch.denoiser != self._denoiser:
            self._denoiser, self._past = branch.denoiser, []
        if (step, time) != self._at:
            self._at, self._now = (step, time), {}
        flat = output.detach().flatten(1) if output.dim() > 1 else output.detach().reshape(1, -1)
        every = -(-flat.shape[1] // SAMPLES)
        self._now[branch.name] = flat[:, ::every].float().clone()

    def judge(self, first: int, scale: float | None, doubled: bool) -> None:
        """Judge the step whose outputs were taken last; call this before the next one starts.

        Args:
            first: First step of the run. Nothing is concluded from the changes before its third.
            scale: Scale of guidance; None where the pipeline does not say.
            doubled: A single call is a batch of both branches, the unconditional one first.
        """
        if not self._now:
            return
        (step, time), values = self._at, _guided(self._now, scale, doubled)
        self._now = {}
        self._past = [
            (s, t, v.to(values.device)) for s, t, v in self._past if v.shape == values.shape
        ]
        if self._past and self._past[0][1] == time:
            self._past = self._past[1:]  # Heun: a second output at one time corrects the first
        if self._past:
            self._compare(step, values, step - first >= 2)
        self._past = [(step, time, values), *self._past[:1]]

    def _compare(self, step: int, values: Tensor, known: bool) -> None:
        gap, size = step - self._past[0][0], values.norm(dim=1).clamp_min(1e-12)
        change = values - self._past[0][2]
        moved = _largest(change.norm(dim=1) / size)
        cosine, bend = 1.0, math.inf
        in_a_row = len(self._past) > 1 and gap == 1 and self._past[0][0] - self._past[1][0] == 1
        if in_a_row:
            before = self._past[0][2] - self._past[1][2]
            cosine = -_largest(-torch.cosine_similarity(change, before, dim=1))
            bend = _largest((change - before).norm(dim=1) / size)
        self._calm = self._calm + 1 if in_a_row and cosine >= STEADY else 0
        self._quiet = self._quiet + 1 if bend < BEND else 0
        if known and moved > FAST * max(gap, 1) ** 0.5:
            self.why, self._calm, self._quiet = TOO_FAST, 0, 0
        elif cosine < TURNING and moved > SMALL:
            self.why, self._calm, self._quiet = TURNED, 0, 0
        elif self._calm >= CALM or self._quiet >= QUIET:
            self.why = ""

    def count(self) -> str:
        """Count one more computed step, and return why."""
        self.more[self.why] += 1
        return self.why

    def log(self) -> None:
        """Log how many more steps were computed, at the end of a run."""
        for why, steps in self.more.items():
            logger.warning("step rehash computed %d more steps: %s", steps, why)

    def to_dict(self) -> dict[str, Any]:
        """Return tensors and plain values for a checkpoint."""
        return {
            "why": self.why,
            "more": dict(self.more),
            "calm": (self._calm, self._quiet),
            "past": [(step, time, values.cpu()) for step, time, values in self._past],
            "denoiser": self._denoiser,
            "now": [(branch, values.cpu()) for branch, values in self._now.items()],
            "at": self._at,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Steadiness:
        """Return the state of ``to_dict``."""
        self = cls()
        self.why, self._denoiser = data["why"], data["denoiser"]
        self._calm, self._quiet = data["calm"]
        self.more = Counter(data["more"])
        self._past, self._now, self._at = list(data["past"]), dict(data["now"]), data["at"]
        return self


def _guided(branches: dict[Hashable, Tensor], scale: float | None, doubled: bool) -> Tensor:
    """Return the guided output [B, E] from the branches' [B, E], or from a batch of both."""
    values = list(branches.values())
    if len(values) > 1:
        names = [str(name) for name in branches]
        without = next((i for i, name in enumerate(names) if "uncond" in name), 1)
        u, c = values[without], values[0 if without else 1]
    elif doubled and len(values[0]) % 2 == 0:
        u, c = values[0].chunk(2)
    else:
        return values[0]
    return u + (GUIDANCE if scale is None else scale) * (c - u) if u.shape == c.shape else c


def _largest(values: Tensor) -> float:
    """Return the largest of ``values`` [B], NaN counted as 0."""
    return float(values.nan_to_num(0.0).max())
