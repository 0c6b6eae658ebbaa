"""Parts of tiny pipelines: text and image encoders, tokenizers and VAEs with random weights."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

WORDS = ["<pad>", "</s>", "<unk>", "a", "red", "blue", "circle", "moves", "left", "right"]
LATENT_4 = ("DownEncoderBlock2D", "UpDecoderBlock2D")


def tokenizer(length: int = 16) -> Any:
    """A tokenizer of one token per word."""
    words = Tokenizer(models.WordLevel({w: n for n, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        bos_token="</s>", model_max_length=length,
    )  # fmt: skip


def t5(size: int, cls: Any = T5EncoderModel) -> Any:
    config = UMT5Config if cls is UMT5EncoderModel else T5Config
    return cls(
        config(vocab_size=32, d_model=size, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    ).eval()  # fmt: skip


def umt5(size: int) -> Any:
    return t5(size, UMT5EncoderModel)


def clip(size: int, projection: int | None = None) -> Any:
    config = CLIPTextConfig(
        vocab_size=32, hidden_size=size, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=16, bos_token_id=1, eos_token_id=1,
        pad_token_id=0, projection_dim=projection or size,
    )  # fmt: skip
    return (CLIPTextModel if projection is None else CLIPTextModelWithProjection)(config).eval()


def vision(size: int, projection: int | None = None, side: int = 32) -> Any:
    config = CLIPVisionConfig(
        hidden_size=size, intermediate_size=16, num_hidden_layers=2, num_attention_heads=1,
        image_size=side, patch_size=side // 2, projection_dim=projection or size,
    )  # fmt: skip
    return (CLIPVisionModel if projection is None else CLIPVisionModelWithProjection)(config).eval()


def pictures() -> Any:
    return CLIPImageProcessor(crop_size=32, size=32)


def wan_vae(**changes: Any) -> Any:
    sizes = {
        "base_dim": 3, "z_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1,
        "temperal_downsample": [False, True, True],
    }  # fmt: skip
    return diffusers.AutoencoderKLWan(**{**sizes, **changes}).eval()


def kl_vae(channels: int = 4, **changes: Any) -> Any:
    down, up = LATENT_4
    return diffusers.AutoencoderKL(**{
        "block_out_channels": (4, 4, 4, 4), "down_block_types": (down,) * 4,
        "up_block_types": (up,) * 4, "norm_num_groups": 2, "latent_channels": channels, **changes,
    }).eval()  # fmt: skip


def hunyuan_vae() -> Any:
    return diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4,
        scaling_factor=0.476986, spatial_compression_ratio=8, temporal_compression_ratio=4,
    ).eval()  # fmt: skip


def cogvideox_vae() -> Any:
    return diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=2,
        temporal_compression_ratio=4,
    ).eval()  # fmt: skip


def ltx_vae() -> Any:
    return diffusers.AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False), upsample_factor=(1, 1, 1, 1),
        decoder_spatio_temporal_scaling=(True, True, False, False), patch_size=4, patch_size_t=1,
        upsample_residual=(False,) * 4, decoder_inject_noise=(False,) * 5, encoder_causal=True,
        decoder_causal=False,
    ).eval()  # fmt: skip


def ltx2_vaes() -> dict[str, Any]:
    """The VAEs of video and sound, and the vocoder."""
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

    video = diffusers.AutoencoderKLLTX2Video(
        latent_channels=4, block_out_channels=(8,), decoder_block_out_channels=(8,),
        layers_per_block=(1,), decoder_layers_per_block=(1, 1), spatio_temporal_scaling=(True,),
        down_block_types=("LTX2VideoDownBlock3D",), decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False), downsample_type=("spatial",), upsample_factor=(1,),
        upsample_residual=(False,), upsample_type=("spatial",), patch_size=1, encoder_causal=True,
        spatial_compression_ratio=2, temporal_compression_ratio=1,
        decoder_causal=False,
    )  # fmt: skip
    sound = diffusers.AutoencoderKLLTX2Audio(
        base_channels=4, ch_mult=(1,), num_res_blocks=1, resolution=32, latent_channels=2,
        mel_bins=8,
    )  # fmt: skip
    vocoder = LTX2Vocoder(
        in_channels=16, hidden_channels=32, upsample_kernel_sizes=[4, 4], upsample_factors=[2, 2],
        resnet_kernel_sizes=[3], resnet_dilations=[[1, 3, 5]], output_sampling_rate=16000,
    )  # fmt: skip
    return {"vae": video.eval(), "audio_vae": sound.eval(), "vocoder": vocoder.eval()}


def flow(**settings: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**settings)


def told(shape: tuple[int, ...], prompt: Any) -> torch.Tensor:
    """An encoding of a prompt: noise whose seed is the prompt."""
    seed = sum(map(ord, prompt if isinstance(prompt, str) else "".join(prompt or "")))
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
