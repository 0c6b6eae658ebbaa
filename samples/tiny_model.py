"""The parts of the embedded model before training.

They are VAE, tokenizer, text encoder, transformer and scheduler, all of them ordinary diffusers and
transformers classes with small numbers in their configs. So code that works on this model takes the
same paths as on Wan 2.1.
"""

from __future__ import annotations

from pathlib import Path

import torch
from clips import COLORS, PATTERNS, SHAPES
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from pooled import CHANNELS, SPATIAL, TEMPORAL
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

TEXT_WIDTH = 128
PROMPT_TOKENS = 32


def build_vae() -> AutoencoderKLWan:
    """Return a causal video VAE, 4 x 4 x 4 compression to 12 channels, 0.6 M parameters.

    ``pooled.py`` explains its latents.
    """
    return AutoencoderKLWan(
        base_dim=8,
        z_dim=CHANNELS,
        dim_mult=[1, 4, 4],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        is_residual=True,
        latents_mean=[0.0] * CHANNELS,
        latents_std=[1.0] * CHANNELS,
        scale_factor_temporal=TEMPORAL,
        scale_factor_spatial=SPATIAL,
    )


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of one token per word; words that no clip's caption has become <unk>."""
    words = ["a", "and", "on", "background", *COLORS, *SHAPES, *PATTERNS]
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(Regex(r"\ban\b"), "a")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=PROMPT_TOKENS,
    )


def build_text_encoder(vocabulary: int) -> UMT5EncoderModel:
    """Return two T5 layers of width 128, to be trained together with the transformer.

    At first heads attend by position alone: to the next word, the one before, two ahead and two
    back. T5 does not scale its logits, so with its own first weights attention settles on single
    words at any position, and the model never learns which color belongs to which object.
    """
    encoder = UMT5EncoderModel(
        UMT5Config(
            vocab_size=vocabulary,
            d_model=TEXT_WIDTH,
            d_kv=32,
            num_heads=4,
            d_ff=256,
            num_layers=2,
            pad_token_id=0,
            eos_token_id=1,
            dropout_rate=0.0,
        )
    )
    after = UMT5Config().relative_attention_num_buckets // 2  # buckets of the words that follow
    with torch.no_grad():
        for block in encoder.encoder.block:
            attention = block.layer[0].SelfAttention
            attention.q.weight.mul_(0.03)
            attention.relative_attention_bias.weight.zero_()
            for head, bucket in enumerate((after + 1, 1, after + 2, 2)):
                attention.relative_attention_bias.weight[bucket, head] = 4.0
    return encoder


def build_transformer() -> WanTransformer3DModel:
    """Return six Wan blocks with three heads of 64 channels.

    A token covers 2 x 2 latent pixels: 320 tokens for 17 x 64 x 64.
    """
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=3,
        attention_head_dim=64,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=TEXT_WIDTH,
        freq_dim=64,
        ffn_dim=512,
        num_layers=6,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=64,
    )


def encode_text(
    encoder: UMT5EncoderModel, tokenizer: PreTrainedTokenizerFast, prompts: list[str], length: int
) -> torch.Tensor:
    """Return prompt embeddings [B, length, 128] like WanPipeline: zeros after the last token."""
    tokens = tokenizer(prompts, padding=True, return_tensors="pt").to(encoder.device)
    mask = tokens.attention_mask
    hidden = encoder(tokens.input_ids, mask).last_hidden_state * mask[..., None]
    return torch.nn.functional.pad(hidden, (0, 0, 0, length - hidden.shape[1]))


def save_pipeline(
    folder: Path,
    vae: AutoencoderKLWan,
    encoder: UMT5EncoderModel,
    transformer: WanTransformer3DModel,
) -> None:
    """Write the whole pipeline as fp16 safetensors."""
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=2.0
    )
    pipe = WanPipeline(
        tokenizer=build_tokenizer(),
        text_encoder=encoder,
        vae=vae,
        scheduler=scheduler,
        transformer=transformer,
    )
    pipe.to(torch.float16).save_pretrained(folder)
