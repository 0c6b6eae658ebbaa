"""8-bit layers on whole models: only instances change, everything comes back, plans and reports."""

from __future__ import annotations

import copy
import gc
import io
import json
import pickle
import weakref

import pytest
import torch
from helpers import linear_kernels
from helpers.families import FAMILIES
from helpers.linear_kernels import ours
from helpers.rehash_pipe import Pipe
from helpers.runs import forward

import accel
from accel import LinearConfig, Plan, RehashConfig, Rule
from accel.core.stand_in import standing
from accel.core.structure import gelu_form
from accel.linear.linear_layers import linear_layers
from accel.pipelines.batch.identity import plan_digest
from accel.pipelines.job import make_job
from accel.plans import PRESETS

MODELS = ["wan", "flux", pytest.param("sdxl", marks=pytest.mark.slow)]


@pytest.fixture(autouse=True)
def stand_in(monkeypatch, tmp_path):
    linear_kernels.put_in(monkeypatch, tmp_path)


@pytest.fixture
def wan():
    return FAMILIES["wan"]()


def attributes(module):
    """Every instance attribute of a model's parts, by identity; hooks and tables by content."""
    return {
        f"{path}.{key}": dict(value) if isinstance(value, dict) else id(value)
        for path, part in module.named_modules()
        for key, value in vars(part).items()
    }


def saved(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def stand_ins(module):
    return [p for p, part in module.named_modules() if standing(vars(part).get("forward"))]


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("keep", ["device", "cpu"])
def test_unpatch_restores_every_attribute_and_bit(family, keep):
    model, inputs = FAMILIES[family]()
    before, plain = attributes(model), forward(model, inputs)
    weights = {k: (v.data_ptr(), v.clone()) for k, v in model.state_dict().items()}
    handle = accel.patch(model, plan=ours(keep=keep))
    out = forward(model, inputs)
    state = model.state_dict()
    assert list(state) == list(weights) and all(torch.equal(state[k], weights[k][1]) for k in state)
    assert not torch.equal(out, plain)
    assert (out - plain).abs().mean() < 0.01 * plain.abs().mean()
    gelus = [path for path, part in model.named_modules() if gelu_form(part)]
    assert set(stand_ins(model)) == {*handle.layers, *(gelus if family != "sdxl" else ())}
    assert sum(site.weight.nbytes for site in handle.layers.values())
    accel.unpatch(model)
    assert attributes(model) == before and torch.equal(forward(model, inputs), plain)
    assert all(v.data_ptr() == weights[k][0] for k, v in model.state_dict().items())
    assert not any(site.weight.nbytes for site in handle.layers.values())


@pytest.mark.parametrize("way", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved])
@pytest.mark.parametrize("family", ["wan", "flux"])
def test_a_copy_is_clean_and_the_original_stays_patched(family, way):
    model, inputs = FAMILIES[family]()
    plain = forward(model, inputs)
    accel.patch(model, plan=ours())
    patched = forward(model, inputs)
    twin = way(model)
    assert not stand_ins(twin) and not any("__getstate__" in vars(m) for m in twin.modules())
    assert torch.equal(forward(twin, inputs), plain)
    assert torch.equal(forward(model, inputs), patched)
    assert twin.state_dict().keys() == model.state_dict().keys()
    accel.unpatch(model)


def test_an_exception_in_the_middle_leaves_nothing_behind(wan):
    model, inputs = wan
    plain = forward(*wan)
    accel.patch(model, plan=ours())
    broken = model.blocks[1].attn1.to_q.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        forward(*wan)
    broken.remove()
    accel.unpatch(model)
    assert not stand_ins(model) and torch.equal(forward(model, inputs), plain)


def test_a_dropped_model_is_freed_with_its_packed_weights():
    model, inputs = FAMILIES["wan"]()
    handle = accel.patch(model, plan=ours())
    forward(model, inputs)
    alive = [weakref.ref(model), weakref.ref(handle.layers["blocks.0.attn1.to_q"])]
    del model, handle
    gc.collect()
    assert [ref() for ref in alive] == [None, None]


def test_hooks_of_others_on_a_layer_go_on_working(wan):
    model, _ = wan
    seen = []
    layer = model.blocks[0].ffn.net[2]
    layer.register_forward_pre_hook(lambda m, args: seen.append("before"))
    layer.register_forward_hook(lambda m, args, out: seen.append(tuple(out.shape)))
    accel.patch(model, plan=ours())
    forward(*wan)
    accel.unpatch(model)
    forward(*wan)
    assert seen == ["before", (1, 80, 24)] * 2


def test_a_forward_of_somebody_else_is_left_alone(wan):
    model, _ = wan
    layer = model.blocks[0].attn1.to_q
    mine = type(layer).forward.__get__(layer)
    layer.forward = lambda x: mine(x) * 2
    plain, theirs = forward(*wan), layer.forward
    handle = accel.patch(model, plan=ours(rules=(Rule("full"),)))
    assert layer.forward is theirs
    assert handle.layers["blocks.0.attn1.to_q"].left == "somebody replaced its forward"
    assert torch.equal(forward(*wan), plain)
    accel.unpatch(model)
    assert layer.forward is theirs


@pytest.mark.parametrize("family", MODELS)
def test_layers_of_blocks_are_sites_and_ends_are_not(family):
    model = FAMILIES[family]()[0]
    found, left = linear_layers("", model, several=False)
    assert found and not left
    assert all(model.get_submodule(name) is layer for name, layer in found.items())
    outside = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    outside = [n for n in outside if n not in found]
    assert outside and all("attn" not in n for n in outside)
    assert any("time" in n or "emb" in n for n in outside)


def test_layers_that_modulate_have_too_few_rows():
    model, inputs = FAMILIES["flux"]()
    handle = accel.patch(model, plan=ours())
    forward(model, inputs)
    kept = {name: dict(s.record.kept) for name, s in handle.layers.items() if not s.record.ran}
    assert set(kept) == {
        "transformer_blocks.0.norm1.linear", "transformer_blocks.0.norm1_context.linear",
        "single_transformer_blocks.0.norm.linear",
    }  # fmt: skip
    assert all(why == {"fewer than 8 rows": 1} for why in kept.values())


def test_rules_by_site_and_step():
    pipe = Pipe("wan")
    rules = (Rule("full", "*.attn2.*"), Rule("fp8", "blocks.0.ffn.*"), Rule("full", end=0.5))
    handle = accel.patch(pipe, plan=ours(rules=rules))
    pipe(steps=4)
    steps = {name: site.record.steps for name, site in handle.layers.items()}
    assert steps["blocks.0.attn2.to_q"] == ["full"] * 4
    assert steps["blocks.0.ffn.net.2"] == ["fp8"] * 4
    assert steps["blocks.1.ffn.net.2"] == ["full", "full", "int8", "int8"]
    state = json.loads(json.dumps(handle.run_state()))
    again = accel.patch(pipe, plan=ours(rules=rules))
    again.restore_run(state)
    assert again.layers["blocks.1.ffn.net.2"].record.steps == steps["blocks.1.ffn.net.2"]


def test_two_transformers_have_sites_of_their_own():
    pipe = Pipe("wan")
    pipe.transformer_2 = copy.deepcopy(pipe.transformer)
    pipe.transformer_2.blocks[0].attn1.to_q.weight.data *= 2
    handle = accel.patch(pipe, plan=ours())
    assert len(handle.layers) == 2 * 20
    forward(pipe.transformer, pipe.inputs)
    first, second = (handle.layers[f"{t}.blocks.0.attn1.to_q"] for t in DENOISERS)
    assert first.record.ran and not second.record.ran
    forward(pipe.transformer_2, pipe.inputs)
    assert second.record.ran and second.weight.packs == first.weight.packs == 1


DENOISERS = ("transformer", "transformer_2")


@pytest.mark.slow
def test_the_embedded_model_gives_nearly_its_own_video():
    from accel.core.quality import psnr

    pipe = accel.load("tiny")
    call = {
        "prompt": "a crescent", "height": 64, "width": 64, "num_frames": 5, "output_type": "np",
        "max_sequence_length": 32, "num_inference_steps": 4,
    }  # fmt: skip

    def video():
        return pipe(**call, generator=torch.Generator().manual_seed(0)).frames[0]

    plain = video()
    handle = accel.patch(pipe, plan=ours(rules=(), min_rows=64))
    fast = video()
    report = handle.report()
    assert report.linear.ran["int8 by reference"] > 4 * 20 and not report.linear.left
    assert all(site.error < 0.1 for site in report.layers if site.ran)
    assert 30 < psnr(*((255 * v).round().astype("uint8") for v in (fast, plain))) < 100
    accel.unpatch(pipe)
    assert (video() == plain).all()


def test_report_as_text_and_json(wan):
    model, _ = wan
    handle = accel.patch(model, plan=ours())
    forward(*wan)
    report = handle.report()
    text, data = str(report), json.loads(json.dumps(report.to_dict()))
    assert "blocks.0.attn1.to_q and 19 layers more: 20 calls in INT8 by the eager reference" in text
    assert "MiB of packed weights" in text
    assert data["linear"]["ran"] == {"int8 by reference": 20} and len(data["layers"]) == 20
    assert data["linear"]["packed_bytes"] == sum(s.weight.nbytes for s in handle.layers.values())
    with accel.patched(model, "lossless") as other:
        assert "linear layers" not in str(other.report()) and other.report().linear is None


def test_plans_and_their_ids(tmp_path):
    plan = Plan("p", linear=LinearConfig("fp8", ({"precision": "int8", "end": 0.5},), outliers=4))
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan and plan.linear.rules == (
        Rule("int8", end=0.5),
    )
    assert {name for name in PRESETS if Plan.preset(name).linear} == {"balanced", "few-step"}
    assert "linear" not in Plan(rehash=RehashConfig()).to_dict()
    jobs = [
        make_job({"prompt": "x", "plan": p.to_dict()})
        for p in (Plan(), Plan(linear=LinearConfig()), Plan(linear=LinearConfig(smooth=True)))
    ]
    assert len({plan_digest(job) for job in jobs}) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int4"}, "linear precision must be one of .* got 'int4'"),
        ({"rules": (Rule("int6"),)}, "precision of linear rules must be one of .* got 'int6'"),
        ({"rules": 3}, "linear rules must be a list"),
        ({"keep": "disk"}, "linear keep must be one of"),
        ({"min_rows": 0}, "linear min_rows"),
        ({"outliers": -1}, "linear outliers"),
        ({"smooth": 0.5}, "linear smooth must be true or false"),
        ({"max_error": 0}, "linear max_error must be positive"),
    ],
)
def test_wrong_values_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        LinearConfig(**options)


def test_attention_has_no_rule_in_fp8():
    with pytest.raises(ValueError, match="precision of attention rules must be one of"):
        accel.AttentionConfig(rules=(Rule("fp8"),))
