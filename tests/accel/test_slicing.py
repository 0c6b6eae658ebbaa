"""Feature slicing: operator groups by hand, and blocks of ten families with the same results."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from helpers.bits import assert_same
from helpers.families import FAMILIES, MORE
from helpers.proofs import leading
from helpers.runs import forward, in_dtype, sliced

import accel
from accel import AttentionConfig, Plan, SlicingConfig
from accel.slicing.overwritable import overwritable
from accel.slicing.program.derive import derive, predicted_peak
from accel.slicing.program.groups import group, peak
from accel.slicing.program.ir import Operator
from accel.slicing.program.run import run
from accel.slicing.trace.record import Underivable

NAMES = ("wan", "flux", "ltx", "cogvideox", "sd3", "hunyuanvideo", "mochi")
DITS = {**{name: FAMILIES[name] for name in NAMES}, **MORE}
TOKENS = frozenset({"tokens"})


# ----------------------------------------------------------------------------------------- groups


def attention_chain():
    return [
        Operator("norm", ("h",), ("x",), TOKENS),
        Operator("to_q", ("x",), ("q",), TOKENS, cheap=False),
        Operator("to_k", ("x",), ("k",), TOKENS, cheap=False),
        Operator("attend", ("q", "k"), ("o",), TOKENS, whole=("k",), cheap=False),
        Operator("add", ("h", "o"), ("out",), TOKENS),
    ]


def test_keys_are_a_barrier_and_cheap_operators_run_again():
    first, second = group(attention_chain(), ["h"], ["out"], "tokens")
    assert [op.name for op in first.loop] == ["norm", "to_k"] and first.stores == ("k",)
    assert [op.name for op in second.loop] == ["norm", "to_q", "attend", "add"]
    assert second.stores == ("out",)


def test_an_expensive_result_two_groups_need_is_stored():
    chain = [
        Operator("project", ("h",), ("x",), TOKENS, cheap=False),
        Operator("to_k", ("x",), ("k",), TOKENS, cheap=False),
        Operator("attend", ("x", "k"), ("out",), TOKENS, whole=("k",), cheap=False),
    ]
    first, last = group(chain, ["h"], ["out"], "tokens")
    assert set(first.stores) == {"k", "x"}
    assert [op.name for op in last.loop] == ["attend"]


def test_an_operator_that_mixes_tokens_runs_once_on_everything():
    chain = [
        Operator("scale", ("h",), ("x",), TOKENS),
        Operator("sort", ("x",), ("s",)),
        Operator("shift", ("s",), ("out",), TOKENS),
    ]
    first, last = group(chain, ["h"], ["out"], "tokens")
    assert first.stores == ("x",) and [op.name for op in last.once] == ["sort", "shift"]


def test_predicted_peak_is_floor_plus_transient_over_slices():
    groups = group(attention_chain(), ["h"], ["out"], "tokens")
    sizes = dict.fromkeys(("h", "x", "q", "k", "o", "out"), 80)
    assert [peak(groups, sizes, ["h"], n, {"out": "h"}) for n in (1, 8)] == [320, 180]
    assert peak(groups, sizes, ["h"], 8) == 260


# --------------------------------------------------------------------------------------- families


@pytest.mark.slow
@pytest.mark.parametrize("family", leading(6, DITS))
def test_sliced_families_are_bitwise_equal_in_bf16(family):
    module, inputs = in_dtype(DITS[family](), torch.bfloat16)
    plain = forward(module, inputs)
    for n in (2, 4, 8, 16):
        with accel.patched(module, plan=sliced(n)) as handle:
            assert_same(forward(module, inputs), plain, f"{n} slices")
            blocks = handle.report().blocks
        assert blocks and all(b.sliced and not b.whole for b in blocks), str(blocks)
        assert all(b.in_place for b in blocks[:-1])
    assert torch.equal(forward(module, inputs), plain)


@pytest.mark.slow
@pytest.mark.parametrize("family", leading(4, DITS))
def test_sliced_families_are_equal_to_rounding_in_fp32(family):
    module, inputs = DITS[family]()
    plain = forward(module, inputs)
    for n in (2, 16):
        with accel.patched(module, plan=sliced(n)):
            out = forward(module, inputs)
        assert float((out - plain).norm() / plain.norm()) <= 2e-7, f"{n} slices"


# ------------------------------------------------------------------------------------------ blocks


def wan_block(tokens=131, width=48):
    block = WanTransformerBlock(width, 2 * width, 4, "rms_norm_across_heads", True).eval()
    table = torch.randn(1, tokens, 1, width // 4)
    return block, {
        "hidden_states": torch.randn(1, tokens, width),
        "encoder_hidden_states": torch.randn(1, 12, width),
        "temb": torch.randn(1, 6, width),
        "rotary_emb": (table.cos(), table.sin()),
    }


def test_a_wan_block_becomes_a_key_value_pass_and_everything_else():
    block, arguments = wan_block()
    program = derive(block, arguments)
    first, second = program.groups
    assert {op.name.split(":")[0] for op in first.loop if not op.cheap} == {
        "attn1.to_k", "attn1.to_v"
    }  # fmt: skip
    assert program.overwrites and set(program.overwrites.values()) == {"hidden_states.0"}
    assert not program.mixing and len(second.stores) == 1
    stock = sum(v.numel() * 4 for v in arguments["rotary_emb"]) + 3 * 131 * 48 * 4
    assert predicted_peak(program, 131) < 1.6 * stock


@pytest.mark.parametrize("tokens", [31, 64, 131])
@torch.no_grad()
def test_overwriting_gives_the_input_back_and_copying_leaves_it(tokens):
    block, arguments = wan_block(tokens)
    plain, before = block(**arguments), arguments["hidden_states"].clone()
    program = derive(block, arguments)
    out = run(program, block, arguments, 3)
    assert torch.equal(arguments["hidden_states"], before)
    assert float((out - plain).norm() / plain.norm()) < 2e-7
    out = run(program, block, arguments, 3, frozenset({"hidden_states.0"}))
    assert out is arguments["hidden_states"]
    assert float((out - plain).norm() / plain.norm()) < 2e-7


def test_per_token_modulation_is_sliced_with_the_tokens():
    block, arguments = wan_block()
    arguments["temb"] = torch.randn(1, 131, 6, 48)
    with torch.no_grad():
        plain = block(**arguments)
        out = run(derive(block, arguments), block, arguments, 4)
    assert float((out - plain).norm() / plain.norm()) < 2e-7


class Mean(torch.nn.Module):
    def forward(self, hidden_states):
        return hidden_states - hidden_states.mean(1, keepdim=True)


class Peeks(torch.nn.Module):
    def forward(self, hidden_states):
        return hidden_states * (2 if hidden_states.sum() > 0 else 1)


class Asks(torch.nn.Module):
    """Depending on ``flags``, and only if ``late``, it reads its block's input once more."""

    def __init__(self, late):
        super().__init__()
        self.blocks, self.late = torch.nn.ModuleList([torch.nn.Linear(8, 8)]), late

    def forward(self, x, flags):
        h = x * 2
        out = self.blocks[0](h)
        return out if torch.all(flags) or not self.late else out + h


@pytest.mark.parametrize("late", [False, True])
def test_a_model_that_asks_about_values_is_followed_both_ways(late):
    x = torch.randn(1, 40, 8), torch.ones(4, dtype=torch.bool)
    assert ("input.0" in overwritable(Asks(late), ["blocks.0"], x, {})["blocks.0"]) != late


@torch.no_grad()
def test_unknown_blocks_are_derived_or_refused():
    x = {"hidden_states": torch.randn(1, 40, 8)}
    program = derive(Mean(), x)
    assert torch.allclose(run(program, Mean(), x, 4), Mean()(**x), atol=1e-6)
    with pytest.raises((Underivable, NotImplementedError, RuntimeError)):
        derive(Peeks(), x)


# --------------------------------------------------------------------------------- with the others


def test_live_weights_and_hooks_of_submodules_are_used():
    block, arguments = wan_block()
    with torch.no_grad():
        program = derive(block, arguments)
        calls = []
        block.ffn.net[2].register_forward_hook(lambda *_: calls.append(1))
        block.attn1.to_v.weight.mul_(2.0)
        out = run(program, block, arguments, 4)
        plain = block(**arguments)
    assert len(calls) == 5  # four slices and the plain call
    assert float((out - plain).norm() / plain.norm()) < 2e-7


def test_a_hook_on_a_container_keeps_its_block_whole():
    module, inputs = DITS["wan"]()
    seen = []
    module.blocks[0].attn1.register_forward_hook(lambda *_: seen.append(1))
    with accel.patched(module, plan=sliced(4)) as handle:
        forward(module, inputs)
        first, second, _ = handle.report().blocks
    assert seen == [1] and "attn1 has a hook" in next(iter(first.whole)) and second.sliced


def test_quantized_attention_runs_at_its_sites():
    module, inputs = DITS["wan"]()
    int8 = AttentionConfig("int8", impl="reference", smooth_v=False)
    with accel.patched(module, plan=Plan("t", int8)):
        unsliced = forward(module, inputs)
    with accel.patched(module, plan=sliced(4, int8)) as handle:
        out = forward(module, inputs)
        ran = {s.name: sum(s.ran.values()) for s in handle.report().sites if s.ran}
    assert ran == {f"blocks.{i}.attn{j}": 4 for i in (0, 1) for j in (1, 2)}
    assert float((out - unsliced).norm() / unsliced.norm()) < 1e-5


def test_a_residual_cache_keeps_its_input():
    from diffusers import FirstBlockCacheConfig

    module, inputs = DITS["wan"]()
    module.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    with module.cache_context("cond"):
        plain = forward(module, inputs)
    module._reset_stateful_cache()
    with accel.patched(module, plan=sliced(4)) as handle, module.cache_context("cond"):
        out = forward(module, inputs)
        blocks = handle.report().blocks
    assert float((out - plain).norm() / plain.norm()) < 2e-7
    assert all(b.sliced and not b.in_place and "hook" in b.note for b in blocks[:-1])


def test_unpatching_restores_every_forward_below_hooks():
    module, inputs = DITS["wan"]()
    from accelerate.hooks import ModelHook, add_hook_to_module

    add_hook_to_module(module.blocks[1], ModelHook())
    before = [dict(vars(b)) for b in module.blocks]
    plain = forward(module, inputs)
    with accel.patched(module, plan=sliced(4)) as handle:
        forward(module, inputs)
        assert all(b.sliced for b in handle.report().blocks)
    assert [dict(vars(b)) for b in module.blocks] == before
    assert torch.equal(forward(module, inputs), plain)


def test_a_dropped_pipeline_is_freed():
    module, inputs = DITS["wan"]()
    accel.patch(module, plan=sliced(4))
    forward(module, inputs)
    alive = weakref.ref(module)
    del module
    gc.collect()
    assert alive() is None


def test_gradients_and_short_sequences_stay_whole():
    module, inputs = DITS["wan"]()
    with accel.patched(module, plan=Plan("t", None, SlicingConfig(8, 128))) as handle:
        forward(module, inputs)
        module(**{**inputs, "hidden_states": inputs["hidden_states"].requires_grad_()})
        whole = handle.report().blocks[0].whole
    assert whole == {"fewer than 256 tokens": 1, "needs gradients": 1}


def test_bad_settings_and_round_trip():
    with pytest.raises(ValueError, match="slices must be a whole number from 1, got 0"):
        SlicingConfig(0)
    assert Plan.from_dict(Plan.preset("lossless").to_dict()) == Plan.preset("lossless")
    with pytest.raises(ValueError, match="plan slicing has an unknown key 'slice'"):
        Plan.from_dict({"slicing": {"slice": 3}})
