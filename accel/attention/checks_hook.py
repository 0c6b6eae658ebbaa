"""The hook around a denoiser that computes a call again where a deferred check was bad."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from diffusers.hooks.hooks import ModelHook
from torch import nn

from accel.attention.deferred import ROUNDS, Deferred
from accel.core.diffusers_bridge import register

NAME = "accel_checks"


class ChecksHook(ModelHook):
    """Wraps one denoiser, below hooks that keep its output."""

    keeps_input = False

    def __init__(self, checks: Deferred) -> None:
        super().__init__()
        self.checks = checks
        self.alive = True

    def new_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the call, again while there is a bad check; then every bad site is at full precision.

        Calls inside a graph are passed through: there each check is read at once.
        """
        checks = self.checks
        forward: Any = self.fn_ref.original_forward
        if torch.compiler.is_compiling() or not self.alive or checks.open:
            return forward(*args, **kwargs)
        checks.open = True
        try:
            out = forward(*args, **kwargs)
            for attempt in range(ROUNDS):
                if not checks.bad(blame_all=attempt == ROUNDS - 1):
                    break
                out = forward(*args, **kwargs)
            return out
        finally:
            checks.open = False
            checks.drop()


def apply_checks(denoiser: nn.Module, checks: Deferred, undo: ExitStack) -> None:
    """Have the denoiser read deferred checks at the end of each call.

    To be applied before hooks that keep or replace its output, which then see the good one.
    """
    undo.callback(register(denoiser, ChecksHook(checks), NAME))
