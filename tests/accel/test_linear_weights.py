"""Weights that change, move, are cast, or are quantized already: a packed copy is never stale."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers.hooks import apply_group_offloading
from helpers import linear_kernels
from helpers.families import FAMILIES
from helpers.linear_kernels import at_step, called, ours, site
from helpers.runs import forward, in_dtype
from peft import LoraConfig

import accel
from accel import Rule
from accel.linear.linear_layers import linear_layers


@pytest.fixture(autouse=True)
def stand_in(monkeypatch, tmp_path):
    linear_kernels.put_in(monkeypatch, tmp_path)


@pytest.fixture
def wan():
    model, inputs = FAMILIES["wan"]()
    return model.requires_grad_(False), inputs


def fresh(model, inputs, **options):
    """Return what a copy of the model gives that is patched as it is now."""
    twin = copy.deepcopy(model)
    with accel.patched(twin, plan=ours(**options)):
        return forward(twin, inputs)


# ------------------------------------------------------------------------------------- changes


def in_place(layer):
    layer.weight.mul_(2)


def through_data(layer):
    layer.weight.data += 1


def copied(layer):
    layer.weight.copy_(layer.weight.flip(0))


def loaded(layer):
    layer.load_state_dict({k: v + 1 for k, v in layer.state_dict().items()})


def other_memory(layer):
    layer.weight.data = layer.weight.data * 3


def other_parameter(layer):
    layer.weight = torch.nn.Parameter(-layer.weight.flip(1), requires_grad=False)


CHANGES = [in_place, through_data, copied, loaded, other_memory, other_parameter]
MOMENTS = {"same step": (3, 1), "another step": (4, 1), "another run": (3, 2), "unknown": (None, 1)}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_weight_is_packed_again(change, moment):
    layer = torch.nn.Linear(48, 40).requires_grad_(False)
    x, state = torch.randn(64, 48), at_step()
    at = site(state, check_rows=0)
    called(at, layer, x)
    change(layer)
    state.step, run = MOMENTS[moment]
    state.refresh = lambda: run
    out = called(at, layer, x)
    assert torch.equal(out, called(site(), layer, x))
    assert at.weight.changes == 1 and at.weight.packs == 2


@pytest.mark.parametrize("moment", MOMENTS)
def test_one_value_that_changed_through_data_is_seen_where_all_are_looked_at(moment):
    layer = torch.nn.Linear(48, 40).requires_grad_(False)
    x, state = torch.randn(64, 48), at_step()
    at = site(state)
    called(at, layer, x)
    layer.weight.data[0, 0] += 1
    state.step, run = MOMENTS[moment]
    state.refresh = lambda: run
    called(at, layer, x)
    assert at.weight.changes == (moment in ("another run", "unknown"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [(48, 40), (7, 5), (1, 3), (33, 70)])
def test_a_weight_that_only_moved_is_not_packed_again(dtype, size):
    layer = torch.nn.Linear(*size, dtype=dtype).requires_grad_(False)
    layer.weight.data[0, 0] = float("nan")  # equal to itself, as bits
    x, at = torch.randn(64, size[0], dtype=dtype), site(at_step())
    for _ in range(3):
        called(at, layer, x)
        layer.weight.data = layer.weight.data.clone()
    assert at.weight.packs == 1 and not at.weight.changes


def test_weights_of_inference_mode_have_no_version_and_are_looked_at():
    with torch.inference_mode():
        layer = torch.nn.Linear(48, 40)
        x, at = torch.randn(64, 48), site()
        called(at, layer, x)
        layer.weight.mul_(2)
        assert torch.equal(called(at, layer, x), called(site(), layer, x))
    assert at.weight.changes == 1


# --------------------------------------------------------------------------------------- LoRAs


def adapter():
    return LoraConfig(r=2, target_modules=["to_q", "to_v", "net.2"], init_lora_weights=False)


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_adapter_stays_exact_on_an_8_bit_layer(wan, when):
    model = wan[0]
    if when == "before":
        model.add_adapter(adapter())
    handle = accel.patch(model, plan=ours())
    if when == "after":
        forward(*wan)
        model.add_adapter(adapter())
    out = forward(*wan)
    assert "blocks.0.attn1.to_q" in handle.layers and len(handle.layers) == 20
    assert not any("lora" in name or "base_layer" in name for name in handle.layers)
    assert all(site.record.ran for site in handle.layers.values())
    accel.unpatch(model)
    exact = forward(*wan)
    assert not any("forward" in vars(part) for part in model.modules())
    assert 0 < (out - exact).abs().mean() < 0.01 * exact.abs().mean()
    model.disable_adapters()
    assert (out - forward(*wan)).abs().mean() > 0.02 * exact.abs().mean()


def test_fusing_and_unfusing_adapters_packs_again(wan):
    model, _ = wan
    model.add_adapter(adapter())
    handle = accel.patch(model, plan=ours())
    forward(*wan)
    packs = {name: s.weight.packs for name, s in handle.layers.items()}
    at = (model.blocks[0].attn1.to_q.base_layer.weight, "blocks.0.attn1.to_q")
    before = at[0]._version, at[0].data_ptr()
    model.fuse_lora()
    assert (at[0]._version, at[0].data_ptr()) == before  # why its values have to be looked at
    fused = forward(*wan)
    assert torch.equal(fused, fresh(*wan))
    changed = {name for name, s in handle.layers.items() if s.weight.packs > packs[name]}
    assert changed == {n for n in handle.layers if n.endswith(("to_q", "to_v", "net.2"))}
    assert "packed again, since they changed: 10" in str(handle.report())
    model.unfuse_lora()
    assert torch.equal(forward(*wan), fresh(*wan))
    accel.unpatch(model)


# -------------------------------------------------------------------- offloaded, cast, quantized


def left(model):
    return set(linear_layers("", model, several=False)[1].values())


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_layers_whose_weights_are_offloaded_are_left_alone(wan, kind):
    model = wan[0]
    plain = forward(*wan)
    more = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    cpu = torch.device("cpu")
    apply_group_offloading(model, cpu, cpu, offload_type=kind, **more)
    with accel.patched(model, plan=ours()) as handle:
        assert torch.equal(forward(*wan), plain)
        text = str(handle.report())
    assert "offloaded between calls; a packed one would stay" in text and len(left(model)) == 1


def test_accelerates_offload_and_weights_on_meta_are_left_alone(wan):
    from accelerate import cpu_offload

    model, _ = wan
    plain = forward(*wan)
    meta = copy.deepcopy(model).to("meta")
    assert left(meta) == {"its weight is offloaded between calls; a packed one would stay"}
    cpu_offload(model, torch.device("cpu"))
    with accel.patched(model, plan=ours()) as handle:
        assert torch.equal(forward(*wan), plain) and not handle.report().linear.ran
    assert left(model) == left(meta)


def test_weights_cast_for_each_call_are_packed_once(wan):
    model, _ = wan
    model.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    plain = forward(*wan)
    handle = accel.patch(model, plan=ours())
    out = forward(*wan)
    assert torch.equal(forward(*wan), out) and not torch.equal(out, plain)
    assert all(s.weight.packs == 1 for s in handle.layers.values() if s.record.ran)
    assert sum(sum(s.record.ran.values()) for s in handle.layers.values()) == 2 * 20
    assert model.blocks[0].attn1.to_q.weight.dtype == torch.float8_e4m3fn
    accel.unpatch(model)
    assert torch.equal(forward(*wan), plain)


def test_weights_quantized_by_torchao_are_left_alone(wan):
    quantization = pytest.importorskip("torchao.quantization")
    model, _ = wan
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    plain = forward(*wan)
    with accel.patched(model, plan=ours()) as handle:
        assert torch.equal(forward(*wan), plain)
        report = handle.report()
    assert not report.layers and "quantized already" in str(report)
    assert sum(map(len, report.linear.left.values())) == 20


class OwnLinear(torch.nn.Linear):
    """Computes in its own way, as bitsandbytes' and GGUF's layers do."""

    def forward(self, x):
        return super().forward(x) * 2


class Renamed(torch.nn.Linear):
    """A subclass without a forward of its own."""


def test_subclasses_are_sites_if_their_forward_is_torchs(wan):
    model, _ = wan
    attention = model.blocks[0].attn1
    attention.to_q, attention.to_k = OwnLinear(24, 24), Renamed(24, 24)
    attention.to_v.weight = torch.nn.Parameter(
        torch.zeros(24, 24, dtype=torch.int8), requires_grad=False
    )
    torch.nn.utils.parametrizations.weight_norm(attention.to_out[0])
    found, others = linear_layers("", model, several=False)
    assert others == {
        "blocks.0.attn1.to_q": "a OwnLinear, which computes in its own way",
        "blocks.0.attn1.to_v": "its weight is int8, quantized already",
        "blocks.0.attn1.to_out.0": "its weight is computed anew for each call",
    }
    assert "blocks.0.attn1.to_k" in found and len(found) == 17


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_and_cast_while_patched(wan, dtype):
    model, inputs = wan
    accel.patch(model, plan=ours())
    forward(*wan)
    model, inputs = in_dtype((model, inputs), dtype)
    out = forward(model, inputs)
    assert out.dtype == dtype and torch.equal(out, fresh(model, inputs))
    accel.unpatch(model)
    exact = forward(model, inputs).float()
    assert (out.float() - exact).abs().mean() < 0.02 * exact.abs().mean()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a card to move weights from")
def test_weights_kept_on_the_cpu_come_back():
    model, inputs = FAMILIES["wan"]()
    model = model.requires_grad_(False).cuda()
    inputs = {k: v.cuda() if torch.is_tensor(v) else v for k, v in inputs.items()}
    before = {k: v.clone() for k, v in model.state_dict().items()}
    plain, layer = forward(model, inputs), model.blocks[0].attn1.to_q
    accel.patch(model, plan=ours(keep="cpu", rules=(Rule("full", "*.ffn.*"),)))
    out = forward(model, inputs)
    assert layer.weight.is_cpu and model.blocks[0].ffn.net[2].weight.is_cuda
    assert torch.equal(forward(model, inputs), out)
    accel.unpatch(model)
    assert all(v.is_cuda and torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(forward(model, inputs), plain)
