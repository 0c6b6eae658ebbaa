"""Who looks at tensors, or put a forward of their own somewhere, gets what they got before."""

from __future__ import annotations

import functools
import types

import pytest
import torch
from helpers.families import FAMILIES
from helpers.proofs import leading
from helpers.runs import forward, sliced
from helpers.vaes import VAES, Pipe, decode, grouped, plan, relative

import accel

PARTS = {
    "wan": ("blocks.0", "blocks.0.attn1", "blocks.0.ffn", "blocks.0.ffn.net.0.proj",
            "blocks.0.attn1.to_q", "proj_out", "norm_out"),
    "flux": ("transformer_blocks.0.ff", "transformer_blocks.0.norm1.linear",
             "single_transformer_blocks.0", "single_transformer_blocks.0.proj_mlp"),
    "sdxl": ("mid_block.attentions.0.transformer_blocks.0",
             "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
             "mid_block.resnets.0", "mid_block.resnets.0.conv1"),
    "svd": ("mid_block.attentions.0.transformer_blocks.0", "mid_block.resnets.0",
            "mid_block.attentions.0.temporal_transformer_blocks.0.ff"),
}  # fmt: skip
CASES = [
    pytest.param(family, path, marks=[pytest.mark.slow] if family == "svd" else [])
    for family, paths in PARTS.items()
    for path in paths
]


def mixing(module, wraps=False):
    """Put a forward on an instance that no slice can compute: it looks at all tokens or rows."""
    own = module.forward

    def mine(*args, **kwargs):
        out = own(*args, **kwargs)
        if isinstance(out, tuple):
            return tuple(x + 0.5 * x.flip(-2) for x in out)
        return out + 0.5 * out.flip(-2)

    module.forward = functools.wraps(own)(mine) if wraps else mine


@pytest.mark.parametrize(("family", "path"), CASES)
def test_an_own_forward_in_a_denoiser_runs_on_everything(family, path):
    module, inputs = FAMILIES[family]()
    plain = forward(module, inputs)
    mixing(module.get_submodule(path))
    expected = forward(module, inputs)
    assert relative(expected, plain) > 1e-5
    with accel.patched(module, plan=sliced(4)):
        torch.testing.assert_close(forward(module, inputs), expected)
    assert torch.equal(forward(module, inputs), expected)


@pytest.mark.parametrize(("family", "path"), leading(2, CASES))
def test_an_own_forward_that_comes_after_the_patch_runs_too(family, path):
    module, inputs = FAMILIES[family]()
    accel.patch(module, plan=sliced(4))
    before = forward(module, inputs)
    mixing(module.get_submodule(path), wraps=True)
    patched = forward(module, inputs)
    accel.unpatch(module)
    assert relative(patched, before) > 1e-5
    torch.testing.assert_close(patched, forward(module, inputs))


@pytest.mark.parametrize("pre", [False, True])
@pytest.mark.parametrize(("family", "path"), leading(2, CASES))
def test_hooks_in_a_denoiser_see_and_keep_what_they_saw_before(family, path, pre):
    module, inputs = FAMILIES[family]()
    seen = []

    def look(module, args, *output):
        seen.extend((output or args)[:1])

    part = module.get_submodule(path)
    (part.register_forward_pre_hook if pre else part.register_forward_hook)(look)
    forward(module, inputs)
    seen[:] = [x for x in seen if torch.is_tensor(x)]
    expected = [x.clone() for x in seen]
    seen.clear()
    with accel.patched(module, plan=sliced(4)):
        forward(module, inputs)
    seen[:] = [x for x in seen if torch.is_tensor(x)]
    assert len(seen) == len(expected)
    for mine, theirs in zip(seen, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


DECODERS = {
    "kl": ("mid_block.resnets.0", "mid_block.resnets.0.conv1", "mid_block.resnets.0.norm2",
           "up_blocks.0.upsamplers.0", "conv_norm_out", "conv_act", "conv_out"),
    "hunyuan": ("mid_block", "mid_block.resnets.0", "mid_block.attentions.0", "conv_norm_out",
                "up_blocks.0.resnets.0.conv2", "conv_out"),
    "svd": ("mid_block.resnets.0.spatial_res_block", "mid_block.resnets.0.time_mixer",
            "mid_block.resnets.0.temporal_res_block.conv1", "conv_norm_out"),
    "qwen": ("mid_block.resnets.0", "mid_block.resnets.0.conv1", "mid_block.resnets.0.norm1",
             "up_blocks.0.resnets.0", "norm_out", "nonlinearity", "conv_out"),
    "ltx": ("mid_block.resnets.0", "mid_block.resnets.0.conv1", "norm_out", "conv_out"),
}  # fmt: skip
DECODED = [
    pytest.param(name, path, marks=[pytest.mark.slow] if name == "svd" else [])
    for name, paths in DECODERS.items()
    for path in paths
]


def decoder(name):
    if name in VAES:
        return VAES[name](), torch.randn(1, 4, 2, 8, 6, generator=torch.manual_seed(1)), {}
    vae, z, more = grouped(name)
    return vae, z[:, :, :8] if name == "kl" else z, more


def run(vae, z, more):
    if not more:
        return decode(vae, z)
    with torch.no_grad():
        return vae.decode(z, return_dict=False, **more)[0]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(("name", "path"), DECODED)
def test_an_own_forward_in_a_decoder_runs_on_everything(name, path, late):
    vae, z, more = decoder(name)
    plain, part = run(vae, z, more), vae.decoder.get_submodule(path)
    if not late:
        mixing(part)
    with accel.patched(Pipe(vae), plan=plan(3)) as handle:
        if late:
            mixing(part, wraps=True)
        out = run(vae, z, more)
        (block,) = [b for b in handle.report().blocks if b.name == "vae.decoder"]
    expected = run(vae, z, more)
    assert relative(expected, plain) > 1e-5
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)
    assert not any("failed" in why for why in block.whole)


@pytest.mark.parametrize(("name", "path"), DECODED)
def test_hooks_in_a_decoder_see_and_keep_what_they_saw_before(name, path):
    vae, z, more = decoder(name)
    seen = []
    vae.decoder.get_submodule(path).register_forward_hook(
        lambda _, args, out: seen.extend(x for x in (args[0], out) if torch.is_tensor(x))
        if args else None
    )  # fmt: skip
    run(vae, z, more)
    expected = [x.clone() for x in seen]
    seen.clear()
    with accel.patched(Pipe(vae), plan=plan(3)):
        run(vae, z, more)
    assert len(seen) == len(expected)
    for mine, theirs in zip(seen, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_a_forward_bound_to_the_instance_is_no_forward_of_its_own():
    module, inputs = FAMILIES["wan"]()
    part = module.blocks[0].ffn
    part.forward = types.MethodType(type(part).forward, part)
    with accel.patched(module, plan=sliced(4)) as handle:
        forward(module, inputs)
        assert not any(block.whole for block in handle.report().blocks)
