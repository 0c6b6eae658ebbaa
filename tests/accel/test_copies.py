"""Copies of a patched model are clean; what two pipelines share can be patched and unpatched."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from helpers import pipelines
from helpers.families import FAMILIES
from helpers.proofs import leading
from helpers.runs import forward, sliced

import accel
from accel import AttentionConfig, Plan, RehashConfig, SlicingConfig
from accel.core.clean_copies import TABLES
from accel.core.copied_state import KEY

INT8 = AttentionConfig("int8", impl="reference")
PLANS = {
    "slices": sliced(4),
    "int8": Plan("t", INT8),
    "outputs": Plan("t", None, None, RehashConfig()),
    "features": Plan("t", None, None, RehashConfig(level="features")),
    "all": Plan("t", INT8, SlicingConfig(4, min_tokens=1), RehashConfig()),
}


def saved(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": saved,
}


def left(module):
    """Everything of accel's on a module and its parts, by path."""
    found = []
    for path, part in module.named_modules():
        state = vars(part)
        found += [(path, k) for k in ("forward", "_old_forward", "_accel_site", KEY) if k in state]
        found += [(path, table) for table in TABLES if state[table]]
        found += [(path, "hook")] if getattr(state.get("_diffusers_hook"), "hooks", None) else []
        processor = getattr(part, "processor", None)
        found += [(path, "processor")] if KEY in getattr(processor, "__dict__", {}) else []
    return found


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("plan", list(PLANS))
@pytest.mark.parametrize("family", leading(1, ["wan", "flux", "sdxl"]))
def test_a_copy_of_a_denoiser_is_clean_and_the_original_stays_patched(family, plan, way):
    module, inputs = FAMILIES[family]()
    plain = forward(module, inputs)
    handle = accel.patch(module, plan=PLANS[plan])
    patched = forward(module, inputs)
    twin, calls = WAYS[way](module), handle.calls
    assert not left(twin) and not accel.is_patched(twin)
    assert torch.equal(forward(twin, inputs), plain) and handle.calls == calls
    assert accel.is_patched(module) and torch.equal(forward(module, inputs), patched)
    assert handle.calls == calls + 1
    assert module.state_dict().keys() == twin.state_dict().keys()
    second = accel.patch(twin, plan=PLANS[plan])
    assert torch.equal(forward(twin, inputs), patched)
    assert second.calls == 1 and handle.calls == calls + 1
    accel.unpatch(module)
    assert not left(module) and torch.equal(forward(twin, inputs), patched)
    accel.unpatch(twin)
    assert not left(twin) and torch.equal(forward(twin, inputs), plain)


MADE = {
    "wan": lambda: pipelines.wan(4, 4),
    "images": pipelines.images,
    "hunyuan": pipelines.hunyuan,
    "svd": pipelines.svd,
}
EVERYTHING = PLANS["all"]


def decoded(pipe):
    z = torch.randn(1, 4, *([1] if "Video" in type(pipe.vae).__name__ else []), 8, 8,
                    generator=torch.Generator().manual_seed(0))  # fmt: skip
    z = z[:, :, None] if "Wan" in type(pipe.vae).__name__ else z
    more = {"num_frames": 1} if "Temporal" in type(pipe.vae).__name__ else {}
    with torch.no_grad():
        return pipe.vae.decode(z, return_dict=False, **more)[0]


@pytest.mark.parametrize("name", list(MADE))
def test_a_deep_copy_of_a_pipeline_is_clean(name):
    pipe = MADE[name]()
    plain = decoded(pipe)
    accel.patch(pipe, plan=EVERYTHING)
    twin = copy.deepcopy(pipe)
    assert not accel.is_patched(twin) and accel.is_patched(pipe)
    assert not left(twin.vae) and torch.equal(decoded(twin), plain)
    with accel.patched(twin, plan=EVERYTHING):
        assert torch.equal(decoded(twin), decoded(pipe))
    accel.unpatch(pipe)
    assert not left(pipe.vae) and torch.equal(decoded(pipe), plain)


@pytest.mark.parametrize("name", list(MADE))
def test_a_copied_vae_and_a_part_of_it_are_clean(name):
    pipe = MADE[name]()
    accel.patch(pipe, plan=EVERYTHING)
    for way in WAYS.values():
        assert not left(way(pipe.vae)) and not left(way(pipe.vae.decoder))


@pytest.mark.parametrize("family", ["wan", "flux", "sdxl"])
def test_a_shallow_copy_shares_what_is_below_it(family):
    module, inputs = FAMILIES[family]()
    plain = forward(module, inputs)
    accel.patch(module, plan=PLANS["int8"])
    patched, twin = forward(module, inputs), copy.copy(module)
    with accel.patched(twin, plan=PLANS["int8"]):
        assert torch.equal(forward(twin, inputs), patched)
    assert torch.equal(forward(module, inputs), patched)
    accel.unpatch(module)
    assert not left(module) and not left(twin) and torch.equal(forward(twin, inputs), plain)


def test_a_shallow_copy_of_a_pipeline_is_the_same_patch():
    pipe = MADE["wan"]()
    accel.patch(pipe, plan=EVERYTHING)
    twin = copy.copy(pipe)
    assert accel.is_patched(twin)
    accel.unpatch(twin)
    assert not accel.is_patched(pipe) and not left(pipe.transformer) and not left(pipe.vae)


def test_users_hooks_and_forwards_are_copied_as_torch_copies_them():
    module, inputs = FAMILIES["wan"]()
    seen = []
    module.blocks[0].register_forward_hook(lambda *_: seen.append("before"))
    accel.patch(module, plan=EVERYTHING)
    module.blocks[0].attn1.register_forward_pre_hook(lambda *_, **__: seen.append("after"),
                                                     with_kwargs=True)  # fmt: skip
    twin = copy.deepcopy(module)
    forward(twin, inputs)
    assert seen == ["after", "before"]
    assert len(twin.blocks[0].attn1._forward_pre_hooks_with_kwargs) == 1


def test_a_copy_has_the_attention_backend_that_was_chosen():
    module, _ = FAMILIES["wan"]()
    module.blocks[0].attn1.set_attention_backend("_native_math")
    chosen = module.blocks[0].attn1.processor._attention_backend
    accel.patch(module, plan=PLANS["int8"])
    for way in WAYS.values():
        assert way(module).blocks[0].attn1.processor._attention_backend == chosen
    assert module.blocks[0].attn1.processor._attention_backend != chosen


def test_a_saved_and_loaded_model_is_the_plain_one(tmp_path):
    module, inputs = FAMILIES["wan"]()
    plain = forward(module, inputs)
    accel.patch(module, plan=EVERYTHING)
    module.save_pretrained(tmp_path)
    loaded = type(module).from_pretrained(tmp_path)
    torch.testing.assert_close(forward(loaded, inputs), plain)
    assert not left(loaded) and all(
        torch.equal(a, b) for a, b in zip(loaded.parameters(), module.parameters(), strict=True)
    )
    assert module.to(torch.float64).dtype == torch.float64 and accel.is_patched(module)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("name", ["wan", "images", "hunyuan"])
def test_two_pipelines_that_share_a_vae(name, order):
    pipes = [MADE[name](), MADE[name]()]
    pipes[1].register_modules(vae=pipes[0].vae)
    plain = decoded(pipes[0])
    for _ in range(3):
        for pipe in pipes:
            accel.patch(pipe, plan=EVERYTHING)
        assert not left(copy.deepcopy(pipes[0].vae))
        accel.unpatch(pipes[order[0]])
        assert accel.is_patched(pipes[order[1]]) and left(pipes[0].vae)
        assert not left(copy.deepcopy(pipes[0].vae))
        accel.unpatch(pipes[order[1]])
        assert not left(pipes[0].vae) and torch.equal(decoded(pipes[0]), plain)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("name", list(MADE))
def test_two_pipelines_that_share_everything(name, order):
    one = MADE[name]()
    pipes = [one, type(one)(**one.components)]
    denoiser = getattr(one, "transformer", None) or one.unet
    first, second = (accel.patch(pipe, plan=EVERYTHING) for pipe in pipes)
    assert not first.active and second.active
    assert f"took back the patch of a {type(one).__name__}" in str(second.report())
    assert "took back" not in str(accel.patch(pipes[1], plan=EVERYTHING).report())
    for i in order:
        accel.unpatch(pipes[i])
    assert not left(denoiser) and not left(one.vae)
