"""Parts of tiny pipelines: text and image encoders, tokenizers and VAEs with random weights."""

from __future__ import annotations

from typing import Any

import diffusers
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = ["<pad>", "</s>", "<unk>", "a", "red", "blue", "circle", "moves", "left", "right"]
VOCABULARY = 32
ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}

# ------------------------------------------------------------------------------------------ prompts


def words(most: int = 16, *special: str, start: int = 0) -> Any:
    """A tokenizer of one token per word.

    ``special``: further words that are one token each; ``start``: tokens before a prompt.
    """
    known = {word: n for n, word in enumerate([*WORDS, *special])}
    model = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    model.post_processor = processors.TemplateProcessing(
        single=" ".join(["</s>"] * start + ["$A", "</s>"]), special_tokens=[("</s>", 1)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        bos_token="</s>", model_max_length=most, additional_special_tokens=list(special),
    )  # fmt: skip


CHAT = """{% for one in messages %}{{ one.role }} {% if one.content is string %}{{ one.content }}\
{% else %}{% for part in one.content %}{{ part.text }}{% endfor %}{% endif %} {% endfor %}"""


def chat(*special: str) -> Any:
    """A tokenizer of one token per word, with a template for chats."""
    found = words(512, *special)
    found.chat_template = CHAT
    return found


def t5(size: int = 16, cls: str = "T5") -> Any:
    config = getattr(transformers, f"{cls}Config")(
        vocab_size=VOCABULARY, d_model=size, d_kv=4, d_ff=16, num_layers=2, num_heads=2
    )
    return getattr(transformers, f"{cls}EncoderModel")(config)


def clip(size: int = 16, projection: int | None = None, most: int = 16) -> Any:
    """A CLIP of texts, with a projection to so many channels if that is given."""
    config = transformers.CLIPTextConfig(
        vocab_size=VOCABULARY, hidden_size=size, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=most, bos_token_id=1, eos_token_id=1,
        pad_token_id=0, projection_dim=projection or size,
    )  # fmt: skip
    if projection is None:
        return transformers.CLIPTextModel(config)
    return transformers.CLIPTextModelWithProjection(config)


LANGUAGE = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
}  # fmt: skip


def language(cls: str, **more: Any) -> Any:
    """A language model of 16 channels."""
    kind = getattr(transformers, cls)
    return kind(kind.config_class(**{**LANGUAGE, **more}))


def llava() -> Any:
    """A language model that sees a picture as 576 tokens; its word for one is the last."""
    seen = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        image_size=48, patch_size=2, projection_dim=16,
    )  # fmt: skip
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**LANGUAGE), vision_config=seen, pad_token_id=0,
        image_token_index=len(WORDS), image_token_id=len(WORDS), vision_feature_layer=-1,
    )  # fmt: skip
    return transformers.LlavaForConditionalGeneration(config)


# ----------------------------------------------------------------------------------------- pictures


def vision(size: int = 16, projection: int | None = None, side: int = 32) -> Any:
    """A CLIP of pictures, with a projection to so many channels if that is given."""
    config = transformers.CLIPVisionConfig(
        hidden_size=size, intermediate_size=16, num_hidden_layers=2, num_attention_heads=1,
        image_size=side, patch_size=side // 2, projection_dim=projection or size,
    )  # fmt: skip
    if projection is None:
        return transformers.CLIPVisionModel(config)
    return transformers.CLIPVisionModelWithProjection(config)


def pictures(side: int = 32) -> Any:
    return transformers.CLIPImageProcessor(crop_size=side, size=side)


def siglip(size: int) -> dict[str, Any]:
    """A SigLIP of pictures and its processor."""
    config = transformers.SiglipVisionConfig(
        hidden_size=size, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        image_size=32, patch_size=16,
    )  # fmt: skip
    processor = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
    return {"image_encoder": transformers.SiglipVisionModel(config), "feature_extractor": processor}


# -------------------------------------------------------------------------------------------- VAEs


def wan_vae(**changes: Any) -> Any:
    sizes = {
        "base_dim": 3, "z_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1,
        "temperal_downsample": [False, True, True],
    }  # fmt: skip
    return diffusers.AutoencoderKLWan(**{**sizes, **changes})


def kl_vae(channels: int = 4, **changes: Any) -> Any:
    return diffusers.AutoencoderKL(**{
        "block_out_channels": (4, 4, 4, 4), "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4, "norm_num_groups": 2,
        "latent_channels": channels, **changes,
    })  # fmt: skip


def hunyuan_vae() -> Any:
    return diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4,
        scaling_factor=0.476986, spatial_compression_ratio=8, temporal_compression_ratio=4,
    )  # fmt: skip


def cogvideox_vae() -> Any:
    return diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=2,
        temporal_compression_ratio=4,
    )  # fmt: skip


def ltx_vae() -> Any:
    return diffusers.AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False), upsample_factor=(1, 1, 1, 1),
        decoder_spatio_temporal_scaling=(True, True, False, False), patch_size=4, patch_size_t=1,
        upsample_residual=(False,) * 4, decoder_inject_noise=(False,) * 5, encoder_causal=True,
        decoder_causal=False,
    )  # fmt: skip


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
    return {"vae": video, "audio_vae": sound, "vocoder": vocoder}


def flow(**settings: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**settings)
