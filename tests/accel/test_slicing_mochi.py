"""Mochi: padded text is left out by the values of a mask, sample by sample."""

from __future__ import annotations

import pytest
import torch
from helpers.bits import assert_same
from helpers.families import FAMILIES
from helpers.runs import forward, sliced

import accel
from accel import AttentionConfig, Plan, SlicingConfig
from accel.families.mochi import MASK
from accel.slicing.program.derive import derive
from accel.slicing.program.run import run
from accel.slicing.trace.record import Underivable
from accel.slicing.trace.values import settled


def model(dtype, valid=(9, 3)):
    """A denoiser and a call with one sample for each number of valid text tokens."""
    module, inputs = FAMILIES["mochi"]()
    inputs = {k: v.repeat_interleave(len(valid), 0) for k, v in inputs.items()}
    inputs["encoder_attention_mask"] = torch.arange(16) < torch.tensor(valid)[:, None]
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    return torch.nn.Module.to(module, dtype), inputs


@pytest.mark.slow
@pytest.mark.parametrize("valid", [(9,), (9, 1), (16, 3)])
def test_every_sample_has_its_own_text_with_equal_bits_in_bf16(valid):
    module, inputs = model(torch.bfloat16, valid)
    plain = forward(module, inputs)
    for n in (2, 4, 8, 16):
        with accel.patched(module, plan=sliced(n)) as handle:
            assert_same(forward(module, inputs), plain, f"{n} slices")
            blocks = handle.report().blocks
        assert all(b.sliced and not b.whole for b in blocks), str(blocks)
        assert all(b.in_place for b in blocks if b.name != "head")


@pytest.mark.slow
def test_two_guidance_branches_are_equal_to_rounding_in_fp32():
    module, inputs = model(torch.float32)
    plain = forward(module, inputs)
    for n in (2, 16):
        with accel.patched(module, plan=sliced(n)):
            out = forward(module, inputs)
        assert float((out - plain).norm() / plain.norm()) <= 2e-7, f"{n} slices"


@pytest.mark.slow
def test_another_prompt_gets_another_program():
    module, inputs = model(torch.bfloat16, (9,))
    longer = {**inputs, "encoder_attention_mask": torch.ones(1, 16, dtype=torch.bool)}
    plain = [forward(module, x) for x in (inputs, longer)]
    assert not torch.equal(*plain)
    with accel.patched(module, plan=sliced(4)):
        outs = [forward(module, x) for x in (inputs, longer)]
    assert all(torch.equal(x, y) for x, y in zip(outs, plain, strict=True))


def test_a_mask_with_holes_runs_whole_and_says_why():
    module, inputs = model(torch.bfloat16, (9,))
    inputs["encoder_attention_mask"][0, 2] = False
    plain = forward(module, inputs)
    with accel.patched(module, plan=sliced(4)) as handle:
        assert_same(forward(module, inputs), plain)
        report = handle.report()
    assert {why for b in report.blocks for why in b.whole} == {"its text mask has holes"}
    assert "not sliced" in str(report)


def test_joined_keys_are_stored_once():
    """Video keys are computed in slices straight into the keys joined with the text's."""
    module, inputs = model(torch.bfloat16)
    block, calls = module.transformer_blocks[0], []
    handle = block.register_forward_pre_hook(
        lambda block, args, kwargs: calls.append(kwargs), with_kwargs=True
    )
    forward(module, inputs)
    handle.remove()
    program = derive(block, calls[0])
    assert len(program.homes) == 4 and {dim for _, dim, _ in program.homes.values()} == {2}
    assert {start for *_, start in program.homes.values()} == {0}
    with torch.no_grad():
        plain = block(**calls[0])
        with_homes = run(program, block, calls[0], 4)
        program.homes = {}
        without = run(program, block, calls[0], 4)
    for a, b, c in zip(plain, with_homes, without, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


def test_slices_beside_quantized_attention_keep_their_sites():
    module, inputs = model(torch.float32)
    attention = AttentionConfig("int8", impl="reference")
    outs, sites = [], []
    for slicing in (None, SlicingConfig(4, min_tokens=1)):
        with accel.patched(module, plan=Plan("t", attention, slicing)) as handle:
            outs.append(forward(module, inputs))
            sites.append({s.name for s in handle.report().sites if s.ran})
    assert sites[0] == sites[1] and "transformer_blocks.1.attn1" in sites[0]
    # Queries are quantized in blocks of their own call, so codes differ a little.
    assert float((outs[0] - outs[1]).norm() / outs[0].norm()) < 0.02


def test_lengths_come_from_the_mask_alone():
    block = FAMILIES["mochi"]()[0].transformer_blocks[0]
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert settled(block, {MASK: mask}) == (2, 3)
    assert settled(block, {MASK: mask.to("meta")}) == (3, 3)
    assert settled(torch.nn.Linear(1, 1), {MASK: mask}) == ()
    with pytest.raises(Underivable, match="holes"):
        settled(block, {MASK: torch.tensor([[1, 0, 1]])})
