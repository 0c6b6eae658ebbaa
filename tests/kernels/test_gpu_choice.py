"""Which kernel and which tile a card gets: by what it can do, and by what was measured on it.

What the kernel computes is ``test_gpu_attention``.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from helpers.card import DEVICE, INTERPRETED, let_interpret
from helpers.gpu_checks import inputs, relative

pytest.importorskip("triton", reason="triton is not installed")

from accel.kernels import dispatch
from accel.kernels.attention import attention as public
from accel.kernels.attention import spec_of
from accel.kernels.gpu import support, tuning
from accel.kernels.gpu.layout import Tile, candidates


@pytest.fixture(autouse=True)
def runs(monkeypatch):
    let_interpret(monkeypatch)


def test_what_a_card_runs(monkeypatch):
    monkeypatch.setattr(support, "triton_version", lambda: (3, 7))
    assert "Triton 3.7 cannot" in support.why_not_precision("int4", (10, 0))
    assert not support.why_not_precision("int4", (12, 0))
    monkeypatch.setattr(support, "triton_version", lambda: support.FP4_TRITON)
    cards = [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)]
    assert [support.value_format(c) for c in cards] == ["fp16"] * 2 + ["e4m3"] * 4
    assert [support.value_format(c, "int4") for c in cards[3:]] == ["e4m3", "e2m1", "e2m1"]
    assert "FP16" in support.describe((8, 0)) and "no kernel" in support.describe((7, 5))
    assert "int4: NVFP4" in support.describe((12, 0))
    for cc in cards:
        assert bool(support.why_not_precision("int4", cc)) == (cc < (10, 0))
        assert not support.why_not_precision("int8", cc)
    assert "registers" in support.why_not_precision("int4", (10, 0), 256)
    assert dispatch.runs_as("int4", "gpu", torch.empty(1, 1, 1, 64))[0] == "int8"
    assert dispatch.runs_as("int4", "cpu", torch.empty(1, 1, 1, 64)) == ("int4", "")


def test_the_cpu_is_no_card(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert "cuda tensors only" in support.why_not_gpu(torch.device("cpu"))
    with pytest.raises(RuntimeError, match="cuda tensors only"):
        public(*inputs(1, 1, 8, 8, 64), impl="gpu")


def test_spec_on_a_card(monkeypatch):
    off = {"smooth_q": False, "smooth_v": True, "hadamard": False}
    monkeypatch.setattr(support, "capability", lambda device: (8, 0))
    spec = spec_of("int8", torch.device("cuda"), **off)
    assert (spec.values, spec.granularity, spec.q_bits, spec.block_q) == ("fp16", "token", 0, 128)


@pytest.mark.skipif(INTERPRETED, reason="no card to measure on")
def test_auto_measures_on_the_card_and_says_what_it_found(monkeypatch, tmp_path):
    """What "auto" runs is right, and its choice is kept for the next process."""
    store = tmp_path / "gpu.json"
    monkeypatch.setattr(tuning, "cache_file", lambda device: store)
    monkeypatch.setattr(tuning, "_memory", {})
    q, k, v = (torch.randn(1, 4, 4096, 128, device=DEVICE).bfloat16() for _ in range(3))
    reason = dispatch.why_not_worth(q, k, v, "int8")
    (choice,) = tuning._read(store).values()
    assert reason == choice.why_not and choice.gain is not None and not choice.note
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert relative(public(q, k, v), exact) < tuning.TOLERANCE["e4m3"]
    assert dispatch.why_not_worth(q, k[:, :, :100], v[:, :, :100], "int8")


@pytest.mark.skipif(INTERPRETED, reason="CUDA graphs are captured on a card")
def test_a_captured_graph_replays_with_new_inputs():
    q, k, v = (torch.randn(1, 2, 512, 64, device=DEVICE).half() for _ in range(3))
    public(q, k, v, impl="gpu")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = public(q, k, v, impl="gpu")
    for x in (q, k, v):
        x.copy_(torch.randn_like(x))
    graph.replay()
    assert torch.equal(out, public(q, k, v, impl="gpu"))


def test_a_captured_call_runs_the_tile_that_is_known(monkeypatch):
    """Nothing can be measured in a CUDA graph, but what was measured before still holds."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    known = tuning.Choice(Tile(64, 64, 4, 3), 2.0)
    monkeypatch.setattr(tuning, "_memory", {"0 float16 64 64 e4m3 2048": known})

    def choose(dim):
        q = SimpleNamespace(
            device=torch.device("cuda", 0), shape=(1, 2, 3000, dim), dtype=torch.float16
        )
        return tuning.choose(q, dim, 3000, "e4m3", None)

    assert choose(64) is known
    assert choose(128) == tuning.Choice(candidates("e4m3", 128)[0])


def test_tuning_keeps_the_fastest_right_tile(monkeypatch, tmp_path):
    """Times come from a table here; a wrong tile is out however fast it is."""
    tiles = (Tile(128, 64, 8, 2), Tile(64, 64, 4, 2), Tile(128, 128, 8, 2))
    q = torch.randn(1, 1, 64, 64)
    full = torch.nn.functional.scaled_dot_product_attention
    ran = []

    def run(q, k, v, tile):
        ran.append(tile)
        if tile == tiles[2]:
            raise RuntimeError("out of shared memory")
        return full(q, k, v) * (2.0 if tile == tiles[0] else 1.0)

    monkeypatch.setattr(
        tuning, "alternate", lambda jobs, device: [[j() for j in jobs], 1.0, 3.0][1:]
    )
    choice = tuning.measure(q, 64, 64, tiles, run, 0.1)
    assert (
        choice == tuning.Choice(tiles[1], 3.0) and choice.why_not == "" and set(ran) == set(tiles)
    )
    monkeypatch.setattr(tuning, "alternate", lambda jobs, device: [2.0, 1.0])
    assert "measured 0.50x" in tuning.measure(q, 64, 64, tiles, run, 0.1).why_not
    assert "no tile" in tuning.measure(q, 64, 64, tiles[:1], run, 0.1).why_not
    path = tmp_path / "a" / "gpu.json"
    tuning._write(path, {"bf16 64 64": choice})
    assert tuning._read(path) == {"bf16 64 64": choice}
    path.write_text("{")
    assert tuning._read(path) == {} == tuning._read(tmp_path / "none.json")
