"""Exact strips in decoders of video VAEs that normalize channels only."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderTiny
from helpers.proofs import leading
from helpers.vaes import VAES, Pipe, decode, ltx, plan

import accel
from accel.core.cuts import rows
from accel.pipelines.load import load


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", VAES)
@pytest.mark.parametrize("height", leading(1, [9, 8]))
def test_strips_decode_the_same_video(name, dtype, height):
    vae = torch.nn.Module.to(VAES[name](), dtype)
    channels = vae.config.get("z_dim") or vae.config.latent_channels
    z = torch.randn(1, channels, 3, height, 6, generator=torch.manual_seed(1)).to(dtype)
    plain = decode(vae, z)
    for n in (2, 3, 8, 16):
        with accel.patched(Pipe(vae), plan=plan(n)) as handle:
            out = decode(vae, z)
            (block,) = [b for b in handle.report().blocks if b.name == "vae.decoder"]
        assert max(block.sliced) == n if n < 8 else block.sliced
        assert (out - plain).float().norm() <= (1e-6 if dtype == torch.float32 else 0) * (
            plain.float().norm()
        )
    assert torch.equal(decode(vae, z), plain)
    assert not any("forward" in vars(m) for m in vae.modules())


def test_a_strip_without_halo_would_be_wrong(monkeypatch):
    vae = load("tiny").vae
    z = torch.randn(1, vae.config.z_dim, 2, 8, 8)
    plain = decode(vae, z)
    monkeypatch.setattr("accel.slicing.vae.strips.rows", lambda h, n, halo: rows(h, n, halo - 1))
    with accel.patched(Pipe(vae), plan=plan(2)):
        off = (decode(vae, z) - plain).norm()  # rows that nobody wrote may hold NaN
    assert not off <= 1e-3 * plain.norm()


def test_blocks_that_draw_noise_run_whole_and_say_so():
    vae = ltx(decoder_inject_noise=(True, False, False), decoder_block_out_channels=(8, 8))
    z = torch.randn(1, 4, 2, 8, 6)
    plain = decode(vae, z)  # the weights of the noise begin at zero
    with accel.patched(Pipe(vae), plan=plan(2)) as handle:
        assert (decode(vae, z) - plain).norm() <= 1e-6 * plain.norm()
        (block,) = [b for b in handle.report().blocks if b.name == "vae.decoder"]
    assert block.sliced and block.whole["draws noise for the whole picture"] >= 1


def test_strips_cover_the_picture_once():
    for height, strips in ((8, 2), (9, 4), (13, 3)):
        found = rows(height, strips, 2)
        assert [r for start, stop, *_ in found for r in range(start, stop)] == list(range(height))
        assert all(low == max(0, a - 2) and high == min(height, b + 2) for a, b, low, high in found)


def test_other_decoders_and_gradients_are_left_alone():
    with accel.patched(Pipe(AutoencoderTiny()), plan=plan(4)) as handle:
        assert not [b for b in handle.report().blocks if b.name == "vae.decoder"]
    vae = load("tiny").vae
    z = torch.randn(1, vae.config.z_dim, 1, 4, 4)
    with accel.patched(Pipe(vae), plan=plan(4)) as handle:
        vae.decode(z, return_dict=False)[0].sum().backward()
        (block,) = [b for b in handle.report().blocks if b.name == "vae.decoder"]
    assert not block.sliced and "needs gradients" in next(iter(block.whole))
