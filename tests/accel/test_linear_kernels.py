"""8-bit layers on the kernels of this build: what the sites ask of them, and a model that runs."""

from __future__ import annotations

import pytest
import torch
from helpers.families import FAMILIES
from helpers.linear_kernels import called, ours, site
from helpers.runs import forward

import accel
from accel.kernels.cpu.native import library

IMPLS = ["reference"] + ["cpu"] * (library().isa not in ("none", "scalar"))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("options", [{}, {"smooth": True}, {"outliers": 3}, {"hadamard": True}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_runs_as_asked(impl, options, dtype):
    layer = torch.nn.Linear(256, 96, dtype=dtype).requires_grad_(False)
    x, at = torch.randn(2, 70, 256, dtype=dtype), site(impl=impl, **options)
    out, exact = called(at, layer, x), layer(x)
    assert at.record.ran == {("int8", impl): 1}, (at.record, at.demoted_why)
    assert out.dtype == dtype and out.is_contiguous()
    assert (out - exact).float().abs().mean() < 0.03 * exact.float().abs().mean()
    assert at.weight.nbytes and torch.equal(called(at, layer, x[:, 9:31]), out[:, 9:31])


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("family", ["wan", "flux"])
def test_a_model_runs_and_is_what_it_was(family, impl):
    model, inputs = FAMILIES[family]()
    plain = forward(model, inputs)
    handle = accel.patch(model, plan=ours(impl=impl))
    out = forward(model, inputs)
    report = handle.report()
    assert report.linear.ran[f"int8 by {impl}"] >= 17 and report.linear.packed_bytes
    assert not any(site.recomputed for site in report.layers)
    assert 0 < (out - plain).abs().mean() < 0.02 * plain.abs().mean()
    accel.unpatch(model)
    assert torch.equal(forward(model, inputs), plain)


def test_auto_gives_a_reason_or_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCEL_MEASURE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    layer, at = torch.nn.Linear(64, 64).requires_grad_(False), site(impl="auto")
    called(at, layer, torch.randn(128, 64))
    assert len(at.record.ran) + len(at.record.kept) == 1 and not at.record.recomputed
