"""Puts a hook into diffusers' registry of a module, and takes it out without a trace."""

from __future__ import annotations

import weakref
from typing import Any

from torch import nn

from accel.seam import Undo

SLOTS = ("forward", "_old_forward")  # where the registry's outermost forward may stand


def register(module: nn.Module, hook: Any, name: str) -> Undo:
    """Register ``hook`` (a diffusers ``ModelHook``) on ``module``; returns the way back.

    It stands below accelerate's hook where there is one, since that is taken off and put back
    around every pipeline call. What is undone holds weak references only, so that a dropped
    pipeline goes. If somebody wraps the module's forward later, the hook stays and only passes
    through: it has to look at its ``alive``.
    """
    from diffusers.hooks.hooks import HookRegistry

    fresh = "_diffusers_hook" not in vars(module)
    own, outer = "forward" in vars(module), vars(module).get("forward")
    below = "_old_forward" in vars(module)
    if below:
        module.forward = vars(module)["_old_forward"]
    HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, name)
    hook.installed = module.forward
    if below:
        module._old_forward, module.forward = module.forward, outer  # type: ignore[assignment]
    known = weakref.ref(module), weakref.ref(hook)

    def restore() -> None:
        place: Any = known[0]()
        mine = known[1]()
        if mine is not None:
            mine.alive = False
        if place is not None and mine is not None:
            _remove(place, mine, name, own)
            if fresh and not place._diffusers_hook.hooks:
                del place._diffusers_hook

    return restore


def _remove(module: Any, hook: Any, name: str, own: bool) -> None:
    """Take a hook out of the registry and put back what its slot held."""
    registry = getattr(module, "_diffusers_hook", None)
    if registry is None or registry.hooks.get(name) is not hook:
        return
    if registry._hook_order[-1] != name:
        _take_from_below(registry, name)
        return
    slot = next((s for s in SLOTS if vars(module).get(s) is hook.installed), None)
    if slot is None:
        return  # wrapped by somebody else: what they hold passes through now
    outer = vars(module).get("forward")
    registry.remove_hook(name, recurse=False)
    if slot == "_old_forward":
        module._old_forward, module.forward = module.forward, outer
    elif not own:
        del module.forward


def _take_from_below(registry: Any, name: str) -> None:
    """Take out a hook that others stand on. diffusers 0.42's ``remove_hook`` switches the one above
    it off if that has a forward of its own; so that one is put back.
    """
    index = registry._hook_order.index(name)
    mine, above = registry._fn_refs[index], registry._fn_refs[index + 1]
    below = mine.forward if mine.original_forward is None else mine.original_forward
    forward, wraps = above.forward, above.original_forward is not None
    registry.remove_hook(name, recurse=False)
    if wraps:
        above.forward, above.original_forward = forward, below


def refresh_registries(denoiser: nn.Module) -> None:
    """Let diffusers find hooks that were added to or taken from parts of ``denoiser``."""
    from diffusers.hooks.hooks import HookRegistry

    HookRegistry.check_if_exists_or_initialize(denoiser).invalidate_child_registries_cache()
