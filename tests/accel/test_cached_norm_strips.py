"""Exact strips in CogVideoX's and Mochi's decoders: GroupNorm, and caches that are handed on."""

from __future__ import annotations

import pytest
import torch
from helpers.vaes import Pipe, cogvideox, decode, mochi, plan, relative

import accel


def small_mochi(framewise):
    vae = mochi()
    vae.use_framewise_decoding = framewise
    return vae


MADE = {
    "cogvideox": cogvideox,
    "mochi": lambda: small_mochi(False),
    "mochi, two latent frames at a time": lambda: small_mochi(True),
}


def record(handle):
    return next(b for b in handle.report().blocks if b.name == "vae.decoder")


@pytest.mark.proof
@pytest.mark.parametrize("name", MADE)
def test_the_same_video_in_strips(name):
    vae = MADE[name]()
    batch = 2 if name == "cogvideox" else 1
    z = torch.randn(batch, 4, 3, 9, 3, generator=torch.manual_seed(1))
    plain, first = decode(vae, z), decode(vae, z[:, :, :1])
    with accel.patched(Pipe(vae), plan=plan(2)) as handle:
        out = decode(vae, z)
        assert record(handle).sliced[2] >= 10 and not record(handle).whole
        assert (record(handle).note == "one latent frame after the other") == (name == "mochi")
        assert relative(decode(vae, z[:, :, :1]), first) <= 1e-6
    assert out.shape == plain.shape and relative(out, plain) <= 1e-6
    assert torch.equal(decode(vae, z), plain)
    assert not any("forward" in vars(m) for m in vae.modules())


@pytest.mark.proof
@torch.no_grad()
def test_caches_of_a_block_are_the_same():
    vae = cogvideox()
    block = vae.decoder.up_blocks[0].resnets[0]
    x, zq = torch.randn(1, 8, 4, 13, 6), torch.randn(1, 4, 2, 13, 6)
    y, caches = block(x, None, zq)
    again, more = block(x, None, zq, {k: v for k, v in caches.items()})
    with accel.patched(Pipe(vae), plan=plan(3)):
        out, kept = block(x, None, zq)
        assert relative(out, y) <= 1e-6
        for name in ("conv1", "conv2"):
            assert relative(kept[name], caches[name]) <= 1e-6
        out, kept = block(x, None, zq, kept)
    assert relative(out, again) <= 1e-6 and relative(kept["conv2"], more["conv2"]) <= 1e-6


@torch.no_grad()
def test_statistics_of_a_strip_alone_would_be_wrong(monkeypatch):
    vae = cogvideox()
    z = torch.randn(1, 4, 1, 8, 3)
    plain = decode(vae, z)

    def alone(x, groups, eps):
        return statistics(x[..., :4, :], groups, eps)

    from accel.slicing.vae import cached_norm_strips

    statistics = cached_norm_strips.group_statistics
    monkeypatch.setattr(cached_norm_strips, "group_statistics", alone)
    with accel.patched(Pipe(vae), plan=plan(2)):
        assert relative(decode(vae, z), plain) > 1e-3


@torch.no_grad()
def test_hooks_and_autocast_keep_blocks_whole():
    vae, seen = cogvideox(), []
    z = torch.randn(1, 4, 1, 8, 3)
    block = vae.decoder.up_blocks[0].resnets[0]
    hook = block.conv1.register_forward_hook(lambda *_: seen.append(1))
    plain = decode(vae, z)
    with accel.patched(Pipe(vae), plan=plan(2)) as handle:
        assert relative(decode(vae, z), plain) <= 1e-6 and len(seen) == 2
        assert record(handle).whole == {"a hook on its conv1": 1}
        hook.remove()
        with torch.autocast("cpu", torch.bfloat16):
            decode(vae, z)
        assert record(handle).whole["under autocast"] >= 6
