"""Keys and values packed once for several calls: the same bits, and nothing is left behind."""

from __future__ import annotations

import threading
from functools import partial

import pytest
import torch
from helpers import tensors as random_tensors
from helpers.card import DEVICE, WHY_NO_FP4, let_interpret
from helpers.proofs import leading

from accel.kernels import shared_keys as module
from accel.kernels.attention import attention
from accel.kernels.cpu.attention import scratch_bytes
from accel.kernels.cpu.native import library
from accel.kernels.shared_keys import shared_keys

SLICES = 3


qkv = partial(random_tensors.qkv, batch=2, mean=0.5)


def sliced(q, k, v, *, attn_mask=None, impl="cpu", **options):
    """Output and log-sum-exp, a slice of the queries at a time."""
    parts = []
    rows = 0
    for part in q.chunk(SLICES, 2):
        mask = attn_mask
        if mask is not None and mask.shape[-2] > 1:
            mask = mask[..., rows : rows + part.shape[2], :].clone()
        rows += part.shape[2]
        parts.append(
            attention(part, k, v, impl=impl, attn_mask=mask, enable_gqa=True, return_lse=True,
                      **options)
        )  # fmt: skip
    return [torch.cat(x, 2) for x in zip(*parts, strict=True)]


def assert_same(q, k, v, made=1, **options):
    """Sliced calls give the same bits in a context, where K and V are packed ``made`` times."""
    alone = sliced(q, k, v, **options)
    before = alive()
    with shared_keys() as store:
        together = sliced(q, k, v, **options)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    calls = len(q.chunk(SLICES, 2))
    assert (store.made, store.found) == (made, calls - made)
    assert alive() == before


def alive():
    return library().lib.accel_attention_alive()


# --------------------------------------------------------------------------------------------- cpu


@pytest.mark.parametrize("precision", ["int8", "int6", "int4"])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 130), (97, 128), (250, 257)])
def test_lengths(precision, queries, keys):
    assert_same(*qkv(queries, keys), precision=precision)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [
    {}, {"smooth_q": True}, {"smooth_v": True}, {"hadamard": True},
    {"smooth_q": True, "smooth_v": True, "hadamard": True},
], ids="+".join)  # fmt: skip
def test_options_and_dtypes(dtype, options):
    assert_same(*qkv(150, 140, 80, value_dim=24, dtype=dtype), **options)


@pytest.mark.parametrize("key_heads", [1, 2])
def test_grouped_queries(key_heads):
    assert_same(*qkv(100, 133, heads=4, key_heads=key_heads))


def test_strided_views():
    fused = torch.randn(2, 140, 3, 4, 64)
    assert_same(*(x.transpose(1, 2) for x in fused.unbind(2)))


def keep(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1)) > 0.4


@pytest.mark.parametrize(("options", "made"), [
    ({"attn_mask": keep(2, 1, 1, 133)}, 1),
    ({"attn_mask": keep(2, 1, 1, 133).expand(2, 2, 100, 133)}, 1),
    ({"attn_mask": torch.where(keep(2, 1, 1, 133), 0.0, -10000.0)}, 1),
    ({"attn_mask": torch.randn(100, 133)}, 1),
    ({"key_lengths": torch.tensor([133, 60])}, 1),
    ({"attn_mask": torch.ones(100, 133, dtype=torch.bool).tril(33)}, SLICES),
], ids=["keys", "rows alike", "additive", "bias", "lengths", "rows hide other keys"])  # fmt: skip
def test_masks(options, made):
    assert_same(*qkv(100, 133), made=made, **options)


def test_only_the_latest_packing_of_keys_is_kept():
    q, k, v = qkv(100, 133)
    before = alive()
    with shared_keys():
        for lengths in ([133, 60], [70, 133], [133, 133]):
            attention(q, k, v, impl="cpu", key_lengths=torch.tensor(lengths))
            assert alive() == before + 1


@pytest.mark.parametrize("which", [1, 2])
def test_changed_keys_are_packed_anew(which):
    tensors = qkv(100, 133)
    with shared_keys() as store:
        attention(*tensors, impl="cpu")
        tensors[which][:, :, 7] += 3.0
        changed = attention(*tensors, impl="cpu")
    assert store.made == 2
    assert torch.equal(changed, attention(*tensors, impl="cpu"))


def test_other_keys_and_other_options_are_packed_by_themselves():
    q, k, v = qkv(100, 133)
    calls = [
        (k, v, {}), (v, k, {}), (k, v.clone(), {}), (k[:, :, :70], v[:, :, :70], {}),
        (k.flip(-1), v, {}), (k.transpose(0, 1), v.transpose(0, 1), {}),
        *((k, v, {"precision": p}) for p in ("int6", "int4")),
        *((k, v, {o: True}) for o in ("smooth_v", "hadamard")),
    ]  # fmt: skip
    alone = [attention(q, a, b, impl="cpu", **options) for a, b, options in calls]
    with shared_keys() as store:
        for _ in range(2):
            together = [attention(q, a, b, impl="cpu", **options) for a, b, options in calls]
            assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert store.made == store.found == len(calls)


def test_memory_is_not_taken_for_other_keys_while_it_is_known():
    q, k, v = qkv(100, 133)
    places = set()
    with shared_keys() as store:
        for i in range(5):
            other = k + i
            places.add(other.data_ptr())
            attention(q, other, v, impl="cpu")
            del other
    assert len(places) == store.made == 5


def test_inference_tensors_are_packed_for_every_call():
    with torch.inference_mode():
        assert_same_alone(*qkv(100, 133))


def assert_same_alone(q, k, v):
    alone, before = attention(q, k, v, impl="cpu"), alive()
    with shared_keys() as store:
        assert torch.equal(attention(q, k, v, impl="cpu"), alone)
        assert alive() == before and store.made == 0


def test_everything_is_freed_after_an_exception_and_contexts_nest():
    q, k, v = qkv(100, 133)
    before = alive()
    with pytest.raises(KeyError), shared_keys() as outer:
        attention(q, k, v, impl="cpu")
        with shared_keys() as inner:
            attention(q, k, v, impl="cpu")
            assert alive() == before + 2
        assert alive() == before + 1 and inner.made == 1
        attention(q, k, v, impl="cpu")
        assert outer.found == 1
        raise KeyError
    assert alive() == before
    assert not module.shares((k, v))
    attention(q, k, v, impl="cpu")
    assert alive() == before and outer.made == 1


def test_other_threads_and_calls_apart_keep_nothing():
    q, k, v = qkv(100, 133)
    with shared_keys() as store:
        thread = threading.Thread(target=attention, args=(q, k, v), kwargs={"impl": "cpu"})
        thread.start()
        thread.join()
        with module.apart():
            attention(q, k, v, impl="cpu")
        assert store.made == 0 and module.shares((k, v))


def test_no_memory_is_the_same_error(monkeypatch):
    monkeypatch.setattr(library().lib, "accel_attention_pack", lambda call: None)
    with shared_keys(), pytest.raises(MemoryError, match="packed keys and values of 133 tokens"):
        attention(*qkv(100, 133), impl="cpu")


def test_scratch_is_that_of_all_heads():
    q, k, v = qkv(2000, 1000, 128, heads=8)
    alone = scratch_bytes(q, k, v, 8)
    with shared_keys():
        together = scratch_bytes(q, k, v, 8)
    pair = 1024 * (128 + 128)
    pairs, threads = 2 * 8, torch.get_num_threads()
    assert pairs * pair <= together < 1.06 * pairs * pair + 300_000 * threads
    assert together - alone >= (pairs - 1) * pair
    assert scratch_bytes(q, k, v, 8) == alone


def test_a_packing_is_used_on_the_instruction_set_that_made_it():
    q, k, v = qkv(100, 133)
    alone = attention(q, k, v, impl="cpu")
    try:
        with shared_keys() as store:
            attention(q, k, v, impl="cpu")
            library().lib.accel_choose_isa(b"scalar")
            assert torch.equal(attention(q, k, v, impl="cpu"), alone) and store.found == 1
    finally:
        library().lib.accel_choose_isa(None)


# --------------------------------------------------------------------------------------------- gpu


@pytest.fixture
def packings(monkeypatch):
    """The Triton kernels; how often they packed K and V, by ``len``."""
    pytest.importorskip("triton", reason="triton is not installed")
    from accel.kernels.gpu import attention as gpu
    from accel.kernels.gpu.layout import Tile
    from accel.kernels.gpu.tuning import Choice

    let_interpret(monkeypatch)
    first = Tile(128, 64, 8, 2)  # measuring which is fastest would pack too
    monkeypatch.setattr(gpu, "choose_tile", lambda *a: Choice(first))
    calls, pack = [], gpu.pack
    monkeypatch.setattr(gpu, "pack", lambda *a, **k: calls.append(1) or pack(*a, **k))
    return calls


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "options"), leading(1, [
    (torch.bfloat16, {"smooth_v": True}), (torch.float32, {}), (torch.float16, {"hadamard": True}),
    (torch.float32, {"smooth_q": True, "smooth_v": True, "hadamard": True}),
]), ids=str)  # fmt: skip
def test_triton(dtype, options, packings):
    tensors = [x.to(DEVICE) for x in qkv(150, 133, heads=4, key_heads=2, dtype=dtype)]
    alone = sliced(*tensors, impl="gpu", **options)
    assert len(packings) == SLICES
    with shared_keys():
        together = sliced(*tensors, impl="gpu", **options)
    assert len(packings) == SLICES + 1
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("options", "made"), leading(1, [
    ({"attn_mask": keep(2, 1, 1, 133)}, 1),
    ({"key_lengths": torch.tensor([133, 60])}, 1),
    ({"attn_mask": torch.ones(100, 133, dtype=torch.bool).tril(33)}, SLICES),
]), ids=["keys", "lengths", "rows hide other keys"])  # fmt: skip
def test_triton_masks(options, made, packings):
    tensors = [x.to(DEVICE) for x in qkv(100, 133)]
    options = {name: x.to(DEVICE) for name, x in options.items()}
    alone = sliced(*tensors, impl="gpu", **options)
    with shared_keys():
        together = sliced(*tensors, impl="gpu", **options)
    assert len(packings) == SLICES + made
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_triton_changed_keys_and_formats(packings):
    from accel.kernels.attention_call import AttentionCall
    from accel.kernels.gpu.attention import attention as triton
    from accel.kernels.gpu.layout import Tile

    q, k, v = (x.to(DEVICE) for x in qkv(60, 70))
    call = AttentionCall(q, k, v, scale=0.125)
    formats = ["e4m3", "fp16", *(() if WHY_NO_FP4 else ("e2m1",))]
    with shared_keys():
        for values in formats:
            for _ in range(2):
                triton(call, tile=Tile(128, 64, 4, 2), values=values)
        assert len(packings) == len(formats)
        k += 1.0
        triton(call, tile=Tile(128, 64, 4, 2), values="e4m3")
    assert len(packings) == len(formats) + 1
