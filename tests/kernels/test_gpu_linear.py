"""8-bit linear layers for cards against the eager specification.

On the card where there is one. Without, the Triton kernels run in Triton's interpreter and torch's
products on the CPU: that proves the arithmetic; what the compiler makes of the kernels for six
cards is ``test_gpu_linear_compiles``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.card import DEVICE, INTERPRETED, let_interpret

pytest.importorskip("triton", reason="triton is not installed")

from accel.kernels import reference_linear as reference
from accel.kernels.attention_call import DTYPES
from accel.kernels.gpu.linear import quantize_rows
from accel.kernels.linear import linear, pack, why_not
from accel.kernels.reference_linear import LinearSpec, quantized_linear

BENCH = Path(__file__).resolve().parents[1] / "bench"


@pytest.fixture(autouse=True)
def runs(monkeypatch):
    let_interpret(monkeypatch)


def layer(rows, inputs, channels, dtype=torch.float32):
    g = torch.Generator().manual_seed(rows + inputs)
    x, b = torch.randn(rows, inputs, generator=g), torch.randn(channels, generator=g)
    w = torch.randn(channels, inputs, generator=g) / inputs**0.5
    return [t.to(dtype).to(DEVICE) for t in (x, w, b)]


@pytest.mark.parametrize("precision", ["int8", "fp8"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_codes_are_the_specifications_bit_for_bit(precision, dtype):
    x = layer(9, 1500, 1, dtype)[0]
    x[0], x[1], x[2, 5] = 0, 3.25, 1e4
    factor = torch.rand(1500, device=DEVICE) + 0.5
    spec = LinearSpec("e4m3" if precision == "fp8" else "int")
    for given in (None, factor):
        for view in (x, x.T.contiguous().T, x[:, ::3]):
            f = None if given is None else given[: view.shape[1]].contiguous()
            codes, scale = quantize_rows(view, f, precision)
            expected = reference.quantize_rows(view, spec, f, None)
            assert torch.equal(scale[:9], expected.scale)
            assert torch.equal(codes[:9, : view.shape[1]].float(), expected.values)
            assert not codes[:9, view.shape[1] :].float().any()


@pytest.mark.parametrize("shape", [(1, 16, 8), (40, 64, 48), (33, 100, 21), (17, 1030, 5)])
@pytest.mark.parametrize("activation", [None, "gelu", "gelu_tanh", "silu"])
def test_int8_computes_the_specification(shape, activation):
    x, w, b = layer(*shape)
    out = linear(x, pack(w, impl="gpu"), b, activation=activation)
    expected = quantized_linear(x, w, b, LinearSpec(), activation=activation)
    assert out.dtype == x.dtype and out.is_contiguous()
    torch.testing.assert_close(out.double(), expected, atol=5e-6, rtol=5e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_options_and_half_precision(dtype):
    x, w, b = layer(20, 48, 19, dtype)
    options = {"smooth": torch.rand(48, device=DEVICE) + 0.5}
    options["outliers"] = torch.tensor([1, 40], device=DEVICE)
    out = linear(x, pack(w, impl="gpu", **options), b)
    expected = quantized_linear(x, w, b, LinearSpec(), **options)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), expected, atol=eps, rtol=eps)


def test_rows_are_independent_and_what_is_not_finite_stays_in_its_row():
    x, w, b = layer(50, 70, 33)
    packed = pack(w, impl="gpu", outliers=torch.tensor([3], device=DEVICE))
    whole = linear(x, packed, b, activation="silu")
    assert torch.equal(linear(x[7:9], packed, b, activation="silu"), whole[7:9])
    for bad in (float("nan"), float("inf")):
        broken = x.clone()
        broken[4, 9] = bad
        out = linear(broken, packed, b, activation="silu")
        assert bool(out[4].isnan().all())
        assert torch.equal(out[5:], whole[5:]) and torch.equal(out[:4], whole[:4])


def test_fp8_computes_the_specification():
    x, w, b = layer(40, 64, 48, torch.bfloat16)
    try:
        out = linear(x, pack(w, precision="fp8", impl="gpu"), b, activation="gelu")
    except (RuntimeError, NotImplementedError) as error:
        if INTERPRETED and "scaled" in str(error):
            pytest.skip(f"torch's product of E4M3 does not run here: {error}")
        raise
    expected = quantized_linear(x, w, b, LinearSpec("e4m3"), activation="gelu")
    torch.testing.assert_close(out.double(), expected, atol=2e-2, rtol=2e-2)


def test_what_cannot_run_says_why():
    x, w, b = layer(4, 16, 8)
    assert why_not(x, w, "int8", impl="gpu") == ""
    assert "bf16" in why_not(x, w, "fp8", impl="gpu")
    with pytest.raises(RuntimeError, match="bf16"):
        linear(x, pack(w, precision="fp8", impl="gpu"), b)
    with pytest.raises(RuntimeError, match="rotated"):
        pack(w, impl="gpu", hadamard=True)
    assert linear(x[:0], pack(w, impl="gpu"), b).shape == (0, 8)


def test_the_op_is_one():
    x, w, b = layer(18, 24, 10)
    packed = pack(w, impl="gpu")
    torch.library.opcheck(
        torch.ops.accel.linear.default,
        (x, packed.codes, packed.scale, None, None, None, None, b, 10, "int8", "gpu", False,
         "gelu"),
    )  # fmt: skip


@pytest.mark.proof
def test_the_bench_of_cards_checks_every_layer_and_names_what_is_missing(monkeypatch, capsys):
    """On the CPU without a card: its own timing, and the reasons of what cannot run there."""
    monkeypatch.syspath_prepend(BENCH)
    monkeypatch.setitem(sys.modules, "torchao", None)
    import gpu_linear

    (row,) = gpu_linear.measure(DEVICE, 1, {"small": (40, 64, 48)})
    assert {"torch bf16", "accel int8"} <= set(row["ms"]) and row["error"]["accel int8"] < 0.02
    assert {"torchao int8", "torchao fp8"} <= set(row["failed"])
    timed = set(row["ms"]) | set(row["failed"])
    assert timed == {"torch bf16", *(f"{p} {k}" for p in ("accel", "torchao") for k in FORMATS)}
    text = capsys.readouterr().out
    assert "small, 40 x 64 -> 48" in text and "torchao int8: not timed, " in text
    assert set(gpu_linear.figures([row])["small"]["speedup"]) == set(row["ms"])


FORMATS = ("int8", "fp8")

CODE = """
import json, sys
sys.path.insert(0, sys.argv[1])
import gpu_compile as g, gpu_report as r
r.variants = list  # attention is test_gpu_compile's
sys.argv = ["gpu_report.py", "--json", sys.argv[2]]
raise SystemExit(r.main())
"""


@pytest.mark.slow
@pytest.mark.proof
def test_kernels_compile_for_six_cards_without_spilling(tmp_path):
    """A program of its own, since Triton either interprets or compiles in one process."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(BENCH), str(tmp_path / "report.json")],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "22 kernels, no problem" in done.stdout  # three a card, and E4M3 codes from 8.9 on
    rows = json.loads((tmp_path / "report.json").read_text())
    figures = {row["figure"]: row["value"] for row in rows}
    spilled = {name: value for name, value in figures.items() if name.endswith("/spilled")}
    assert len(spilled) == 6 * 3 + 4 and not any(spilled.values())
    for cc in (80, 86, 89, 90, 100, 120):
        assert any(f"sm_{cc} _quantize" in name for name in spilled)
        assert any(f"sm_{cc} _finish" in name for name in spilled)
    assert all(v <= 128 for name, v in figures.items() if name.endswith("/registers"))
