"""Whole tiny pipelines with random weights, for what their own call hands to their parts.

Tokenizers of one token per word and encoders are real; where a prompt goes through a chat template,
a stand-in counts its tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from accel.memory import stand_ins
from helpers.families import FAMILIES, MORE

TOKENS = 2  # of the prompt: a word and the end
CFG = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}

ROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}}


def words(most: int = 16) -> Any:
    """A tokenizer of one token per word."""
    model = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    model.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        model_max_length=most,
    )  # fmt: skip


def t5(size: int = 16, cls: str = "T5") -> Any:
    config = getattr(transformers, f"{cls}Config")(
        vocab_size=32, d_model=size, d_kv=4, d_ff=16, num_layers=2, num_heads=2
    )
    return getattr(transformers, f"{cls}EncoderModel")(config)


def clip(cls: str = "CLIPTextModel", size: int = 16, projection: int = 16, most: int = 16) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=32, hidden_size=size, intermediate_size=16, num_hidden_layers=2, eos_token_id=1,
        num_attention_heads=2, max_position_embeddings=most, projection_dim=projection,
    )  # fmt: skip
    return getattr(transformers, cls)(config)


def language(cls: str, **more: Any) -> Any:
    kind = getattr(transformers, cls)
    config = {**CFG, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, **more}
    return kind(kind.config_class(**config))


def vision(size: int = 16, projection: int = 16, side: int = 32) -> Any:
    config = transformers.CLIPVisionConfig(
        hidden_size=size, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        image_size=side, patch_size=16, projection_dim=projection,
    )  # fmt: skip
    return transformers.CLIPVisionModelWithProjection(config)


def pictures(side: int = 32) -> Any:
    return transformers.CLIPImageProcessor(crop_size=side, size=side)


def flow(**settings: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**settings)


def kl(channels: int = 4, **more: Any) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=channels, shift_factor=0.1,
        **more,
    )  # fmt: skip


def wan_vae(**more: Any) -> Any:
    return diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4,
        temperal_downsample=[False, True, True], latents_std=[1.0] * 4, **more,
    )  # fmt: skip


def wan(name: str = "WanPipeline", both: bool = False, channels: int = 4, **parts: Any) -> Any:
    def model() -> Any:
        return diffusers.WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=12, in_channels=channels, out_channels=4,
            text_dim=16, freq_dim=32, ffn_dim=32, num_layers=3, rope_max_seq_len=32,
        )  # fmt: skip

    second = {"transformer_2": model(), "boundary_ratio": 0.9} if both else {}
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    given = {"tokenizer": words(), "text_encoder": t5(cls="UMT5"), "vae": wan_vae(),
             "transformer": model(), "scheduler": scheduler, **second}  # fmt: skip
    return getattr(diffusers, name)(**{**given, **parts})


def flux(name: str = "FluxPipeline", channels: int = 4) -> Any:
    model = diffusers.FluxTransformer2DModel(
        in_channels=4 * channels, out_channels=16, num_layers=3, num_single_layers=3,
        attention_head_dim=16, num_attention_heads=2, joint_attention_dim=16,
        pooled_projection_dim=16, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    return getattr(diffusers, name)(
        scheduler=flow(use_dynamic_shifting=True), vae=kl(), text_encoder=clip(),
        tokenizer=words(), text_encoder_2=t5(), tokenizer_2=words(), transformer=model,
    )  # fmt: skip


def ltx(name: str = "LTXPipeline") -> Any:
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4,
        layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 5,
    )  # fmt: skip
    return getattr(diffusers, name)(
        scheduler=flow(), vae=vae, text_encoder=t5(), tokenizer=words(), transformer=denoiser("ltx")
    )


def denoiser(name: str) -> Any:
    return {**FAMILIES, **MORE}[name]()[0]


def hunyuan() -> Any:
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(4,) * 4, layers_per_block=1, norm_num_groups=2,
        mid_block_add_attention=False,
    )  # fmt: skip
    return diffusers.HunyuanVideoPipeline(
        text_encoder=language("LlamaModel"), tokenizer=stand_ins.Tokenizer(TOKENS, 512),
        transformer=denoiser("hunyuanvideo"), vae=vae, scheduler=flow(),
        text_encoder_2=clip(size=8, most=77), tokenizer_2=words(77),
    )  # fmt: skip


def hunyuan15() -> Any:
    vae = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=1, block_out_channels=(16,) * 5, layers_per_block=1,
    )  # fmt: skip
    model = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=3, out_channels=1, num_attention_heads=2, attention_head_dim=16, num_layers=2,
        num_refiner_layers=1, mlp_ratio=2.0, text_embed_dim=16, text_embed_2_dim=16,
        image_embed_dim=12, rope_axes_dim=(4, 4, 8), target_size=32, task_type="t2v",
    )  # fmt: skip
    return diffusers.HunyuanVideo15Pipeline(
        text_encoder=language("Qwen2_5_VLTextModel", **ROPE),
        tokenizer=stand_ins.Tokenizer(TOKENS, 512), transformer=model, vae=vae, scheduler=flow(),
        text_encoder_2=t5(), tokenizer_2=words(),
        guider=diffusers.ClassifierFreeGuidance(guidance_scale=6.0),
    )  # fmt: skip


def cogvideox(name: str = "CogVideoXPipeline", channels: int = 4) -> Any:
    vae = diffusers.AutoencoderKLCogVideoX(
        latent_channels=4, block_out_channels=(4,) * 4, layers_per_block=1, norm_num_groups=2
    )
    model = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=channels, out_channels=4,
        time_embed_dim=8, text_embed_dim=16, num_layers=3, patch_size=2, max_text_seq_length=16,
        use_rotary_positional_embeddings=True, sample_width=4, sample_height=4,
    )  # fmt: skip
    return getattr(diffusers, name)(
        tokenizer=words(),
        text_encoder=t5(),
        vae=vae,
        transformer=model,
        scheduler=diffusers.CogVideoXDDIMScheduler(),
    )


def mochi() -> Any:
    vae = diffusers.AutoencoderKLMochi(
        latent_channels=12, encoder_block_out_channels=(32,) * 4,
        decoder_block_out_channels=(32,) * 4, layers_per_block=(1,) * 5,
    )  # fmt: skip
    model = diffusers.MochiTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=2, pooled_projection_dim=16,
        in_channels=12, text_embed_dim=16, time_embed_dim=4, max_sequence_length=16,
    )  # fmt: skip
    return diffusers.MochiPipeline(
        scheduler=flow(invert_sigmas=True), vae=vae, text_encoder=t5(), tokenizer=words(),
        transformer=model,
    )  # fmt: skip


def sd3(name: str = "StableDiffusion3Pipeline") -> Any:
    model = diffusers.SD3Transformer2DModel(
        sample_size=16, in_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=4,
        caption_projection_dim=32, joint_attention_dim=32, pooled_projection_dim=32,
        out_channels=4, pos_embed_max_size=16,
    )  # fmt: skip
    projected = "CLIPTextModelWithProjection"
    return getattr(diffusers, name)(
        transformer=model, scheduler=flow(), vae=kl(), text_encoder=clip(projected),
        tokenizer=words(), text_encoder_2=clip(projected), tokenizer_2=words(),
        text_encoder_3=t5(32), tokenizer_3=words(),
    )  # fmt: skip


def sdxl(name: str = "StableDiffusionXLPipeline", **more: Any) -> Any:
    model = diffusers.UNet2DConditionModel(
        block_out_channels=(16, 32), layers_per_block=1, sample_size=16, attention_head_dim=(2, 4),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), norm_num_groups=8,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8, cross_attention_dim=32,
        transformer_layers_per_block=(1, 3), projection_class_embeddings_input_dim=16 + 6 * 8,
    )  # fmt: skip
    return getattr(diffusers, name)(
        vae=kl(), text_encoder=clip(), tokenizer=words(), tokenizer_2=words(), unet=model,
        text_encoder_2=clip("CLIPTextModelWithProjection"), add_watermarker=False,
        scheduler=diffusers.EulerDiscreteScheduler(), **more,
    )  # fmt: skip


def sd(name: str = "StableDiffusionPipeline", channels: int = 4, **parts: Any) -> Any:
    model = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 8), layers_per_block=1, cross_attention_dim=16, norm_num_groups=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), attention_head_dim=4,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), sample_size=8, in_channels=channels,
    )  # fmt: skip
    return getattr(diffusers, name)(
        vae=kl(), text_encoder=clip(), tokenizer=words(), unet=model, safety_checker=None,
        scheduler=diffusers.DDIMScheduler(), feature_extractor=None, requires_safety_checker=False,
        **parts,
    )  # fmt: skip


def controlnet() -> Any:
    control = diffusers.ControlNetModel(
        block_out_channels=(8, 8), layers_per_block=1, cross_attention_dim=16, norm_num_groups=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), attention_head_dim=4,
        conditioning_embedding_out_channels=(4, 4),
    )  # fmt: skip
    return sd("StableDiffusionControlNetPipeline", controlnet=control)


def animatediff() -> Any:
    model = diffusers.UNetMotionModel(
        block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=16, norm_num_groups=8,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"), num_attention_heads=2,
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"), motion_num_attention_heads=2,
        motion_max_seq_length=16, sample_size=16,
    )  # fmt: skip
    return diffusers.AnimateDiffPipeline(
        vae=kl(), text_encoder=clip(), tokenizer=words(), unet=model, motion_adapter=None,
        scheduler=diffusers.DDIMScheduler(),
    )  # fmt: skip


def svd() -> Any:
    vae = diffusers.AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2
    )
    return diffusers.StableVideoDiffusionPipeline(
        vae=vae, image_encoder=vision(side=224), unet=denoiser("svd"), feature_extractor=pictures(),
        scheduler=diffusers.EulerDiscreteScheduler(prediction_type="v_prediction"),
    )  # fmt: skip


def qwen_image() -> Any:
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4,
        temperal_downsample=[False, True, True], latents_std=[1.0] * 4,
    )  # fmt: skip
    return diffusers.QwenImagePipeline(
        scheduler=flow(use_dynamic_shifting=True), vae=vae, transformer=denoiser("qwen_image"),
        text_encoder=language("Qwen2_5_VLTextModel", **ROPE),
        tokenizer=stand_ins.Tokenizer(34 + TOKENS, 512),  # a template of 34
    )  # fmt: skip


def z_image() -> Any:
    model = diffusers.ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=3, n_refiner_layers=1, n_heads=2, n_kv_heads=2,
        cap_feat_dim=16, axes_dims=[8, 4, 4], axes_lens=[1024, 64, 64],
    )  # fmt: skip
    return diffusers.ZImagePipeline(
        scheduler=flow(),
        vae=kl(),
        text_encoder=language("Qwen3Model"),
        transformer=model,
        tokenizer=stand_ins.Tokenizer(TOKENS, 512),
    )


def flux2() -> Any:
    model = diffusers.Flux2Transformer2DModel(
        in_channels=16, num_layers=3, num_single_layers=3, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=48, timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
    )  # fmt: skip
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, sample_size=32,
    )  # fmt: skip
    return diffusers.Flux2Pipeline(
        scheduler=flow(use_dynamic_shifting=True), vae=vae, transformer=model,
        text_encoder=language("MistralModel", num_hidden_layers=31),
        tokenizer=stand_ins.Tokenizer(TOKENS, 512),
    )  # fmt: skip


WHOLE: dict[str, Callable[[], Any]] = {
    "WanPipeline": wan,
    "WanImageToVideoPipeline": lambda: wan("WanImageToVideoPipeline", both=True, channels=12),
    "WanVideoToVideoPipeline": lambda: wan("WanVideoToVideoPipeline"),
    "WanVACEPipeline": lambda: wan("WanVACEPipeline", transformer=vace()),
    "FluxPipeline": flux,
    "FluxImg2ImgPipeline": lambda: flux("FluxImg2ImgPipeline"),
    "FluxInpaintPipeline": lambda: flux("FluxInpaintPipeline"),
    "Flux2Pipeline": flux2,
    "LTXPipeline": ltx,
    "LTXImageToVideoPipeline": lambda: ltx("LTXImageToVideoPipeline"),
    "LTXConditionPipeline": lambda: ltx("LTXConditionPipeline"),
    "HunyuanVideoPipeline": hunyuan,
    "HunyuanVideo15Pipeline": hunyuan15,
    "CogVideoXPipeline": cogvideox,
    "CogVideoXImageToVideoPipeline": lambda: cogvideox("CogVideoXImageToVideoPipeline", 8),
    "CogVideoXVideoToVideoPipeline": lambda: cogvideox("CogVideoXVideoToVideoPipeline"),
    "MochiPipeline": mochi,
    "StableDiffusion3Pipeline": sd3,
    "StableDiffusion3Img2ImgPipeline": lambda: sd3("StableDiffusion3Img2ImgPipeline"),
    "StableDiffusionXLPipeline": sdxl,
    "StableDiffusionXLImg2ImgPipeline": lambda: sdxl("StableDiffusionXLImg2ImgPipeline"),
    "StableDiffusionPipeline": sd,
    "StableDiffusionImg2ImgPipeline": lambda: sd("StableDiffusionImg2ImgPipeline"),
    "StableDiffusionInpaintPipeline": lambda: sd("StableDiffusionInpaintPipeline", 9),
    "StableDiffusionControlNetPipeline": controlnet,
    "AnimateDiffPipeline": animatediff,
    "StableVideoDiffusionPipeline": svd,
    "QwenImagePipeline": qwen_image,
    "ZImagePipeline": z_image,
}


def vace() -> Any:
    return diffusers.WanVACETransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=32, ffn_dim=32, num_layers=2, rope_max_seq_len=32, vace_layers=[0, 1],
        vace_in_channels=4 * 2 + 64,
    )  # fmt: skip


def whole(name: str) -> Any:
    """A tiny pipeline of the class, the same every time."""
    torch.manual_seed(0)
    pipe = WHOLE[name]()
    pipe.set_progress_bar_config(disable=True)
    return pipe
