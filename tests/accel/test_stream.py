"""Finished frames that go to the CPU while the next are decoded."""

from __future__ import annotations

import pytest
import torch
from helpers.proofs import leading
from helpers.vaes import STREAMED, Pipe, WanPipeline, decode, peak, plan

import accel
from accel import Plan, SlicingConfig
from accel.families.components import Part
from accel.pipelines.load import load
from accel.slicing.vae.stream import Pieces, Streamed


@pytest.mark.slow
@pytest.mark.parametrize("tiled", leading(1, [False, True]))
@pytest.mark.parametrize("name", STREAMED)
def test_streamed_frames_are_equal_bit_for_bit(name, tiled, monkeypatch):
    vae = STREAMED[name]()
    channels = vae.config.get("z_dim") or vae.config.latent_channels
    z = torch.randn(1, channels, 5, 10, 10, generator=torch.manual_seed(1))
    if tiled:
        vae.enable_tiling(64, 64, *([48, 48] if name != "cogvideox" else []))
    plain = decode(vae, z)
    monkeypatch.setattr(Streamed, "_possible", lambda self, frames: True)  # as on an accelerator
    with accel.patched(WanPipeline(vae), plan=plan(1)) as handle:
        out = decode(vae, z)
        (block,) = [b for b in handle.report().blocks if b.name == "vae.decoder"]
    assert type(out) is torch.Tensor and torch.equal(out, plain)
    assert block.note == "finished frames went to the CPU"
    assert torch.equal(decode(vae, z), plain)
    assert not any("forward" in vars(m) for m in vae.modules())


def test_only_pipelines_that_return_their_frames_stream_them(monkeypatch):
    vae = load("tiny").vae
    z = torch.randn(1, vae.config.z_dim, 2, 4, 4)
    monkeypatch.setattr(Streamed, "_possible", lambda self, frames: True)
    off = Plan("t", None, SlicingConfig(4, 1, stream_frames=False))
    for pipe, how in ((Pipe(vae), plan(4)), (WanPipeline(vae), off)):
        with accel.patched(pipe, plan=how) as handle:
            decode(vae, z)
            assert not any("CPU" in b.note for b in handle.report().blocks)


def test_pieces_are_one_video_to_whoever_looks():
    a, b, c = (torch.randn(1, 2, n, 3, 3) for n in (1, 2, 3))
    pieces = torch.cat([torch.cat([Pieces([a]), Pieces([b])], dim=2), c], 2)
    whole = torch.cat([a, b, c], 2)
    assert isinstance(pieces, Pieces) and pieces.shape == whole.shape
    pieces[:, :, 0] = whole[:, :, 0] = 1.0
    assert torch.equal(pieces[:, :, :2], whole[:, :, :2])
    assert torch.equal(torch.clamp(pieces, min=-1, max=0.5), whole.clamp(-1, 0.5))


@pytest.mark.slow
@pytest.mark.proof
def test_a_streamed_video_takes_no_more_memory_when_it_is_longer():
    sizes = {"base_dim": 16, "z_dim": 4, "dim_mult": [1, 1, 1], "num_res_blocks": 1,
             "temperal_downsample": [True, True], "latents_mean": (0.0,) * 4,
             "latents_std": (1.0,) * 4}  # fmt: skip
    part, config = Part("AutoencoderKLWan", sizes, torch.float32), SlicingConfig(4, 1)

    def grows(streamed):
        few, many = (peak(part, (1, 4, n, 8, 8), config, streamed) for n in (4, 24))
        return many - few

    latents = 2 * 20 * 4 * 8 * 8 * 4  # bytes, before and after the first convolution
    assert grows(True) == latents
    assert grows(False) >= latents + 80 * 3 * 32 * 32 * 4
