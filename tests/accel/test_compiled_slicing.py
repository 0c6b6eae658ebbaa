"""Patched models under ``torch.compile``: denoisers and their blocks, sliced and quantized."""

from __future__ import annotations

import pytest
import torch
from diffusers import WanTransformer3DModel
from helpers.families import FAMILIES, MORE
from helpers.proofs import leading
from helpers.runs import forward, sliced

import accel
from accel import AttentionConfig, Plan, SlicingConfig

pytestmark = pytest.mark.slow

# Not hunyuanvideo15: its forward branches on values, so it has no whole graph without us either.
DITS = {**{k: FAMILIES[k] for k in ("wan", "flux", "ltx", "cogvideox", "sd3", "hunyuanvideo")},
        **{k: MORE[k] for k in ("wan_vace", "qwen_image", "ltx2")}}  # fmt: skip
LAYERS = 10  # more than torch.compile makes variants of one function (8)


class Graphs:
    """A backend that counts what it is given."""

    def __init__(self):
        self.ops = []

    def __call__(self, graph, inputs):
        self.ops.append({str(n.target) for n in graph.graph.nodes if n.op == "call_function"})
        return graph.forward


@pytest.fixture
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def deep():
    torch.manual_seed(0)
    module = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=64, in_channels=4,
        out_channels=4, text_dim=32, freq_dim=32, ffn_dim=64, num_layers=LAYERS,
        rope_max_seq_len=32,
    )  # fmt: skip
    inputs = {
        "hidden_states": torch.randn(1, 4, 3, 16, 16),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 8, 32),
    }
    return module.eval(), inputs


@pytest.mark.parametrize("family", leading(3, DITS))
def test_sliced_in_one_graph(family, fresh):
    module, inputs = DITS[family]()
    plain = forward(module, inputs)
    with accel.patched(module, plan=sliced(4)):
        eager = forward(module, inputs)
    graphs = Graphs()
    with accel.patched(module, plan=sliced(4)) as handle:
        out = forward(torch.compile(module, backend=graphs, fullgraph=True), inputs)
        blocks = [b for b in handle.report().blocks if b.name != "head"]
        assert "under torch.compile" in str(handle.report())  # the head
    assert blocks and all(b.sliced == {4: 1} and not b.whole for b in blocks)
    assert len(graphs.ops) == 1 and any("sliced_block" in op for op in graphs.ops[0])
    torch.testing.assert_close(out, eager, atol=0, rtol=2e-7)
    assert float((out - plain).norm() / plain.norm()) < 2e-7
    assert torch.equal(forward(module, inputs), plain)


@pytest.mark.parametrize("first", ["patch", "compile"])
@pytest.mark.parametrize("slices", [0, 4], ids=["quantized", "sliced"])
def test_repeated_blocks_share_one_graph(deep, fresh, first, slices):
    module, inputs = deep
    wanted = sliced(4) if slices else Plan("t", AttentionConfig("int8"))
    with accel.patched(module, plan=wanted):
        eager = forward(module, inputs)
    graphs = Graphs()
    if first == "compile":
        module.compile_repeated_blocks(fullgraph=True, backend=graphs)
    with accel.patched(module, plan=wanted) as handle:
        if first == "patch":
            module.compile_repeated_blocks(fullgraph=True, backend=graphs)
        out, again = forward(module, inputs), forward(module, inputs)
        report = handle.report()
    assert len(graphs.ops) == 1
    torch.testing.assert_close(out, eager, atol=1e-4, rtol=1e-4)
    assert torch.equal(out, again)
    if slices:
        blocks = [b for b in report.blocks if b.name != "head"]
        assert len(blocks) == LAYERS and all(b.sliced == {4: 2} for b in blocks)
    else:
        quantized = [s for s in report.sites if s.ran]
        assert len(quantized) == LAYERS and all(s.ran == {"int8 by cpu": 2} for s in quantized)


def test_blocks_compiled_while_patched_run_plainly_afterwards(deep, fresh):
    module, inputs = deep
    plain, graphs = forward(module, inputs), Graphs()
    with accel.patched(module, plan=sliced(4, AttentionConfig("int4"))):
        module.compile_repeated_blocks(fullgraph=True, backend=graphs)
        forward(module, inputs)
    out = forward(module, inputs)
    assert len(graphs.ops) == 2 and not any("accel" in op for op in graphs.ops[1])
    torch.testing.assert_close(out, plain, atol=1e-6, rtol=1e-5)


def test_too_few_tokens_are_compiled_whole_and_named(deep, fresh):
    module, inputs = deep
    graphs = Graphs()
    with accel.patched(module, plan=Plan("t", None, SlicingConfig(4, 1000))) as handle:
        module.compile_repeated_blocks(fullgraph=True, backend=graphs)
        forward(module, inputs)
        whole = handle.report().blocks[0].whole
    assert whole == {"fewer than 2000 tokens, when it was compiled": 1}
    assert len(graphs.ops) == 1 and not any("sliced_block" in op for op in graphs.ops[0])


@pytest.mark.proof
def test_inductor_sees_the_same_numbers(deep, fresh):
    module, inputs = deep
    plain = forward(module, inputs)
    with accel.patched(module, plan=sliced(4)):
        out = forward(torch.compile(module, fullgraph=True), inputs)
    torch.testing.assert_close(out, plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("how", leading(1, ["blocks", "denoiser"]))
def test_every_size_is_compiled_and_sliced(deep, fresh, how):
    module, inputs = deep
    sizes = [{**inputs, "hidden_states": torch.randn(1, 4, 3, 16, width)} for width in (16, 20, 24)]
    plain = [forward(module, x) for x in sizes]
    with accel.patched(module, plan=sliced(4, AttentionConfig("int8"))) as handle:
        graphs, called = Graphs(), module
        if how == "blocks":
            module.compile_repeated_blocks(fullgraph=True, backend=graphs)
        else:
            called = torch.compile(module, fullgraph=True, backend=graphs)
        found = [forward(called, x) for x in sizes]
        first = handle.report().blocks[0]
    assert len(graphs.ops) == 3 and first.sliced == {4: 3} and not first.whole
    for out, wanted in zip(found, plain, strict=True):
        torch.testing.assert_close(out, wanted, atol=0.01, rtol=0.01)
