"""Tiny pipelines of the families people use: real diffusers classes, random weights, no prompts."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from helpers.families import FAMILIES

IMAGE_VAE = {
    "block_out_channels": (4, 4, 4, 4), "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4, "norm_num_groups": 2, "latent_channels": 4,
}  # fmt: skip


def bare(name: str, **parts: Any) -> Any:
    """A pipeline with ``parts`` and None for everything else."""
    cls = getattr(diffusers, name)
    required = cls._get_signature_keys(cls)[0]
    return cls(**{**dict.fromkeys(required), **parts})


def transformer(name: str) -> torch.nn.Module:
    return FAMILIES[name]()[0]


def wan(channels: int, spatial: int) -> Any:
    vae = diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=channels, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[True],
        latents_mean=[0.0] * channels, latents_std=[1.0] * channels, scale_factor_spatial=spatial,
    )  # fmt: skip
    model = diffusers.WanTransformer3DModel(
        num_attention_heads=1, attention_head_dim=12, in_channels=channels, num_layers=1,
        out_channels=channels, text_dim=8, freq_dim=8, ffn_dim=8, rope_max_seq_len=32,
    )  # fmt: skip
    return bare("WanPipeline", vae=vae, transformer=model, scheduler=flow_scheduler())


def flow_scheduler() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler()


def hunyuan() -> Any:
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2,
        mid_block_add_attention=False,
    )  # fmt: skip
    return bare("HunyuanVideoPipeline", vae=vae, transformer=transformer("hunyuanvideo"))


def cogvideox() -> Any:
    vae = diffusers.AutoencoderKLCogVideoX(
        latent_channels=4, block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2
    )
    scheduler = diffusers.CogVideoXDDIMScheduler()
    return bare(
        "CogVideoXPipeline", vae=vae, transformer=transformer("cogvideox"), scheduler=scheduler
    )


def ltx() -> Any:
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1, 1),
    )  # fmt: skip
    return bare("LTXPipeline", vae=vae, transformer=transformer("ltx"), scheduler=flow_scheduler())


def mochi() -> Any:
    return bare("MochiPipeline", transformer=transformer("mochi"), scheduler=flow_scheduler())


def animatediff() -> Any:
    scheduler = diffusers.DDIMScheduler()
    vae = diffusers.AutoencoderKL(**IMAGE_VAE)
    return bare(
        "AnimateDiffPipeline", vae=vae, unet=transformer("animatediff"), scheduler=scheduler
    )


def svd() -> Any:
    vae = diffusers.AutoencoderKLTemporalDecoder(
        block_out_channels=(32,) * 4, down_block_types=("DownEncoderBlock2D",) * 4
    )
    scheduler = diffusers.EulerDiscreteScheduler()
    return bare(
        "StableVideoDiffusionPipeline", vae=vae, unet=transformer("svd"), scheduler=scheduler
    )


def images() -> Any:
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 8), layers_per_block=1, cross_attention_dim=8, norm_num_groups=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), attention_head_dim=4,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), sample_size=8,
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler()
    return bare(
        "StableDiffusionPipeline", vae=diffusers.AutoencoderKL(**IMAGE_VAE), unet=unet,
        scheduler=scheduler, requires_safety_checker=False,
    )  # fmt: skip


def easy_animate() -> Any:
    vae = diffusers.AutoencoderKLMagvit(
        latent_channels=4, block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2
    )
    return bare("EasyAnimatePipeline", vae=vae, scheduler=flow_scheduler())


def latte() -> Any:
    vae = diffusers.AutoencoderKL(**IMAGE_VAE)
    return bare("LattePipeline", vae=vae, scheduler=diffusers.DDIMScheduler())


def skyreels() -> Any:
    """With the parts of a tiny Wan, whose VAE has fewer levels than its factors say."""
    parts = wan(16, 8)
    pipe = bare(
        "SkyReelsV2Pipeline", vae=parts.vae, transformer=parts.transformer,
        scheduler=parts.scheduler,
    )  # fmt: skip
    pipe.vae_scale_factor_temporal, pipe.vae_scale_factor_spatial = 4, 8
    return pipe
