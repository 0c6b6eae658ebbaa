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
from accel.kernels.attention_call import AttentionCall, Options
from accel.kernels.dispatch import Decision, decide
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


def card(monkeypatch, cc, choice):
    """``decide`` as on a card of compute capability ``cc`` where measuring gives ``choice``, and
    the precisions that were measured.
    """
    measured = []
    monkeypatch.setattr(support, "why_not_gpu", lambda device: "")
    monkeypatch.setattr(dispatch, "_unreadable", lambda call: "")  # what stands in has no memory
    monkeypatch.setattr(support, "capability", lambda device: cc)
    monkeypatch.setattr(support, "triton_version", lambda: support.FP4_TRITON)
    monkeypatch.setattr(
        dispatch, "_choice", lambda call, precision: measured.append(precision) or choice
    )

    def of(precision, impl="auto", keys=4096, dim=64):
        q, k = (
            SimpleNamespace(
                shape=(1, 2, n, dim),
                device=torch.device("cuda", 0),
                is_cpu=False,
                is_cuda=True,
                numel=lambda: 1,
            )
            for n in (4096, keys)
        )
        return decide(AttentionCall(q, k, k), precision, impl)

    return of, measured


def test_a_card_runs_the_asked_precision_or_a_more_exact_one(monkeypatch):
    fast = tuning.Choice(Tile(64, 64, 4, 3), 2.0)
    old, _ = card(monkeypatch, (9, 0), fast)
    why = support.why_not_precision("int4", (9, 0))
    assert old("int4") == Decision("int4", "int8", "gpu", why, fast.tile) and why
    assert old("int8") == Decision("int8", "int8", "gpu", "", fast.tile)
    new, measured = card(monkeypatch, (12, 0), fast)
    assert new("int4") == Decision("int4", "int4", "gpu", "", fast.tile)
    assert new("int4", dim=256).precision == "int8"
    assert measured == ["int4", "int8"]  # once for each call


def test_a_card_leaves_to_torch_what_does_not_pay(monkeypatch):
    slow = tuning.Choice(Tile(64, 64, 4, 3), 0.5)
    of, measured = card(monkeypatch, (9, 0), slow)
    assert of("int8") == Decision("int8", "full", "torch", slow.why_not) and slow.why_not
    assert of("int4").why == slow.why_not and measured == ["int8", "int8"]
    short = of("int8", keys=2047)
    assert short.why == "2047 keys, quantized attention pays from 2048 on" and len(measured) == 2
    named = of("int8", impl="gpu", keys=100)  # a named one runs as asked
    assert named == Decision("int8", "int8", "gpu", "", slow.tile)
    with pytest.raises(RuntimeError, match=r"'int6' cannot run on this card: .*; use 'int8'"):
        of("int6", impl="gpu")


def test_the_cpu_is_no_card(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert "cuda tensors only" in support.why_not_gpu(torch.device("cpu"))
    with pytest.raises(RuntimeError, match="cuda tensors only"):
        public(*inputs(1, 1, 8, 8, 64), impl="gpu")


def test_spec_on_a_card(monkeypatch):
    monkeypatch.setattr(support, "capability", lambda device: (8, 0))
    spec = spec_of("int8", torch.device("cuda"), Options(smooth_v=True))
    assert (spec.values, spec.granularity, spec.q_bits, spec.block_q) == ("fp16", "token", 0, 128)


@pytest.mark.skipif(INTERPRETED, reason="no card to measure on")
def test_auto_measures_on_the_card_and_says_what_it_found(monkeypatch, tmp_path):
    """What "auto" runs is right, and its choice is kept for the next process."""
    store = tmp_path / "gpu.json"
    monkeypatch.setattr(tuning, "cache_file", lambda device: store)
    monkeypatch.setattr(tuning, "_memory", {})
    q, k, v = (torch.randn(1, 4, 4096, 128, device=DEVICE).bfloat16() for _ in range(3))
    decision = decide(AttentionCall(q, k, v), "int8", "auto")
    (choice,) = tuning._read(store).values()
    assert decision.why == choice.why_not and choice.gain is not None and not choice.note
    assert decision.impl == ("torch" if choice.why_not else "gpu")
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert relative(public(q, k, v), exact) < tuning.TOLERANCE["e4m3"]
    short = decide(AttentionCall(q, k[:, :, :100], v[:, :, :100]), "int8", "auto")
    assert short.precision == "full" and "100 keys" in short.why


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
