"""Apply step rehash to the denoisers of a pipeline."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import nn

from accel.config import AttentionConfig, RehashConfig
from accel.core.run_state import RunState
from accel.rehash.state import RehashState

NAME = "accel_rehash"
# With these precisions extrapolating is worse than repeating: 27.6 against 28.6 dB in INT4. With
# INT8 it is better: 39.9 against 35.3 dB (embedded model, 25 steps, 13 computed, six jobs;
# bench_rehash.py, rows "line" and "repeat").
NOISY = ("int6", "int4")


def order_of(config: RehashConfig, attention: AttentionConfig | None) -> tuple[int, str]:
    """Return the order of the prediction, and the reason if it is lower than usual.

    The order is one less than the number of outputs that are kept per branch.
    """
    if config.multistep is not None:
        keys = set(config.keys)
        return max(len(r) - (j in keys) for j, r in enumerate(config.multistep.weights)) - 1, ""
    if config.order is not None:
        return config.order, ""
    if config.level == "features":
        return 0, ""
    used = (
        () if attention is None else (attention.precision, *(r.precision for r in attention.rules))
    )
    if low := [precision for precision in used if precision in NOISY]:
        return (
            0,
            f"repeats outputs: extrapolation would amplify {low[0].upper()} attention's noise",
        )
    return 1, ""


def new_state(
    config: RehashConfig | None, attention: AttentionConfig | None, run: RunState
) -> RehashState | None:
    """Return the run state of one pipeline's rehash, None without one."""
    if config is None:
        return None
    order, why = order_of(config, attention)
    state = RehashState(config, order, run)
    if why:
        state.record.note(why)
    return state


def apply_rehash(denoiser: nn.Module, name: str, state: RehashState, undo: ExitStack) -> None:
    """Put a hook on one denoiser; the functions that undo it are put on ``undo``.

    Raises ValueError for a tail that the denoiser does not have.
    """
    from accel.core.diffusers_bridge import register
    from accel.rehash.features import Unsupported, find
    from accel.rehash.hook import RehashHook

    features = None
    if state.config.level == "features":
        try:
            features = find(denoiser, state.config.tail, undo)
        except Unsupported as error:
            state.record.note(f"reuses outputs instead of features: {error}")
    state.denoisers[name] = weakref.ref(denoiser)
    hook = RehashHook(state, name, features)
    undo.callback(register(denoiser, hook, NAME))
    if getattr(denoiser, "_compiled_call_impl", None) is not None:
        undo.callback(_around_compiled(denoiser, hook))


def _around_compiled(denoiser: Any, hook: Any) -> Callable[[], None]:
    """Wrap the compiled graph of a denoiser from outside, without a graph break."""
    compiled = denoiser._compiled_call_impl
    module = weakref.ref(denoiser)

    def call(*args: Any, **kwargs: Any) -> Any:
        return hook.around(module(), compiled, args, kwargs)

    denoiser._compiled_call_impl = call

    def restore() -> None:
        place = module()
        if place is not None and place._compiled_call_impl is call:
            place._compiled_call_impl = compiled

    return restore
