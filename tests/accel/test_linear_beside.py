"""8-bit layers beside everything else: slices, step rehash, attention, compiled graphs."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import linear_kernels
from helpers.families import FAMILIES
from helpers.linear_kernels import ours
from helpers.proofs import backends, leading
from helpers.rehash_pipe import Pipe
from helpers.runs import forward

import accel
from accel import AttentionConfig, LinearConfig, Plan, RehashConfig, SlicingConfig

LINEAR = LinearConfig(impl="reference", min_rows=1)  # a slice can have few rows
INT8 = AttentionConfig("int8", impl="reference")


@pytest.fixture(autouse=True)
def stand_in(monkeypatch, tmp_path):
    linear_kernels.put_in(monkeypatch, tmp_path)


def ran(handle):
    return sum(sum(site.record.ran.values()) for site in handle.layers.values())


@pytest.mark.parametrize("family", ["wan", "flux", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_slices_change_no_bit(family):
    model, inputs = FAMILIES[family]()
    with accel.patched(model, plan=Plan("t", None, linear=LINEAR)) as handle:
        whole, calls = forward(model, inputs), ran(handle)
    plan = Plan("t", None, SlicingConfig(4, min_tokens=8), linear=LINEAR)
    with accel.patched(model, plan=plan) as handle:
        assert torch.equal(forward(model, inputs), whole)
        assert ran(handle) > calls and any(block.sliced for block in handle.blocks.values())
        assert not any("failed" in str(block.whole) for block in handle.blocks.values())


@pytest.mark.parametrize("level", ["output", "features"])
def test_reused_steps_call_no_layer(level):
    pipe = Pipe("wan")
    handle = accel.patch(pipe, plan=ours())
    plain, calls = pipe(), ran(handle)
    plan = Plan("t", None, rehash=RehashConfig(level=level), linear=LINEAR)
    handle = accel.patch(pipe, plan=plan)
    out = pipe()
    assert 0 < ran(handle) < calls and handle.report().rehash.calls["reused"]
    assert (out - plain).abs().mean() < 0.1 * plain.abs().mean()
    accel.unpatch(pipe)


def test_all_techniques_together_and_taken_back():
    pipe = Pipe("wan")
    plain = pipe()
    plan = Plan("t", INT8, SlicingConfig(2, min_tokens=8), RehashConfig(), LINEAR)
    handle = accel.patch(pipe, plan=plan)
    pipe()
    report = handle.report()
    assert report.linear.ran and report.rehash.calls["reused"]
    assert any(site.ran for site in report.sites) and any(block.sliced for block in report.blocks)
    accel.unpatch(pipe)
    assert torch.equal(pipe(), plain)


def test_the_log_counts_linear_calls(caplog):
    pipe = Pipe("wan")
    accel.patch(pipe, plan=ours())
    with caplog.at_level("INFO", "accel"):
        pipe(steps=2)
    assert "80 of 80 linear calls in 8 bits" in caplog.text and "WARNING" not in caplog.text


@pytest.mark.slow
@backends
@pytest.mark.parametrize("family", leading(1, ["wan", "flux"]))
def test_compiled_without_a_graph_break_and_back(family, compiler):
    model, inputs = FAMILIES[family]()
    plain = forward(model, inputs)
    compiled = torch.compile(model, fullgraph=True, backend=compiler)
    handle = accel.patch(model, plan=ours())
    eager, calls = forward(model, inputs), ran(handle)
    near = {"atol": 2e-3, "rtol": 2e-3}  # fused norms round otherwise before they are quantized
    torch.testing.assert_close(forward(compiled, inputs), eager, **near)
    assert calls and ran(handle) == 2 * calls
    accel.unpatch(model)
    torch.testing.assert_close(forward(compiled, inputs), plain, atol=1e-4, rtol=1e-4)
    assert ran(handle) == 2 * calls


@pytest.mark.slow
def test_equal_blocks_share_a_compiled_graph():
    from torch._dynamo.testing import CompileCounter

    model, inputs = FAMILIES["wan"]()
    handle = accel.patch(model, plan=ours())
    eager, calls = forward(model, inputs), ran(handle)
    torch._dynamo.reset()
    counter = CompileCounter()
    for block in model.blocks:
        block.compile(backend=counter, fullgraph=True)
    torch.testing.assert_close(forward(model, inputs), eager)
    assert ran(handle) == 2 * calls and counter.frame_count == 1
    accel.unpatch(model)


@pytest.mark.slow
@backends
def test_a_changed_weight_is_seen_in_a_compiled_graph(compiler):
    model, inputs = FAMILIES["wan"]()
    compiled = torch.compile(model, fullgraph=True, backend=compiler)
    accel.patch(model, plan=ours())
    forward(compiled, inputs)
    with torch.no_grad():
        model.blocks[0].ffn.net[2].weight.data += 0.1
    out = forward(compiled, inputs)
    twin = copy.deepcopy(model)
    with accel.patched(twin, plan=ours()):
        torch.testing.assert_close(out, forward(twin, inputs), atol=2e-3, rtol=2e-3)
    accel.unpatch(model)


@pytest.mark.slow
@backends
def test_gradients_and_autocast_in_a_compiled_graph_are_torchs(compiler):
    model, inputs = FAMILIES["wan"]()
    compiled = torch.compile(model, fullgraph=True, backend=compiler)
    handle = accel.patch(model, plan=ours())
    out = compiled(**inputs, return_dict=False)[0]
    out.sum().backward()
    assert model.blocks[0].attn1.to_q.weight.grad is not None
    with torch.autocast("cpu", torch.bfloat16):
        forward(compiled, inputs)
    assert not ran(handle)
    accel.unpatch(model)
