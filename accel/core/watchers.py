"""Somebody else's code on a module: who may look at its tensors, or computes in its place."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from accel.core.diffusers_bridge import innermost, is_ours, keeping_hook
from accel.core.stand_in import behind

# Whose forward hooks move, gather or norm weights, and read no activations.
_HARMLESS = ("accel.", "accelerate.", "diffusers.hooks.", "torch.")
_WRAPPERS = ("diffusers.hooks.hooks", "accelerate.hooks")  # modules whose wrappers are known


def foreign_forward(module: nn.Module) -> bool:
    """Return whether somebody put a ``forward`` of their own on this instance.

    Wrappers of diffusers' hooks, of accelerate's and of accel do not count: what they wrap does.
    """
    outer = behind(vars(module).get("forward"))
    if outer is None:
        return False
    if isinstance(outer, partial) and outer.func.__module__ in _WRAPPERS:
        outer = behind(getattr(*innermost(module)))
    if is_ours(outer):
        return False
    return getattr(outer, "__func__", None) is not type(module).forward


def watcher(module: nn.Module) -> str:
    """Return who may look at the tensors a module is given or returns, "" if nobody may.

    Somebody's own forward, forward hooks, and hooks of diffusers that do more than move weights.
    """
    if foreign_forward(module):
        return "a forward of somebody's own"
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for hook in hooks.values():
            if not is_ours(hook):
                return "a hook"
    name = keeping_hook(module)
    return f"the hook {name!r}" if name else ""


def hooked_inside(module: nn.Module) -> str:
    """Return the name of a part of ``module`` that has a forward hook of somebody else, or "".

    Such a hook may read activations, as self-attention guidance does, or change them.
    """
    for name, part in module.named_modules():
        if name and any(
            not _origin(hook).startswith(_HARMLESS)
            for hooks in (part._forward_pre_hooks, part._forward_hooks)
            for hook in hooks.values()
        ):
            return name
    return ""


def _origin(hook: Any) -> str:
    """Return the module in which a hook's function was defined."""
    while isinstance(hook, partial):
        hook = hook.func
    return getattr(hook, "__module__", None) or ""
