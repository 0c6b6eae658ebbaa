"""Exact strips in decoders with GroupNorm, by two passes."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from helpers.vaes import ALL, GROUPED, Pipe, decode, grouped, peak, plan, relative

import accel
from accel import SlicingConfig
from accel.families.components import Part
from accel.slicing.vae.apply import apply_strips
from accel.slicing.vae.norm_strips import Resnet


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("strips", [2, 3, 8])
@pytest.mark.parametrize("name", GROUPED)
def test_group_norms_see_the_whole_picture(name, strips):
    vae, z, more = grouped(name)
    plain = vae.decode(z, return_dict=False, **more)[0]
    with accel.patched(Pipe(vae), plan=plan(strips)) as handle:
        out = vae.decode(z, return_dict=False, **more)[0]
        (block,) = [b for b in handle.report().blocks if b.name == "vae.decoder"]
    assert block.sliced and not block.whole
    assert relative(out, plain) <= 1e-6
    assert torch.equal(vae.decode(z, return_dict=False, **more)[0], plain)
    assert not any("forward" in vars(m) for m in vae.modules())


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ALL)
def test_strips_are_as_near_to_fp64_as_the_plain_run(name, dtype):
    vae, z, more = grouped(name)
    exact = vae.double().decode(z.double(), return_dict=False, **more)[0]
    vae = torch.nn.Module.to(vae, dtype)
    plain = vae.decode(z.to(dtype), return_dict=False, **more)[0]
    with accel.patched(Pipe(vae), plan=plan(3)):
        out = vae.decode(z.to(dtype), return_dict=False, **more)[0]
    assert out.dtype == dtype
    assert relative(out, exact) <= 1.2 * relative(plain, exact)


@torch.no_grad()
@pytest.mark.parametrize("name", GROUPED)
def test_one_block_in_strips(name):
    vae, _, _ = grouped(name)
    undo = ExitStack()
    apply_strips(vae, SlicingConfig(3, 1), undo)
    blocks = [m for m in vae.decoder.modules() if isinstance(vars(m).get("forward"), Resnet)]
    assert len(blocks) >= 6
    for block in blocks:
        frames = (3,) if isinstance(block.conv2, torch.nn.Conv3d) or name == "hunyuan" else ()
        x = torch.randn(1, block.norm1.num_channels, *frames, 13, 7)
        assert relative(block(x, None) if name != "hunyuan" else block(x), block.forward.forward(
            *([x] if name == "hunyuan" else [x, None])
        )) <= 2e-7  # fmt: skip
    undo.close()


@torch.no_grad()
def test_statistics_of_a_strip_alone_would_be_wrong(monkeypatch):
    vae, z, _ = grouped("kl")
    plain = decode(vae, z)
    monkeypatch.setattr("accel.slicing.vae.norm_strips.normalizer", lambda norm, x: norm)
    with accel.patched(Pipe(vae), plan=plan(2)):
        assert relative(decode(vae, z), plain) > 1e-3


@torch.no_grad()
def test_hooks_on_norms_timesteps_and_autocast_keep_a_block_whole():
    vae, z, _ = grouped("kl")
    seen = []
    handle = vae.decoder.mid_block.resnets[0].norm1.register_forward_hook(lambda *_: seen.append(1))
    with accel.patched(Pipe(vae), plan=plan(2)) as patched:
        decode(vae, z)
        (block,) = [b for b in patched.report().blocks if b.name == "vae.decoder"]
        assert seen and block.whole == {"a hook on its norm1": 1}
        handle.remove()
        with torch.autocast("cpu", torch.bfloat16):
            decode(vae, z)
        (block,) = [b for b in patched.report().blocks if b.name == "vae.decoder"]
    assert block.whole["under autocast"] >= 6


@pytest.mark.slow
@pytest.mark.parametrize("name", GROUPED)
def test_strips_save_a_quarter_and_more(name):
    cls, sizes, shape, more = GROUPED[name]
    shape = (*shape[:-2], 48, 64)
    part = Part(cls.__name__, sizes, torch.float16)
    strips = peak(part, shape, SlicingConfig(16, 1), **more)
    assert strips < 0.75 * peak(part, shape, None, **more)
