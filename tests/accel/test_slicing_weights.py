"""Slicing where weights are not plain tensors in place: offloaded, or quantized by rows."""

from __future__ import annotations

import pytest
import torch
from helpers.bits import assert_same
from helpers.families import FAMILIES
from helpers.runs import forward, in_dtype, sliced
from torch import Tensor, nn

import accel

CPU = torch.device("cpu")


def sliced_blocks(handle):
    blocks = [b for b in handle.report().blocks if b.name != "head"]
    assert blocks and all(b.sliced and not b.whole for b in blocks), str(blocks)
    return blocks


@pytest.mark.slow
@pytest.mark.parametrize("family", ["wan", "hunyuanvideo", "flux"])
@pytest.mark.parametrize("buffers", [False, True])
def test_weights_that_accelerate_brings_for_each_call(family, buffers):
    from accelerate import cpu_offload

    module, inputs = in_dtype(FAMILIES[family](), torch.bfloat16)
    plain = forward(module, inputs)
    cpu_offload(module, CPU, offload_buffers=buffers)
    assert any(p.is_meta for p in module.parameters())
    with accel.patched(module, plan=sliced(4)) as handle:
        assert_same(forward(module, inputs), plain)
        sliced_blocks(handle)
    assert torch.equal(forward(module, inputs), plain)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["wan", "cogvideox", "ltx"])
@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_weights_that_diffusers_brings_in_groups(family, kind):
    from diffusers.hooks import apply_group_offloading

    module, inputs = in_dtype(FAMILIES[family](), torch.bfloat16)
    plain = forward(module, inputs)
    groups = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    apply_group_offloading(module, CPU, CPU, offload_type=kind, **groups)
    with accel.patched(module, plan=sliced(4)) as handle:
        assert_same(forward(module, inputs), plain)
        sliced_blocks(handle)


class ByRows(nn.Module):
    """An INT8 linear layer as dynamic quantization makes it: one scale per row of the weight, one
    per ``token`` (or per tensor) of the input.
    """

    def __init__(self, linear: nn.Linear, token: bool) -> None:
        super().__init__()
        scale = linear.weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("weight", (linear.weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias, self.token = linear.bias, token

    def forward(self, x: Tensor) -> Tensor:
        size = x.abs().amax(-1, keepdim=True) if self.token else x.abs().amax()
        scale = size.clamp_min(1e-8) / 127
        whole = nn.functional.linear((x / scale).round(), self.weight.to(x.dtype))
        return whole * scale * self.scale.squeeze(1).to(x.dtype) + self.bias.to(x.dtype)


def quantize(module: nn.Module, token: bool) -> None:
    """Every linear layer of the blocks' feed-forward parts and projections of attention."""
    for parent in list(module.blocks.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, ByRows(child, token))


@torch.no_grad()
def test_linear_layers_quantized_by_rows_and_tokens():
    module, inputs = FAMILIES["wan"]()
    quantize(module, token=True)
    plain = forward(module, inputs)
    for n in (2, 4, 8):
        with accel.patched(module, plan=sliced(n)) as handle:
            out = forward(module, inputs)
            sliced_blocks(handle)
        assert float((out - plain).norm() / plain.norm()) <= 2e-7, f"{n} slices"


@torch.no_grad()
def test_a_scale_over_all_tokens_is_never_taken_from_a_slice():
    module, inputs = FAMILIES["wan"]()
    quantize(module, token=False)
    plain = forward(module, inputs)
    with accel.patched(module, plan=sliced(4)) as handle:
        out = forward(module, inputs)
        blocks = sliced_blocks(handle)
    assert float((out - plain).norm() / plain.norm()) <= 2e-7
    assert all(b.note == "on all tokens at once: amax" for b in blocks), str(blocks)
