"""The backend of diffusers' attention, in one process; and the private names its bridge uses."""

from __future__ import annotations

import copy
import logging
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from diffusers.models import attention_dispatch as dispatch
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend
from helpers.families import FAMILIES, rand
from helpers.proofs import backends
from helpers.runs import forward

import accel
from accel.attention import backend
from accel.core import diffusers_backends as bridge

INT8 = ("int8", "cpu")


@pytest.fixture(autouse=True)
def registered():
    """The backends, and diffusers as it was before them afterwards."""
    accel.register_backend()
    backend.record.clear()
    yield
    accel.unregister_backend()


def layout(queries=200, keys=None, heads=2, dim=32, dtype=torch.float32, key_heads=None):
    """query, key, value [B, T, H, D] of N(0, 1)."""
    keys = queries if keys is None else keys
    sizes = (queries, heads), (keys, key_heads or heads), (keys, key_heads or heads)
    return [torch.randn(1, tokens, h, dim).to(dtype) for tokens, h in sizes]


def attend(*tensors, name="accel", lse=False, **options):
    """diffusers' dispatch."""
    kwargs = {"return_lse": True} if lse else None
    return dispatch.dispatch_attention_fn(
        *tensors, backend=AttentionBackendName(name), attention_kwargs=kwargs, **options
    )


def native(*tensors, **options):
    return attend(*tensors, name="native", **options)


def error(found, wanted):
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def snapshot():
    """Everything that a registration changes."""
    names, registry = AttentionBackendName, dispatch._AttentionBackendRegistry
    return (
        dict(names._member_map_), dict(names._value2member_map_), list(names._member_names_),
        sorted(vars(names)), dict(registry._backends), dict(registry._constraints),
        dict(registry._supported_arg_names), set(registry._supports_context_parallel),
        registry._active_backend,
    )  # fmt: skip


# ------------------------------------------------------------------------------------ registration


def test_models_take_the_backend_by_name_and_give_it_back() -> None:
    model, inputs = FAMILIES["wan"]()
    inputs["hidden_states"] = rand(1, 4, 5, 16, 16)
    plain = forward(model, inputs)
    model.set_attention_backend("accel")
    out = forward(model, inputs)
    assert backend.record.ran == {INT8: 2}
    assert backend.record.kept == {"12 keys, quantized attention pays from 128 on": 2}
    assert 0 < error(out, plain) < 1e-3
    model.reset_attention_backend()
    with attention_backend("accel_int4"):
        forward(model, inputs)
    assert backend.record.ran == {INT8: 2, ("int4", "cpu"): 2}
    model.set_attention_backend("native")
    assert torch.equal(forward(model, inputs), plain)


def test_what_registration_changes_is_restored() -> None:
    accel.unregister_backend()
    before = snapshot()
    for _ in range(2):
        accel.register_backend()
        accel.register_backend()
        assert {m.value for m in AttentionBackendName} >= set(backend.BACKENDS)
        assert AttentionBackendName.ACCEL is AttentionBackendName("accel")
        accel.unregister_backend()
        accel.unregister_backend()
        assert snapshot() == before
    with pytest.raises(ValueError, match="must be one of"):
        FAMILIES["wan"]()[0].set_attention_backend("accel")


def test_an_active_backend_gives_way_to_the_native_one() -> None:
    registry = dispatch._AttentionBackendRegistry
    registry.set_active_backend(AttentionBackendName("accel"))
    accel.unregister_backend()
    assert registry._active_backend is AttentionBackendName.NATIVE


def test_a_name_that_diffusers_has_is_not_taken() -> None:
    before = snapshot()
    with pytest.raises(ValueError, match="has an attention backend 'native' already"):
        bridge.add_backend("native", print)
    assert snapshot() == before


def test_the_members_of_the_enum_are_whole() -> None:
    for name in backend.BACKENDS:
        member = AttentionBackendName(name)
        assert member.value == member == name and member.name == name.upper()
        assert copy.deepcopy(member) is member and pickle.loads(pickle.dumps(member)) is member
        assert AttentionBackendName.__members__[name.upper()] is member


def test_the_bridge_finds_what_it_needs_of_diffusers() -> None:
    for name in ("_check_device", "_check_shape", "_wait_tensor"):
        assert callable(getattr(dispatch, name))
    assert callable(dispatch._templated_context_parallel_attention)
    model, _ = FAMILIES["wan"]()
    assert callable(model._resolve_parallel_config) and model._parallel_config is None
    assert model.blocks[0].attn1.processor._parallel_config is None


def test_checks_of_diffusers_apply(monkeypatch) -> None:
    monkeypatch.setattr(dispatch._AttentionBackendRegistry, "_checks_enabled", True)
    q, k, v = layout()
    attend(q, k, v)
    with pytest.raises(ValueError, match="same head dimension"):
        attend(q, k[..., :8], v)


# ----------------------------------------------------------------------------------------- results


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("name", "precision", "bound"),
    [("accel", "int8", 0.03), ("accel_int6", "int6", 0.06), ("accel_int4", "int4", 0.2)],
)
def test_quantized_calls_are_near_torchs(name, precision, bound, dtype) -> None:
    q, k, v = layout(dtype=dtype)
    out = attend(q, k, v, name=name)
    assert out.shape == q.shape and out.dtype is dtype and out.is_contiguous()
    assert 0 < error(out, native(q.float(), k.float(), v.float())) < bound
    assert backend.record.ran == {(precision, "cpu"): 1}


MASKS = {
    "[B, Tk]": lambda: torch.rand(1, 210) > 0.3,
    "[B, 1, 1, Tk]": lambda: torch.rand(1, 1, 1, 210) > 0.3,
    "[Tq, Tk]": lambda: torch.randn(200, 210),
    "[B, H, 1, Tk]": lambda: torch.randn(1, 2, 1, 210),
    "[B, H, Tq, Tk]": lambda: torch.rand(1, 2, 200, 210) > 0.3,
    "[H, 1, Tk]": lambda: torch.randn(2, 1, 210),
}


@pytest.mark.parametrize("mask", MASKS)
def test_masks_are_those_of_the_native_backend(mask) -> None:
    q, k, v = layout(200, 210)
    given = {"attn_mask": MASKS[mask](), "scale": 0.2}
    assert error(attend(q, k, v, **given), native(q, k, v, **given)) < 0.04
    assert backend.record.ran == {INT8: 1}


def test_causal_and_grouped_heads() -> None:
    q, k, v = layout(200, heads=4, key_heads=2)
    given = {"is_causal": True, "enable_gqa": True}
    assert error(attend(q, k, v, **given), native(q, k, v, **given)) < 0.04
    assert backend.record.ran == {INT8: 1}


@pytest.mark.parametrize("name", ["accel", "accel_full"])
@pytest.mark.parametrize("tokens", [200, 20])
@pytest.mark.parametrize("masked", [False, True])
def test_log_sum_exp_is_natural_and_in_diffusers_layout(masked, tokens, name) -> None:
    """[B, T, H], as the ring merges it; fp32."""
    q, k, v = layout(tokens)
    mask = (torch.rand(1, 1, tokens, tokens) > 0.3).index_fill(2, torch.tensor([3]), False)
    out, lse = attend(q, k, v, name=name, lse=True, attn_mask=mask if masked else None)
    logits = torch.einsum("bqhd,bkhd->bhqk", q.double(), k.double()) * q.shape[-1] ** -0.5
    logits = logits.masked_fill(~mask, -math.inf) if masked else logits
    wanted = logits.logsumexp(-1).transpose(1, 2)
    assert lse.shape == q.shape[:-1] and lse.dtype is torch.float32 and lse.is_contiguous()
    quantized = name == "accel" and tokens == 200
    assert backend.record.ran == ({INT8: 1} if quantized else {})
    seen = wanted > -math.inf
    assert torch.equal(lse > -math.inf, seen) and bool(seen.all()) is not masked
    assert float((lse - wanted)[seen].abs().max()) < (0.05 if quantized else 1e-5)
    assert out.shape == q.shape and not out[~seen].any()


# ----------------------------------------------------------------------------------- left to torch


def reasons():
    return [*backend.record.kept]


def test_gradients_are_torchs() -> None:
    q, k, v = (x.requires_grad_() for x in layout())
    attend(q, k, v).square().sum().backward()
    found, q.grad = q.grad, None
    native(q, k, v).square().sum().backward()
    assert torch.equal(found, q.grad) and reasons() == ["needs gradients"]
    with torch.no_grad():
        attend(q, k, v)
    assert backend.record.ran == {INT8: 1}
    with pytest.raises(ValueError, match=r"no log-sum-exp.*needs gradients"):
        attend(q, k, v, lse=True)


def test_dropout_is_torchs() -> None:
    q, k, v = layout()
    assert attend(q, k, torch.ones_like(v), dropout_p=0.5).std() > 0.01
    assert reasons() == ["has dropout"]


class Labelled(torch.Tensor):
    """A subclass of tensors."""


def test_what_no_kernel_reads_is_torchs() -> None:
    short = layout(20)
    assert torch.equal(attend(*short), native(*short))
    wide = [x.double() for x in layout()]
    assert torch.equal(attend(*wide), native(*wide))
    marked = [x.as_subclass(Labelled) for x in layout()]
    assert type(attend(*marked)) is Labelled and torch.equal(attend(*marked), native(*marked))
    meta = [x.to("meta") for x in layout()]
    assert attend(*meta).shape == meta[0].shape and attend(*meta).is_meta
    broad = layout()
    broad[1], broad[2] = broad[1][:, :, :1], broad[2][:, :, :1]
    assert torch.equal(attend(*broad), native(*broad))
    assert not backend.record.ran
    assert reasons() == [
        "20 keys, quantized attention pays from 128 on", "dtype float64",
        "a tensor of class Labelled", "no quantized kernel for meta in this version",
        "query heads 2 against key heads 1: equal, or a multiple with enable_gqa=True",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no log-sum-exp for this call: query heads 2"):
        attend(*broad, lse=True)


def test_a_mask_beside_is_causal_is_torchs() -> None:
    """Torch takes it on some devices and refuses it on others."""
    q, k, v = layout()
    given = {"attn_mask": torch.randn(200, 200), "is_causal": True}
    assert torch.equal(attend(q, k, v, **given), native(q, k, v, **given))
    assert reasons() == ["a mask beside is_causal"]


def test_what_torch_refuses_is_refused() -> None:
    q, k, v = layout()
    for given in ({"attn_mask": torch.ones(200, 7)}, {"attn_mask": torch.ones(200, 200).long()}):
        for name in ("native", "accel"):
            with pytest.raises(RuntimeError):
                attend(q, k, v, name=name, **given)


def test_autocast_casts_as_torchs_attention_does() -> None:
    q, k, v = layout()
    with torch.autocast("cpu", torch.bfloat16):
        assert attend(q, k, v).dtype is native(q, k, v).dtype is torch.bfloat16
    assert backend.record.ran == {INT8: 1}


@pytest.mark.parametrize("lse", [False, True])
def test_a_result_that_is_not_finite_is_computed_again(lse, monkeypatch, caplog) -> None:
    q, k, v = layout()
    real = backend.run

    def broken(call, decision):
        out, sums = real(call, decision)
        return (out * math.inf, sums) if decision.impl == "cpu" else (out, sums)

    monkeypatch.setattr(backend, "run", broken)
    out = attend(q, k, v, lse=lse)
    wanted = native(q, k, v)
    torch.testing.assert_close(out[0] if lse else out, wanted)
    assert backend.record.recomputed == {"int8 by cpu: result not finite": 1}
    assert not backend.record.ran and "not finite" in caplog.text


def test_a_kernel_that_fails_is_replaced_by_torch(monkeypatch, caplog) -> None:
    def fails(call, decision):
        raise MemoryError("no memory")

    monkeypatch.setattr(backend, "run", fails)
    q, k, v = layout()
    assert torch.equal(attend(q, k, v), native(q, k, v))
    assert backend.record.recomputed == {"int8 by cpu failed: MemoryError: no memory": 1}
    assert [r.levelname for r in caplog.records if r.name == "accel"] == ["WARNING"]


def test_a_reason_is_logged_once(caplog) -> None:
    caplog.set_level(logging.INFO, "accel")
    for _ in range(3):
        attend(*layout(20))
    lines = [r.getMessage() for r in caplog.records if r.name == "accel"]
    assert lines == [
        "attention backend: at full precision: 20 keys, quantized attention pays from 128 on"
    ]
    assert backend.record.kept.total() == 3


def test_in_a_patch_the_backend_is_what_full_precision_means() -> None:
    model, inputs = FAMILIES["wan"]()
    inputs["hidden_states"] = rand(1, 4, 5, 16, 16)
    model.set_attention_backend("accel")
    with accel.patched(model, plan=accel.Plan("t", accel.AttentionConfig("int8"))):
        forward(model, inputs)
        text = str(accel.report(model))
    assert "the pipeline's own backend is 'accel', the same kernel" in text
    assert "full precision here is accel" in text and backend.record.ran == {INT8: 2}
    forward(model, inputs)
    assert backend.record.ran == {INT8: 4}


# ------------------------------------------------------------------------------------------ graphs


def test_the_op_keeps_the_contract_of_torch_library() -> None:
    q, k, v = layout(130)
    mask = torch.rand(1, 1, 1, 130) > 0.3
    for given in ((None, True, None, False, False), (mask, False, 0.2, False, True)):
        torch.library.opcheck(torch.ops.accel.backend_attention, (q, k, v, *given, "int8"))


@pytest.mark.slow
@backends
@pytest.mark.parametrize("name", ["wan", "flux"])
def test_a_compiled_denoiser_has_one_opaque_op_a_call(name, compiler) -> None:
    model, inputs = FAMILIES[name]()
    if name == "wan":
        inputs["hidden_states"] = rand(1, 4, 5, 16, 16)
    else:
        inputs["encoder_hidden_states"], inputs["txt_ids"] = rand(1, 100, 32), torch.zeros(100, 3)
    model.eval().set_attention_backend("accel")
    eager = forward(model, inputs)
    seen = dict(backend.record.ran)
    backend.record.clear()
    out = forward(torch.compile(model, fullgraph=True, backend=compiler), inputs)
    torch.testing.assert_close(out, eager, atol=1e-3, rtol=1e-3)
    assert error(out, eager) < 1e-4
    assert backend.record.ran == seen == {INT8: 2}


def test_a_graph_holds_the_op_and_gives_equal_bits() -> None:
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def call(*tensors):
        out, lse = attend(*tensors, lse=True)
        return out + 1, lse

    given = layout()
    eager = call(*given)
    found = torch.compile(call, fullgraph=True, backend=keep)(*given)
    assert all(map(torch.equal, found, eager)) and backend.record.ran == {INT8: 2}
    names = [str(node.target) for graph in graphs for node in graph.graph.nodes]
    assert sum("accel.backend_attention" in name for name in names) == 1
    assert not any("scaled_dot_product" in name for name in names)


def test_a_compiled_call_that_is_trained_is_torchs() -> None:
    q, k, v = (x.requires_grad_() for x in layout())
    call = torch.compile(lambda *x: attend(*x).sum(), fullgraph=True, backend="aot_eager")
    call(q, k, v).backward()
    found, q.grad = q.grad, None
    F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).sum().backward()
    torch.testing.assert_close(found, q.grad)
    assert not backend.record.ran
