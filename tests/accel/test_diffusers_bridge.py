"""Each private name of diffusers and accelerate that the bridge depends on, in the release that is
installed. If one of these fails, ``accel/core/diffusers_bridge.py`` has to follow.
"""

from __future__ import annotations

import importlib

import pytest
import torch
from accelerate.hooks import ModelHook as AccelerateHook
from accelerate.hooks import add_hook_to_module
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.hooks.hooks import HookRegistry, ModelHook
from diffusers.models import attention_processor, normalization
from helpers.families import FAMILIES

from accel.core import diffusers_bridge as bridge


class Doing(ModelHook):
    """A hook with a forward of its own."""

    alive = True

    def new_forward(self, module, *args, **kwargs):
        return self.fn_ref.original_forward(*args, **kwargs)


def test_a_module_keeps_its_registry_in_diffusers_hook() -> None:
    module = torch.nn.Linear(2, 2)
    restore = bridge.register(module, Doing(), "mine")
    registry = module._diffusers_hook
    assert isinstance(registry, HookRegistry) and list(registry.hooks) == ["mine"]
    assert registry._hook_order == ["mine"] and len(registry._fn_refs) == 1
    assert {"forward", "original_forward"} <= set(vars(registry._fn_refs[0]))
    assert list(bridge.hooks_on(module)) == ["mine"] and bridge.offloaded(module)
    assert bridge.innermost(module) == (registry._fn_refs[0], "original_forward")
    registry.invalidate_child_registries_cache()
    restore()
    assert "_diffusers_hook" not in vars(module) and "forward" not in vars(module)


def test_accelerate_keeps_what_it_hooks_in_old_forward_and_hf_hook() -> None:
    module = torch.nn.Linear(2, 2)
    add_hook_to_module(module, AccelerateHook())
    assert {"_hf_hook", "_old_forward", "forward"} <= set(vars(module))
    assert bridge.innermost(module) == (module, "_old_forward") and bridge.offloaded(module)
    assert set(bridge.HOOK_ATTRIBUTES) == {"_diffusers_hook", "_hf_hook", "_old_forward", "forward"}


def test_a_pipeline_has_all_hooks_and_an_execution_device() -> None:
    assert isinstance(DiffusionPipeline._execution_device, property)
    source = importlib.import_module("inspect").getsource(DiffusionPipeline)
    assert "self._all_hooks" in source

    class Pipe:
        _all_hooks = ("one",)
        _execution_device = torch.device("cpu")

    assert bridge.offloads(Pipe()) and not bridge.offloads(object())
    assert bridge.execution_device(Pipe()) == torch.device("cpu")
    assert bridge.execution_device(object()) is None


def test_the_block_registry_says_what_blocks_take_and_return() -> None:
    module, _ = FAMILIES["flux"]()
    kind = bridge.BlockKind(type(module.transformer_blocks[0]))
    assert {kind.hidden_index, kind.text_index} == {0, 1}
    assert kind.streams(("h", "e"), {}) == ["h", "e"]
    assert kind.streams((), {"hidden_states": "h", "encoder_hidden_states": "e"}) == ["h", "e"]
    with pytest.raises(ValueError, match="not"):
        bridge.BlockKind(torch.nn.Linear)


def test_a_scheduler_keeps_its_configuration_in_one_attribute() -> None:
    assert bridge.CONFIG_ATTRIBUTE in vars(FlowMatchEulerDiscreteScheduler())


def test_hooks_and_layers_have_the_names_that_are_known() -> None:
    names = set()
    for module in ("group_offloading", "layerwise_casting"):
        found = vars(importlib.import_module(f"diffusers.hooks.{module}"))
        names |= {v for v in found.values() if isinstance(v, str)}
    assert set(bridge.WEIGHT_HOOKS) <= names
    for name in bridge.TOKEN_NORMS:
        assert hasattr(normalization, name) or hasattr(torch.nn, name), name
    assert hasattr(normalization, bridge.CHANNELS_LAST_NORM)
    assert all(hasattr(attention_processor, name) for name in bridge.GROUP_NORM_PROCESSORS)


def test_what_moves_weights_for_each_call_says_so() -> None:
    from accelerate import cpu_offload, cpu_offload_with_hook
    from diffusers.hooks import apply_group_offloading

    cpu = torch.device("cpu")
    plain, whole, parts, group = (torch.nn.Linear(2, 2) for _ in range(4))
    cpu_offload_with_hook(whole, cpu)  # a component as a whole, which is left where it runs
    cpu_offload(parts, cpu)
    apply_group_offloading(group, cpu, cpu, offload_type="leaf_level")
    assert [bridge.moves_weights(m) for m in (plain, whole, parts, group)] == [
        False, False, True, True,
    ]  # fmt: skip


def test_an_adapter_of_peft_names_its_layer_base_layer() -> None:
    from peft import LoraConfig, inject_adapter_in_model

    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    layer = model[0]
    assert bridge.adapted(layer) is None
    inject_adapter_in_model(LoraConfig(r=1, target_modules=["0"]), model)
    assert bridge.adapted(model[0]) is layer
