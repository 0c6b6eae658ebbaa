"""Strips that run through all later blocks of a decoder."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLWan
from helpers.vaes import VAES, Pipe, WanPipeline, decode, peak, plan, relative, small

import accel
from accel import SlicingConfig
from accel.families.components import Part
from accel.slicing.vae.row_spans import Unit, spans
from accel.slicing.vae.stream import Streamed
from accel.slicing.vae.video_run import Waiting

# Relative L2 in fp32: a convolution of another width may sum in another order (1.05e-6 on an
# Intel Xeon with AVX-512).
ROUNDING = 2e-6

WAN = {"base_dim": 16, "z_dim": 4, "dim_mult": [1, 2, 2], "num_res_blocks": 1,
       "temperal_downsample": [True, True], "latents_mean": (0.0,) * 4,
       "latents_std": (1.0,) * 4}  # fmt: skip
SMALL = {**VAES, "wan": lambda: small(AutoencoderKLWan)}
SMALLER = {"small picture"}
DEEP = ("wan", "wan22", "qwen", "hunyuan15")


def latent(vae, frames=2, height=17, batch=1):
    channels = vae.config.get("z_dim") or vae.config.latent_channels
    return torch.randn(batch, channels, frames, height, 3, generator=torch.manual_seed(1))


def deep(handle):
    (block,) = [b for b in handle.report().blocks if b.name == "vae.decoder"]
    return block.note.startswith(("2 strips through", "4 strips through")), block


@pytest.mark.proof
@pytest.mark.parametrize(
    ("frames", "height", "batch", "n"), [(1, 33, 2, 16), (4, 17, 1, 8), (2, 6, 1, 16)]
)
@pytest.mark.parametrize("name", DEEP)
def test_deep_strips_decode_the_same_video(name, frames, height, batch, n):
    vae = SMALL[name]()
    z = latent(vae, frames, height, 1 if name == "hunyuan15" else batch)
    plain = decode(vae, z)
    with accel.patched(Pipe(vae), plan=plan(n)) as handle:
        out = decode(vae, z)
        assert deep(handle)[0] == (height > 15) and not deep(handle)[1].whole.keys() - SMALLER
    assert type(out) is torch.Tensor and out.shape == plain.shape
    assert relative(out, plain) <= ROUNDING
    assert torch.equal(decode(vae, z), plain)
    assert not any("forward" in vars(m) for m in vae.modules())


@pytest.mark.proof
@pytest.mark.parametrize("name", ["wan22", "hunyuan15"])
def test_deep_strips_are_as_near_to_fp64_as_the_plain_run(name):
    vae, dtype = SMALL[name](), torch.bfloat16
    z = latent(vae).to(dtype)
    exact = decode(vae.double(), z.double())
    vae = torch.nn.Module.to(vae, dtype)
    plain = decode(vae, z)
    with accel.patched(Pipe(vae), plan=plan(8)) as handle:
        out = decode(vae, z)
        assert deep(handle)[0] and out.dtype == dtype
    assert relative(out, exact) <= 1.2 * relative(plain, exact)
    assert name == "hunyuan15" or torch.equal(out, plain)


def test_too_few_rows_around_a_strip_would_be_wrong(monkeypatch):
    vae = SMALL["wan"]()
    z, narrow = latent(vae), [Unit(1, 1)]
    plain = decode(vae, z)

    def fewer(height, start, stop, units):
        return spans(height, start, stop, [Unit(max(0, u.halo - 1), u.scale) for u in units])

    assert spans(8, 0, 4, narrow) == [(0, 5), (0, 4)]
    monkeypatch.setattr("accel.slicing.vae.video_run.spans", fewer)
    with accel.patched(Pipe(vae), plan=plan(8)):
        assert relative(decode(vae, z), plain) > 1e-3


def test_spans_reach_as_far_as_the_convolutions():
    units = [Unit(2, 1), Unit(1, 2), Unit(2, 1), Unit(1, 1)]
    assert spans(20, 8, 12, units) == [(3, 17), (5, 15), (13, 27), (15, 25), (16, 24)]
    assert spans(20, 0, 20, units) == [(0, 20), (0, 20), (0, 40), (0, 40), (0, 40)]


@pytest.mark.proof
@pytest.mark.parametrize("name", DEEP)
def test_beside_tiles_slices_and_an_encoder(name):
    vae = SMALL[name]()
    z = latent(vae, height=40, batch=1 if name == "hunyuan15" else 2)
    if name == "hunyuan15":
        vae.enable_tiling(160, 160, 20, 20)
    else:
        vae.enable_tiling(160, 160, 128, 128)
    vae.enable_slicing()
    plain = decode(vae, z)
    encoded = vae.encode(plain[..., :64, :16].clone()).latent_dist.mean
    with accel.patched(Pipe(vae), plan=plan(8)) as handle:
        assert relative(decode(vae, z), plain) <= ROUNDING and deep(handle)[0]
        assert torch.equal(vae.encode(plain[..., :64, :16].clone()).latent_dist.mean, encoded)


@torch.no_grad()
def test_a_caller_may_look_at_frames_before_the_next_ones():
    vae = SMALL["wan"]()
    z = latent(vae, frames=4)

    def pieces(look):
        caches, found = [None] * vae._cached_conv_counts["decoder"], []
        for i in range(4):
            y = vae.decoder(z[:, :, i : i + 1], feat_cache=caches, feat_idx=[0], first_chunk=i == 0)
            found.append(y.clone() if i in look else y)
        return found

    plain = pieces([0, 1, 2, 3])
    with accel.patched(Pipe(vae), plan=plan(8)):
        for look in ([0, 1, 2, 3], [2], []):
            found = pieces(look)
            assert isinstance(found[-1], Waiting) == (3 not in look)
            assert (
                relative(torch.cat([x.clone() for x in found], 2), torch.cat(plain, 2)) <= ROUNDING
            )
        again = pieces([])
        assert relative(again[2].clone(), plain[2]) <= ROUNDING
        assert relative(torch.cat(again[:2], 2).clone(), torch.cat(plain[:2], 2)) <= ROUNDING


@pytest.mark.proof
def test_frames_that_go_to_the_cpu_wait_there(monkeypatch):
    vae = SMALL["wan"]()
    z = latent(vae)
    plain = decode(vae, z)
    monkeypatch.setattr(Streamed, "_possible", lambda self, frames: True)  # as on an accelerator
    with accel.patched(WanPipeline(vae), plan=plan(8)) as handle:
        assert relative(decode(vae, z), plain) <= ROUNDING and deep(handle)[0]


@pytest.mark.parametrize("name", ["wan", "hunyuan15"])
def test_a_failure_runs_whole_and_is_told(monkeypatch, name):
    vae = SMALL[name]()
    z = latent(vae, frames=2)
    plain = decode(vae, z)

    def fails(*_):
        raise AssertionError("spans")

    monkeypatch.setattr("accel.slicing.vae.video_run.spans", fails)
    with accel.patched(Pipe(vae), plan=plan(8)) as handle:
        for _ in range(2):
            assert relative(decode(vae, z), plain) <= ROUNDING
        assert deep(handle)[1].whole == {"running it in slices failed (AssertionError: spans)": 1}


@pytest.mark.parametrize("name", ["qwen", "hunyuan15"])
def test_a_later_blocks_own_error_comes_out_as_it_is(name):
    vae = SMALL[name]()
    z = latent(vae, frames=2)
    part = vae.decoder.up_blocks[0].resnets[0].conv1
    part = getattr(part, "conv", part)
    plain, bias = decode(vae, z), part.bias
    with accel.patched(Pipe(vae), plan=plan(8)) as handle:
        part.bias = torch.nn.Parameter(torch.zeros(3, 3))
        with pytest.raises(RuntimeError, match="bias"):
            decode(vae, z)
        part.bias = bias
        assert relative(decode(vae, z), plain) <= ROUNDING
        assert not any("failed" in why for why in deep(handle)[1].whole)


@pytest.mark.parametrize("name", ["wan", "hunyuan15"])
def test_hooks_and_autocast_see_whole_pictures(name):
    vae, seen = SMALL[name](), []
    z = latent(vae, frames=2)
    part = vae.decoder.up_blocks[1]
    hook = part.register_forward_hook(lambda m, a, y: seen.append(y.shape[-2]))
    plain, rows = decode(vae, z), seen[:]
    with accel.patched(Pipe(vae), plan=plan(8)) as handle:
        assert relative(decode(vae, z), plain) <= ROUNDING and seen == 2 * rows
        hook.remove()
        with torch.autocast("cpu", torch.bfloat16):
            decode(vae, z)
        assert not deep(handle)[0]
        decode(vae, z)
        assert deep(handle)[0]


@pytest.mark.proof
@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
@pytest.mark.parametrize("name", ["wan", "hunyuan15"])
def test_beside_weights_that_are_offloaded(name, kind):
    vae = SMALL[name]()
    z = latent(vae, frames=2)
    plain = decode(vae, z)
    more = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    vae.enable_group_offload(torch.device("cpu"), torch.device("cpu"), offload_type=kind, **more)
    with accel.patched(Pipe(vae), plan=plan(8)) as handle:
        assert relative(decode(vae, z), plain) <= ROUNDING and deep(handle)[0]


@pytest.mark.proof
@pytest.mark.proof
def test_a_video_in_deep_strips_takes_less_and_no_more_when_it_is_longer():
    part = Part("AutoencoderKLWan", WAN, torch.float32)
    few, many = (peak(part, (1, 4, n, 40, 16), SlicingConfig(15, 1), True) for n in (3, 5))
    latents = 2 * 2 * 4 * 40 * 16 * 4  # bytes, before and after the first convolution
    assert latents <= many - few <= latents + 2 * 16  # and one pixel each
    assert few < 0.4 * peak(part, (1, 4, 3, 40, 16), SlicingConfig(2, 1), True)
