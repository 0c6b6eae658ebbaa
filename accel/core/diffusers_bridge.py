"""Every private name of diffusers and accelerate that accel depends on, but those for loading.

``tests/accel/test_diffusers_bridge.py`` names each of them, so that a release which moves one fails
there first.
"""

from __future__ import annotations

import copy
import inspect
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from accel.core.diffusers_backends import use_native_backend as use_native_backend

SLOTS = ("forward", "_old_forward")  # where the registry's outermost forward may stand
# What hooks of diffusers and accelerate leave in a module's attributes.
HOOK_ATTRIBUTES = ("_diffusers_hook", "_hf_hook", "forward", "_old_forward")
# diffusers' hooks that only move or cast weights; all others may look at a block's arguments
# afterwards, such as caches that need the residual.
WEIGHT_HOOKS = ("group_offloading", "layerwise_casting", "layer_execution_tracker",
                "lazy_prefetch_group_offloading", "peft_autocast_disable")  # fmt: skip
# Norms of [B, tokens, channels] that treat each token on its own, without a condition or with one
# of [B, C].
TOKEN_NORMS = ("LayerNorm", "FP32LayerNorm", "RMSNorm", "AdaLayerNormContinuous", "AdaLayerNorm")
CHANNELS_LAST_NORM = "RMSNorm"  # of VAE decoders
GROUP_NORM_PROCESSORS = ("AttnProcessor", "AttnProcessor2_0")  # call ``group_norm`` unchanged
CONFIG_ATTRIBUTE = "_internal_dict"  # where a scheduler keeps its configuration


def register(module: nn.Module, hook: Any, name: str) -> Callable[[], None]:
    """Register ``hook`` (a diffusers ``ModelHook``) on ``module``; return a function to remove it.

    The hook stands below accelerate's hook if there is one, because diffusers removes and restores
    that hook around every pipeline call. The returned function holds weak references only, so it
    keeps no dropped pipeline alive. If other code wraps the module's forward later, the hook stays
    in place and must pass calls through: it checks its own ``alive`` attribute.
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
        live_hook = known[1]()
        if live_hook is not None:
            live_hook.alive = False
        if place is not None and live_hook is not None:
            _remove(place, live_hook, name, own)
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
        return  # other code wrapped the forward: the hook it holds now passes calls through
    outer = vars(module).get("forward")
    registry.remove_hook(name, recurse=False)
    if slot == "_old_forward":
        module._old_forward, module.forward = module.forward, outer
    elif not own:
        del module.forward


def _take_from_below(registry: Any, name: str) -> None:
    """Take out a hook that other hooks stand on.

    diffusers 0.42's ``remove_hook`` disables the hook above it if that hook has a forward of its
    own, so that one is restored.
    """
    index = registry._hook_order.index(name)
    taken, above = registry._fn_refs[index], registry._fn_refs[index + 1]
    below = taken.forward if taken.original_forward is None else taken.original_forward
    forward, wraps = above.forward, above.original_forward is not None
    registry.remove_hook(name, recurse=False)
    if wraps:
        above.forward, above.original_forward = forward, below


def is_ours(hook: Any) -> bool:
    """Return whether a function or a ``ModelHook`` is accel's, by where its code stands."""
    # functools.wraps gives somebody's wrapper of a stand-in the __module__ of accel.
    scope = getattr(hook, "__globals__", None)
    return str(scope["__name__"] if scope else type(hook).__module__).startswith("accel.")


def has_our_hooks(state: dict[str, Any]) -> bool:
    """Return whether the registry among a module's attributes has a hook of accel."""
    return any(map(is_ours, getattr(state.get("_diffusers_hook"), "hooks", {}).values()))


def without_our_hooks(state: dict[str, Any]) -> None:
    """Take accel's hooks out of a registry in a module's attributes, which are a copy.

    Hooks of ours that others stand on stay in the chain of functions, which only they know.
    """
    registry = state.get("_diffusers_hook")
    if registry is None:
        return
    new = state["_diffusers_hook"] = copy.copy(registry)
    new._hook_order, new._fn_refs = list(registry._hook_order), list(registry._fn_refs)
    if hasattr(new, "_child_registries_cache"):
        new._child_registries_cache = None  # it would bring the hooks of its children along
    while new._hook_order and is_ours(hook := registry.hooks[new._hook_order[-1]]):
        new._hook_order.pop()
        ref = new._fn_refs.pop()
        for slot in SLOTS:
            if state.get(slot) is hook.installed:
                state[slot] = ref.forward if ref.original_forward is None else ref.original_forward
    new.hooks = {name: registry.hooks[name] for name in new._hook_order}
    if registry.hooks and not new.hooks:
        del state["_diffusers_hook"]


def refresh_registries(denoiser: nn.Module) -> None:
    """Let diffusers find hooks that were added to or taken from parts of ``denoiser``."""
    from diffusers.hooks.hooks import HookRegistry

    HookRegistry.check_if_exists_or_initialize(denoiser).invalidate_child_registries_cache()


def innermost(block: nn.Module) -> tuple[Any, str]:
    """Return the object and the attribute name that hold the forward below all hooks."""
    registry = getattr(block, "_diffusers_hook", None)
    if registry is not None and registry._fn_refs:
        first = registry._fn_refs[0]
        return first, "forward" if first.original_forward is None else "original_forward"
    if "_old_forward" in vars(block):  # accelerate
        return block, "_old_forward"
    return block, "forward"


def offloaded(module: nn.Module) -> bool:
    """Return whether the module's own parameters may be on another device between its calls."""
    hooked = hasattr(module, "_diffusers_hook") or hasattr(module, "_hf_hook")
    return hooked and any(True for _ in module.parameters(recurse=False))


def hooks_on(module: nn.Module) -> dict[str, Any]:
    """Return diffusers' hooks on a module, by name, innermost first."""
    registry = vars(module).get("_diffusers_hook")  # faster than getattr where there is none
    return {} if registry is None else dict(registry.hooks)


def moves_weights(module: nn.Module) -> bool:
    """Return whether a hook moves the weights of a module, or of a part of it, for each call."""
    hook = vars(module).get("_hf_hook")
    parts = getattr(hook, "hooks", (hook,))
    return "group_offloading" in hooks_on(module) or any(
        getattr(h, "offload", False) for h in parts
    )


def computes_in(module: nn.Module) -> torch.dtype | None:
    """Return the dtype that layerwise casting gives a module's weights for a call, or None."""
    return getattr(hooks_on(module).get("layerwise_casting"), "compute_dtype", None)


def keeping_hook(module: nn.Module) -> str:
    """Return the name of the first hook of diffusers that may keep a call's input, or ""."""
    return next(
        (
            name
            for name, hook in hooks_on(module).items()
            if name not in WEIGHT_HOOKS and getattr(hook, "keeps_input", True)
        ),
        "",
    )


def stays_in_fp32(module: nn.Module, dtype: torch.dtype) -> set[str]:
    """Return parts of parameters' names that ``from_pretrained`` keeps in fp32 beside ``dtype``.

    transformers' models keep some in fp32 only instead of fp16, others also instead of bf16.
    """
    if dtype not in (torch.float16, torch.bfloat16):
        return set()
    soft = getattr(module, "_keep_in_fp32_modules", None) or ()
    strict = getattr(module, "_keep_in_fp32_modules_strict", None) or ()
    if hasattr(type(module), "config_class") and dtype is not torch.float16:
        soft = ()
    return {*soft, *strict}


def offloads(pipe: Any) -> bool:
    """Return whether a pipeline loads its components one at a time."""
    return bool(getattr(pipe, "_all_hooks", None))


def execution_device(pipe: Any) -> torch.device | None:
    """Return the device a pipeline runs on, or None if it does not say."""
    return getattr(pipe, "_execution_device", None)


def running_on(cls: type, device: torch.device) -> Any:
    """Return a subclass of a pipeline's class that runs on ``device``, wherever its parts are."""
    here = property(lambda self: device)
    return type(cls.__name__, (cls,), {"_execution_device": here, "device": here})


class BlockKind:
    """What diffusers' registry knows about the class of a transformer block.

    Raises:
        ValueError: A class that is not in the registry, or whose call does not take what stands
            there (Z-Image's blocks in diffusers 0.42).
    """

    def __init__(self, cls: Any) -> None:
        from diffusers.hooks._helpers import TransformerBlockRegistry

        self._known = TransformerBlockRegistry.get(cls)
        self.hidden_index: int | None = self._known.return_hidden_states_index
        self.text_index: int | None = self._known.return_encoder_hidden_states_index
        self._names = [self._known.hidden_states_argument_name]
        if self.text_index is not None:
            self._names.append(self._known.encoder_hidden_states_argument_name)
        if not {*self._names} <= {*inspect.signature(cls.forward).parameters}:
            raise ValueError(f"{cls.__name__} does not take {self._names}")

    def streams(self, args: Any, kwargs: Any) -> list[Tensor]:
        """Return a call's token stream and, where the block returns one, its text stream."""
        return [self._known._get_parameter_from_args_kwargs(n, args, kwargs) for n in self._names]


def hidden_linear(module: nn.Module) -> bool:
    """Return whether a layer of PEFT (DoRA, OFT) acts on each token alone, unseen in its code."""
    if not isinstance(getattr(module, "base_layer", None), nn.Linear):
        return False
    place = type(module).__module__
    return place.startswith("peft.tuners.oft") or (
        place.startswith("peft.tuners.lora") and any(getattr(module, "use_dora", {}).values())
    )


def adapted(module: nn.Module) -> nn.Module | None:
    """Return the model's own layer below an adapter of PEFT, None for other modules."""
    base = getattr(module, "base_layer", None)
    return base if isinstance(base, nn.Module) else None
