"""Half precision on a processor with matrix units: torch may be faster, so it is measured."""

from __future__ import annotations

import json

import pytest
import torch

from accel.kernels import dispatch, measured
from accel.kernels.attention_call import AttentionCall
from accel.kernels.cpu import half_precision


@pytest.fixture
def matrix_units(monkeypatch, tmp_path):
    """A processor with matrix units, and an empty cache."""
    monkeypatch.setenv("ACCEL_MEASURE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(half_precision, "_known", {})
    monkeypatch.setattr(half_precision, "_tiles", lambda: True)
    monkeypatch.setattr(measured, "_load", lambda: 0.0)
    half_precision._file.cache_clear()
    return tmp_path


def timed(monkeypatch, mine, theirs):
    """Let our call take ``mine`` milliseconds; returns the shapes that were timed."""
    seen = []

    def turns(jobs, device, repeats, burst=1):
        seen.append([job()[0].shape if isinstance(job(), tuple) else job().shape for job in jobs])
        return [[mine] * repeats, [theirs] * repeats]

    monkeypatch.setattr(measured, "turns", turns)
    return seen


def call(dtype=torch.bfloat16, tokens=300):
    q = torch.randn(1, 3, tokens, 64, dtype=torch.float32).to(dtype)
    return AttentionCall(q, q, q)


@pytest.mark.skipif(
    bool(dispatch.ATTENTION[0].why_not(torch.device("cpu"))), reason="needs the native kernels"
)
@pytest.mark.parametrize(("mine", "impl"), [(1.0, "cpu"), (3.0, "torch")])
def test_the_faster_one_runs_and_is_kept(matrix_units, monkeypatch, mine, impl):
    seen = timed(monkeypatch, mine, 2.0)
    for tokens in (300, 290):  # of one kind: to a power of two
        decision = dispatch.decide(call(tokens=tokens), "int8", "auto")
        assert decision.impl == impl
    assert len(seen) == 1 and {shape[2] for shape in seen[0]} == {256}
    if impl == "torch":
        assert decision.why == ("torch's own attention is faster on this processor: measured 0.67x")
    (file,) = matrix_units.rglob("half-*.json")
    assert list(json.loads(file.read_text()).values()) == [2.0 / mine]
    monkeypatch.setattr(half_precision, "_known", {})  # another process
    assert dispatch.decide(call(), "int8", "auto").impl == impl and len(seen) == 1
    dispatch.decide(call(tokens=5000), "int8", "auto")
    assert {shape[2] for shape in seen[1]} == {half_precision.MOST_TOKENS}


@pytest.mark.skipif(
    bool(dispatch.ATTENTION[0].why_not(torch.device("cpu"))), reason="needs the native kernels"
)
def test_fp32_and_what_is_named_are_not_measured(matrix_units, monkeypatch):
    seen = timed(monkeypatch, 3.0, 1.0)
    assert dispatch.decide(call(torch.float32), "int8", "auto").impl == "cpu"
    assert dispatch.decide(call(), "int8", "cpu").impl == "cpu"
    monkeypatch.setenv("ACCEL_MEASURE", "0")
    assert dispatch.decide(call(), "int8", "auto").impl == "cpu" and not seen
