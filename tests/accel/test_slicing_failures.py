"""A failure of ours leaves a block as it was, with the reason; the model's own errors come out."""

from __future__ import annotations

import pytest
import torch
from helpers.families import FAMILIES
from helpers.runs import forward, sliced
from helpers.vaes import VAES, Pipe, decode, grouped, plan
from torch import nn

import accel
from accel import AttentionConfig, Plan, RehashConfig, SlicingConfig
from accel.slicing import blocks as blocks_module
from accel.slicing.program import cache as cache_module
from accel.slicing.program import derive as derive_module
from accel.slicing.program.run import Run

ERRORS = [
    ValueError("no"),
    KeyError(3),
    AssertionError(),
    IndexError("far"),
    ZeroDivisionError("0"),
]


def raising(error):
    def fails(*_, **__):
        raise error

    return fails


def reasons(handle):
    return {why for block in handle.report().blocks for why in block.whole}


PLACES = {
    "derive": (cache_module, "derive"),
    "record": (derive_module, "record"),
    "the key": (cache_module, "_structure"),
    "its twin": (derive_module, "weightless"),
    "what may be overwritten": (blocks_module, "overwritable"),
    "its signature": (blocks_module, "signature"),
}


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("place", list(PLACES))
def test_a_trial_run_that_fails_leaves_the_block(monkeypatch, place, error):
    module, inputs = FAMILIES["wan"]()
    plain = forward(module, inputs)
    monkeypatch.setattr(*PLACES[place], raising(error))
    with accel.patched(module, plan=sliced(4)) as handle:
        for _ in range(2):
            torch.testing.assert_close(forward(module, inputs), plain)
    said = str(handle.report())
    assert type(error).__name__ in said and "failed" in said


@pytest.mark.parametrize("family", ["wan", "flux", "mochi"])
@pytest.mark.parametrize("error", ERRORS[:3], ids=lambda e: type(e).__name__)
def test_a_program_that_fails_before_it_overwrote_anything_leaves_the_block(
    monkeypatch, family, error
):
    module, inputs = FAMILIES[family]()
    plain = forward(module, inputs)
    monkeypatch.setattr(Run, "_loop", raising(error))
    with accel.patched(module, plan=sliced(4)) as handle:
        for _ in range(2):
            torch.testing.assert_close(forward(module, inputs), plain)
    assert any(f"slices failed ({type(error).__name__}" in why for why in reasons(handle))


def test_a_program_that_failed_is_not_tried_again(monkeypatch):
    module, inputs = FAMILIES["wan"]()
    with accel.patched(module, plan=sliced(4)) as handle:
        with monkeypatch.context() as patch:
            patch.setattr(Run, "_loop", raising(ValueError("once")))
            forward(module, inputs)
        forward(module, inputs)
    block = handle.report().blocks[0]
    assert not block.sliced and sum(block.whole.values()) == 2 and len(block.whole) == 1


@pytest.mark.parametrize("path", ["blocks.0.ffn.net.2", "blocks.1.attn1.to_q", "proj_out"])
def test_the_models_own_error_comes_out_as_it_is(path):
    module, inputs = FAMILIES["wan"]()
    part = module.get_submodule(path)
    accel.patch(module, plan=sliced(4))
    plain = forward(module, inputs)
    own, error = type(part).forward, LookupError("mine")
    part.forward = raising(error)
    with pytest.raises(LookupError, match="mine") as found:
        forward(module, inputs)
    assert found.value is error and found.value.__context__ is None
    del own, part.forward
    assert torch.equal(forward(module, inputs), plain)  # and it is sliced as before
    assert all(block.sliced for block in accel.report(module).blocks)
    accel.unpatch(module)


def test_an_error_after_an_input_was_overwritten_is_raised(monkeypatch):
    """The block's input is gone, so running it again would give something else silently."""
    module, inputs = FAMILIES["wan"]()
    real = Run._write

    def late(self, whole, number, value):
        real(self, whole, number, value)
        if self.overwrote:
            raise ValueError("late")

    monkeypatch.setattr(Run, "_write", late)
    with accel.patched(module, plan=sliced(4)), pytest.raises(ValueError, match="late"):
        forward(module, inputs)


def test_a_head_that_fails_runs_whole(monkeypatch):
    module, inputs = FAMILIES["flux"]()
    plain = forward(module, inputs)
    monkeypatch.setattr("accel.slicing.output_head.cuts", raising(KeyError("cut")))
    with accel.patched(module, plan=sliced(4)) as handle:
        torch.testing.assert_close(forward(module, inputs), plain)
    assert "running it in slices failed (KeyError: 'cut')" in reasons(handle)


@pytest.mark.parametrize("name", ["qwen", "ltx", "kl", "hunyuan"])
def test_a_decoder_whose_strips_fail_runs_whole(monkeypatch, name):
    if name in VAES:
        vae, z = VAES[name](), torch.randn(1, 4, 2, 8, 6)
    else:
        vae, z, _ = grouped(name)
    plain = decode(vae, z)
    for file in ("strips", "norm_strips", "last_convolution"):
        monkeypatch.setattr(f"accel.slicing.vae.{file}.rows", raising(AssertionError("rows")))
    with accel.patched(Pipe(vae), plan=plan(3)) as handle:
        for _ in range(2):
            torch.testing.assert_close(decode(vae, z), plain)
        (block,) = [b for b in handle.report().blocks if b.name == "vae.decoder"]
    assert not block.sliced
    assert "running it in slices failed (AssertionError: rows)" in block.whole


@pytest.mark.parametrize("path", ["conv_out", "mid_block.resnets.0.conv1"])
@pytest.mark.parametrize("name", ["qwen", "kl"])
def test_a_decoders_own_error_comes_out_as_it_is(name, path):
    vae, z = (VAES[name](), torch.randn(1, 4, 2, 8, 6)) if name in VAES else grouped(name)[:2]
    plain = decode(vae, z)
    with accel.patched(Pipe(vae), plan=plan(3)) as handle:
        part = vae.decoder.get_submodule(path)
        bias, part.bias = part.bias, nn.Parameter(torch.zeros(3, 3))
        with pytest.raises(RuntimeError) as error:
            decode(vae, z)
        part.bias = bias
        torch.testing.assert_close(decode(vae, z), plain)
        (block,) = [b for b in handle.report().blocks if b.name == "vae.decoder"]
        assert block.sliced and not any("failed" in why for why in block.whole)
    part.bias = nn.Parameter(torch.zeros(3, 3))
    with pytest.raises(RuntimeError) as plainly:
        decode(vae, z)
    assert str(error.value) == str(plainly.value)


@pytest.mark.parametrize("family", ["wan", "flux", "sdxl"])
@pytest.mark.parametrize("storage", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_blocks_beside_layerwise_casting_are_sliced(family, storage):
    module, inputs = FAMILIES[family]()
    module.enable_layerwise_casting(storage_dtype=storage, compute_dtype=torch.float32)
    plain = forward(module, inputs)
    with accel.patched(module, plan=sliced(4)) as handle:
        torch.testing.assert_close(forward(module, inputs), plain)
    assert any(block.sliced for block in handle.report().blocks)
    assert not any("values in a tensor" in why or "failed" in why for why in reasons(handle))
    assert torch.equal(forward(module, inputs), plain)


def test_layerwise_casting_that_is_added_later_is_noticed():
    module, inputs = FAMILIES["wan"]()
    with accel.patched(module, plan=sliced(4)) as handle:
        forward(module, inputs)
        module.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
        out = forward(module, inputs)
    torch.testing.assert_close(out, forward(module, inputs))
    assert not any("failed" in why for why in reasons(handle))


ADAPTERS = ("dora", "oft", "lora")


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize(
    "family", ["wan", "flux", "sd3", pytest.param("sdxl", marks=pytest.mark.slow)]
)
def test_blocks_with_adapters_of_peft_are_sliced(family, kind):
    peft = pytest.importorskip("peft")
    module, inputs = FAMILIES[family]()
    to = ["to_q", "to_v", "net.0.proj"]
    config = {
        "dora": lambda: peft.LoraConfig(r=4, target_modules=to, use_dora=True),
        "lora": lambda: peft.LoraConfig(r=4, target_modules=to),
        "oft": lambda: peft.OFTConfig(r=0, oft_block_size=4, target_modules=to),
    }[kind]()
    before = forward(module, inputs)
    module = peft.inject_adapter_in_model(config, module).eval()
    for name, weight in module.named_parameters():
        if "lora_B" in name or "oft_R" in name:
            nn.init.normal_(weight, std=0.1)
    plain = forward(module, inputs)
    assert not torch.allclose(before, plain)
    with accel.patched(module, plan=sliced(4)) as handle:
        torch.testing.assert_close(forward(module, inputs), plain)
    whole = {w for b in handle.report().blocks if "resnet" not in b.name for w in b.whole}
    assert any(block.sliced for block in handle.report().blocks)
    assert not any("Linear" in why or "(" in why for why in whole)


def test_reasons_are_sentences():
    class Mixes(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = FAMILIES["wan"]()[0].blocks[0].attn1

        def forward(self, hidden_states):
            for _ in range(5):
                hidden_states = hidden_states.cumsum(1).sort(1).values.flip(1).roll(1, 1)
            return hidden_states

    module = Mixes().eval()
    with accel.patched(module, plan=sliced(4)) as handle, torch.no_grad():
        module(torch.randn(1, 64, 24))
    (why,) = reasons(handle)
    assert why.startswith("its result mixes tokens (cumsum, ") and why.endswith(" and others)")


PRESETS = {
    "lossless": Plan("t", None, SlicingConfig(4, min_tokens=1)),
    "balanced": Plan("t", AttentionConfig("int8", impl="reference")),
    "fast": Plan("t", AttentionConfig("int8"), rehash=RehashConfig()),
}


@pytest.mark.parametrize("preset", list(PRESETS))
def test_a_processor_that_asks_for_its_own_backend_keeps_it(preset):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    module = diffusers.AnyFlowFARTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=32, ffn_dim=32, num_layers=1, rope_max_seq_len=32, chunk_partition=(1, 1),
    ).eval()  # fmt: skip
    inputs = {
        "hidden_states": torch.randn(1, 2, 4, 8, 8),
        "timestep": torch.full((1, 2), 500),
        "r_timestep": torch.full((1, 2), 400),
        "encoder_hidden_states": torch.randn(1, 12, 16),
        "chunk_partition": [1, 1],
    }
    plain = forward(module, inputs)
    with accel.patched(module, plan=PRESETS[preset]) as handle:
        torch.testing.assert_close(forward(module, inputs), plain, atol=0.01, rtol=0.01)
    if preset != "lossless":
        assert "its processor needs diffusers' backend 'flex'" in str(handle.report())
