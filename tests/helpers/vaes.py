"""Small VAEs of every kind whose decoder is changed, and pipelines around them."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLLTX2Video,
    AutoencoderKLLTXVideo,
    AutoencoderKLMochi,
    AutoencoderKLQwenImage,
    AutoencoderKLTemporalDecoder,
    AutoencoderKLWan,
)

from accel import Plan, SlicingConfig
from accel.families.components import meta
from accel.memory.tracker import activation_peak
from accel.pipelines.load import load
from accel.slicing.vae.apply import apply_strips


class Pipe:
    """A pipeline of a denoiser, which is not called, and a VAE."""

    def __init__(self, vae):
        self.transformer, self.vae = torch.nn.ModuleList(), vae


def small(cls, **more):
    torch.manual_seed(0)
    sizes = {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 2, 2], "num_res_blocks": 1, **more}
    return cls(**sizes, temperal_downsample=[True, True], latents_mean=[0.0] * 4,
               latents_std=[1.0] * 4).eval()  # fmt: skip


def ltx(**more):
    torch.manual_seed(0)
    sizes = {"latent_channels": 4, "block_out_channels": (8, 16), "layers_per_block": (1, 1, 1),
             "decoder_block_out_channels": (8, 16), "decoder_layers_per_block": (1, 1, 1),
             "spatio_temporal_scaling": (True, True), "patch_size": 2,
             "decoder_spatio_temporal_scaling": (True, True), **more}  # fmt: skip
    return AutoencoderKLLTXVideo(**sizes).eval()


def ltx2():
    torch.manual_seed(0)
    return AutoencoderKLLTX2Video(
        latent_channels=4, block_out_channels=(8, 16), layers_per_block=(1, 1, 1),
        decoder_block_out_channels=(8, 16), decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, True), decoder_spatio_temporal_scaling=(True, True),
        decoder_inject_noise=(False,) * 3, upsample_residual=(True, True), upsample_factor=(2, 2),
        downsample_type=("spatial", "spatiotemporal"), patch_size=2,
    ).eval()  # fmt: skip


def hunyuan15():
    torch.manual_seed(0)
    return AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(8, 8, 16), layers_per_block=1,
        spatial_compression_ratio=4, temporal_compression_ratio=4,
    ).eval()  # fmt: skip


VAES = {
    "hunyuan15": hunyuan15,
    "ltx": ltx,
    "ltx2": ltx2,
    "tiny": lambda: load("tiny").vae,
    "wan22": lambda: small(AutoencoderKLWan, is_residual=True, patch_size=2, in_channels=12,
                           out_channels=12, decoder_base_dim=12),
    "qwen": lambda: small(AutoencoderKLQwenImage),
}  # fmt: skip


def plan(strips):
    return Plan("t", None, SlicingConfig(strips, min_tokens=1))


@torch.no_grad()
def decode(vae, z):
    return vae.decode(z, return_dict=False)[0]


class WanPipeline(Pipe):
    """One of diffusers' by its name: it only returns what it decodes."""


def cogvideox():
    torch.manual_seed(0)
    return AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=4,
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
    ).eval()  # fmt: skip


def mochi():
    torch.manual_seed(0)
    vae = AutoencoderKLMochi(
        latent_channels=4, encoder_block_out_channels=(32,) * 4, layers_per_block=(1,) * 5,
        decoder_block_out_channels=(32,) * 4, latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    ).eval()  # fmt: skip
    vae.use_framewise_decoding = True
    return vae


STREAMED = {name: VAES[name] for name in ("tiny", "wan22", "qwen")}
STREAMED |= {"cogvideox": cogvideox, "mochi": mochi}

UP, DOWN = ("UpDecoderBlock2D",) * 2, ("DownEncoderBlock2D",) * 2
KL = {"block_out_channels": (32, 64), "layers_per_block": 1, "latent_channels": 4,
      "down_block_types": DOWN}  # fmt: skip
HUNYUAN = {"block_out_channels": (8, 8, 16, 16), "layers_per_block": 1, "latent_channels": 4,
           "norm_num_groups": 4}  # fmt: skip
KL2 = {**KL, "up_block_types": UP, "norm_num_groups": 8}
GROUPED = {
    "kl": (AutoencoderKL, {**KL2, "mid_block_add_attention": False}, (2, 4, 9, 12), {}),
    "hunyuan": (AutoencoderKLHunyuanVideo, HUNYUAN, (1, 4, 3, 8, 6), {}),
    "svd": (AutoencoderKLTemporalDecoder, KL, (6, 4, 9, 12), {"num_frames": 3}),
}


# Attention gives its result channels last; there torch sums statistics in another order.
ALL = {**GROUPED, "kl with attention": (AutoencoderKL, KL2, (2, 4, 9, 12), {})}


def grouped(name):
    cls, sizes, shape, more = ALL[name]
    torch.manual_seed(0)
    z = torch.randn(shape, generator=torch.manual_seed(1))
    return cls(**sizes).eval(), z, more


def relative(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


def peak(part, shape, config, streamed=True, **more):
    """Simulated peak of decoding a latent of ``shape``."""
    vae, z = part.build(), meta(*shape, dtype=part.dtype)
    if config is not None:
        apply_strips(vae, config, ExitStack(), streamed)
    weights = [*vae.parameters(), *vae.buffers()]
    return activation_peak(lambda: vae.decode(z, return_dict=False, **more), z, weights)[0]
