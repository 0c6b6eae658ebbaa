"""Slicing of UNets: samples of a batch, tokens, and rows of pixels with two-pass GroupNorm."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D, TemporalResnetBlock
from helpers.bits import assert_same
from helpers.families import FAMILIES
from helpers.runs import forward, sliced

import accel
from accel.slicing.group_norm import group_statistics, normalize
from accel.slicing.program.derive import derive
from accel.slicing.program.run import run


def guided(family, dtype):
    """Both guidance branches in one batch."""
    module, inputs = FAMILIES[family]()

    def twice(x):
        if isinstance(x, dict):
            return {k: twice(v) for k, v in x.items()}
        if not x.dim():
            return x
        x = x.repeat_interleave(2, 0)
        return x.to(dtype) if x.is_floating_point() else x

    return module.to(dtype), {k: twice(v) for k, v in inputs.items()}


VIDEO = [pytest.param(name, marks=pytest.mark.proof) for name in ("animatediff", "svd")]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sdxl", *VIDEO])
def test_every_block_of_a_unet_is_sliced_with_equal_bits_in_bf16(family):
    module, inputs = guided(family, torch.bfloat16)
    plain = forward(module, inputs)
    for n in (2, 4, 8, 16):
        with accel.patched(module, plan=sliced(n)) as handle:
            assert_same(forward(module, inputs), plain, f"{n} slices")
            blocks = handle.report().blocks
        assert len(blocks) >= 9 and all(b.sliced and not b.whole for b in blocks), str(blocks)
    assert any(b.in_place for b in blocks)
    assert torch.equal(forward(module, inputs), plain)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sdxl", *VIDEO])
def test_unets_are_equal_to_rounding_in_fp32(family):
    module, inputs = guided(family, torch.float32)
    plain = forward(module, inputs)
    with accel.patched(module, plan=sliced(8)):
        out = forward(module, inputs)
    # Roundings of some 20 layers with random weights; a temporal block alone is held to 2e-7.
    assert float((out - plain).norm() / plain.norm()) <= 2e-6


@torch.no_grad()
@pytest.mark.parametrize("shape", [(2, 12, 5, 9, 7), (1, 6, 3, 4, 4), (3, 24, 8, 8)])
@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_group_norm_in_two_passes_is_group_norm(shape, shift):
    torch.manual_seed(0)
    norm = torch.nn.GroupNorm(3, shape[1], eps=1e-6)
    norm.weight.normal_()
    norm.bias.normal_()
    x = torch.randn(shape) * 3 + shift
    mean, scale = group_statistics(x, 3, 1e-6)
    parts = [normalize(p, mean, scale, norm.weight, norm.bias) for p in x.split(2, -2)]
    out, plain, exact = torch.cat(parts, -2), norm(x), norm.double()(x.double())
    known = x.double().reshape(shape[0], 3, -1).mean(-1).float()
    assert torch.allclose(mean, known, rtol=1e-6, atol=1e-6)
    assert (out - exact).norm() <= 1.5 * (plain - exact).norm() + 1e-7 * exact.norm()


@torch.no_grad()
def test_statistics_of_a_slice_would_be_wrong():
    x = torch.randn(1, 8, 4, 8, 8) + torch.arange(8.0)[:, None]
    plain = torch.nn.functional.group_norm(x, 2)
    naive = torch.cat([torch.nn.functional.group_norm(p, 2) for p in x.split(4, 3)], 3)
    mean, scale = group_statistics(x, 2, 1e-5)
    ours = torch.cat([normalize(p, mean, scale, None, None) for p in x.split(4, 3)], 3)
    assert (naive - plain).norm() > 0.1 * plain.norm()
    assert (ours - plain).norm() < 2e-7 * plain.norm()


@torch.no_grad()
@pytest.mark.parametrize("rows", [8, 13])
def test_a_temporal_block_keeps_two_values_between_its_norms(rows):
    torch.manual_seed(0)
    block = TemporalResnetBlock(32, 32, temb_channels=16).eval()
    arguments = {"input_tensor": torch.randn(2, 32, 5, rows, 7), "temb": torch.randn(2, 5, 16)}
    program = derive(block, arguments)
    kinds = [[op.name.split(":")[0] for op in g.once] for g in program.groups]
    assert [k.count("group_statistics") for k in kinds] == [1, 1]
    plain = block(**arguments)
    for n in (2, 3, 8):
        out = run(program, block, arguments, n)
        assert float((out - plain).norm() / plain.norm()) <= 2e-7, f"{n} slices"
    out = run(program, block, arguments, 4, frozenset({"input_tensor.0"}))
    assert out is arguments["input_tensor"]
    assert float((out - plain).norm() / plain.norm()) <= 2e-7


@torch.no_grad()
def test_frames_of_a_spatial_block_are_samples():
    torch.manual_seed(0)
    block = ResnetBlock2D(in_channels=32, out_channels=64, temb_channels=16).eval()
    arguments = {"input_tensor": torch.randn(7, 32, 6, 5), "temb": torch.randn(7, 16)}
    program = derive(block, arguments)
    assert len(program.groups) == 1 and program.lengths == (7,)
    assert program.most_slices(1) == 7 and program.most_slices(40) == 5
    plain = block(**arguments)
    for n in (2, 5, 7):
        out = run(program, block, arguments, n)
        # Convolutions round differently for another number of samples: 2.1e-7 was seen.
        assert float((out - plain).norm() / plain.norm()) <= 4e-7


@pytest.mark.slow
def test_lora_branches_run_with_their_slices():
    from peft import LoraConfig

    module, inputs = guided("animatediff", torch.bfloat16)
    module.add_adapter(
        LoraConfig(r=4, init_lora_weights=False, target_modules=["to_k", "to_out.0"])
    )
    plain = forward(module, inputs)
    with accel.patched(module, plan=sliced(5)) as handle:
        assert_same(forward(module, inputs), plain)
        assert all(b.sliced for b in handle.report().blocks)


@pytest.mark.slow
def test_weights_offloaded_leaf_by_leaf_keep_a_temporal_block_whole():
    from diffusers.hooks import apply_group_offloading

    module, inputs = guided("svd", torch.bfloat16)
    plain = forward(module, inputs)
    cpu = torch.device("cpu")
    apply_group_offloading(module, cpu, cpu, offload_type="leaf_level")
    with accel.patched(module, plan=sliced(4)) as handle:
        assert_same(forward(module, inputs), plain)
        blocks = {b.name: b for b in handle.report().blocks}
    reasons = {why for name, b in blocks.items() if "temporal_res" in name for why in b.whole}
    assert reasons == {"the weights of norm1 are offloaded on their own"}
    assert all(b.sliced for name, b in blocks.items() if "spatial_res" in name)
