"""Tiny pipelines that make an image: real diffusers classes with random weights."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from helpers.tiny_parts import ROPE, chat, clip, flow, kl_vae, language, t5, words
from helpers.tiny_recipe import IMAGE, Recipe

# -------------------------------------------------------------------------------- Stable Diffusion


def noisy(module: Any) -> Any:
    """The module with weights of noise: the last layers of control nets begin at zero."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return module


def _sd(name: str = "StableDiffusionPipeline", channels: int = 4, **parts: Any) -> Any:
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=16, norm_num_groups=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), attention_head_dim=4,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), sample_size=4, in_channels=channels,
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        steps_offset=1,
    )  # fmt: skip
    return getattr(diffusers, name)(
        vae=kl_vae(), text_encoder=clip(), tokenizer=words(), unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False, **parts,
    )  # fmt: skip


def _sd_controlnet() -> Any:
    controlnet = diffusers.ControlNetModel(
        block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=16, norm_num_groups=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), attention_head_dim=4,
        conditioning_embedding_out_channels=(4, 4, 4, 8),
    )  # fmt: skip
    return _sd("StableDiffusionControlNetPipeline", controlnet=noisy(controlnet))


def _sdxl(name: str = "StableDiffusionXLPipeline", numbers: int = 6, **settings: Any) -> Any:
    """``numbers``: of sizes and scores that it is told."""
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(16, 32), layers_per_block=1, sample_size=4, attention_head_dim=(2, 4),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), norm_num_groups=8,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8, cross_attention_dim=32,
        transformer_layers_per_block=(1, 3),
        projection_class_embeddings_input_dim=16 + numbers * 8,
    )  # fmt: skip
    return getattr(diffusers, name)(
        vae=kl_vae(), text_encoder=clip(), text_encoder_2=clip(16, 16), tokenizer=words(),
        tokenizer_2=words(), unet=unet, scheduler=diffusers.EulerDiscreteScheduler(), **settings,
    )  # fmt: skip


def _sd3(name: str = "StableDiffusion3Pipeline") -> Any:
    denoiser = diffusers.SD3Transformer2DModel(
        sample_size=16, in_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=4,
        caption_projection_dim=32, joint_attention_dim=32, pooled_projection_dim=32,
        out_channels=4, pos_embed_max_size=16,
    )  # fmt: skip
    return getattr(diffusers, name)(
        transformer=denoiser, scheduler=flow(), vae=kl_vae(shift_factor=0.06),
        text_encoder=clip(16, 16), tokenizer=words(), text_encoder_2=clip(16, 16),
        tokenizer_2=words(), text_encoder_3=t5(32), tokenizer_3=words(),
    )  # fmt: skip


# ------------------------------------------------------------------------------ Flux, Qwen, Z-Image


def _flux(name: str = "FluxPipeline", **parts: Any) -> Any:
    sizes = {
        "in_channels": 16, "attention_head_dim": 16, "num_attention_heads": 2,
        "joint_attention_dim": 16, "pooled_projection_dim": 8, "axes_dims_rope": (4, 4, 8),
    }  # fmt: skip
    denoiser = diffusers.FluxTransformer2DModel(
        num_layers=3, num_single_layers=3, guidance_embeds=True, **sizes
    )
    if name == "FluxControlNetPipeline":
        parts["controlnet"] = noisy(
            diffusers.FluxControlNetModel(num_layers=1, num_single_layers=1, **sizes)
        )
    return getattr(diffusers, name)(
        scheduler=flow(use_dynamic_shifting=True), text_encoder=clip(8), tokenizer=words(),
        text_encoder_2=t5(), tokenizer_2=words(), transformer=denoiser,
        vae=kl_vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06,
                   scaling_factor=1.5), **parts,
    )  # fmt: skip


def _flux2() -> Any:
    denoiser = diffusers.Flux2Transformer2DModel(
        in_channels=16, num_layers=3, num_single_layers=3, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=48, timestep_guidance_channels=8,
        axes_dims_rope=(4, 4, 4, 4),
    )  # fmt: skip
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(4, 4, 4, 4), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, norm_num_groups=2, latent_channels=4,
        layers_per_block=1,
    )  # fmt: skip
    return diffusers.Flux2Pipeline(
        scheduler=flow(use_dynamic_shifting=True), vae=vae, transformer=denoiser, tokenizer=chat(),
        text_encoder=language("MistralModel", num_hidden_layers=31),  # it reads layers 10, 20, 30
    )  # fmt: skip


def _qwen(name: str, **readers: Any) -> Any:
    denoiser = diffusers.QwenImageTransformer2DModel(
        in_channels=16 * 4, out_channels=16, num_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=16, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )  # fmt: skip
    return getattr(diffusers, name)(
        scheduler=flow(use_dynamic_shifting=True), vae=vae, transformer=denoiser, **readers
    )


def _qwen_image() -> Any:
    encoder = language("Qwen2_5_VLTextModel", rope_parameters=ROPE)
    return _qwen("QwenImagePipeline", text_encoder=encoder, tokenizer=chat())


def _qwen_edit(name: str) -> Any:
    """With a stand-in for its prompts: transformers makes their processor only with torchvision."""
    pipe = _qwen(name, text_encoder=None, tokenizer=None, processor=None)

    def encode_prompt(prompt: Any, **rest: Any) -> Any:
        seed = sum(map(ord, "".join(prompt or "")))
        encoded = torch.randn((1, 6, 16), generator=torch.Generator().manual_seed(seed))
        return encoded.to(pipe.transformer.dtype), torch.ones(1, 6, dtype=torch.int64)

    pipe.encode_prompt = encode_prompt
    return pipe


def _z_image() -> Any:
    denoiser = diffusers.ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=3, n_refiner_layers=1, n_heads=2, n_kv_heads=2,
        cap_feat_dim=16, axes_dims=[8, 4, 4], axes_lens=[1024, 64, 64],
    )  # fmt: skip
    return diffusers.ZImagePipeline(
        scheduler=flow(), vae=kl_vae(shift_factor=0.1), text_encoder=language("Qwen3Model"),
        transformer=denoiser, tokenizer=chat(),
    )  # fmt: skip


FROM_IMAGE = {**IMAGE, "image": "PICTURE"}
RECIPES: dict[str, Recipe] = {
    "sd": Recipe(_sd, IMAGE),
    "sd img2img": Recipe(lambda: _sd("StableDiffusionImg2ImgPipeline"),
                         {**FROM_IMAGE, "arguments": {"strength": 0.6}}),
    "sd inpaint": Recipe(lambda: _sd("StableDiffusionInpaintPipeline", 9),
                         {**FROM_IMAGE, "mask": "MASK"}),
    "sd controlnet": Recipe(_sd_controlnet, {**IMAGE, "control": "EDGES"}),
    "sdxl": Recipe(lambda: _sdxl(add_watermarker=False), IMAGE),
    "sdxl img2img": Recipe(
        lambda: _sdxl("StableDiffusionXLImg2ImgPipeline", 5, requires_aesthetics_score=True,
                      add_watermarker=False),
        {**FROM_IMAGE, "arguments": {"strength": 1.0}}),
    "sd3": Recipe(_sd3, IMAGE),
    "sd3 img2img": Recipe(lambda: _sd3("StableDiffusion3Img2ImgPipeline"),
                          {**FROM_IMAGE, "arguments": {"strength": 1.0}}),
    "flux": Recipe(_flux, IMAGE),
    "flux img2img": Recipe(lambda: _flux("FluxImg2ImgPipeline"),
                           {**FROM_IMAGE, "arguments": {"strength": 1.0}}),
    "flux inpaint": Recipe(lambda: _flux("FluxInpaintPipeline"),
                           {**FROM_IMAGE, "mask": "MASK"}),
    "flux controlnet": Recipe(lambda: _flux("FluxControlNetPipeline"),
                              {**IMAGE, "control": "EDGES"}),
    "flux kontext": Recipe(lambda: _flux("FluxKontextPipeline"),
                           {**FROM_IMAGE, "arguments": {"max_area": 1024}}),
    "flux.2": Recipe(_flux2, {**FROM_IMAGE, "width": 64, "height": 64,
                              "references": ["SUBJECT"]}),
    "qwen-image": Recipe(_qwen_image, IMAGE),
    "qwen-image edit": Recipe(lambda: _qwen_edit("QwenImageEditPipeline"), FROM_IMAGE, False),
    "qwen-image edit plus": Recipe(lambda: _qwen_edit("QwenImageEditPlusPipeline"),
                                   {**FROM_IMAGE, "references": ["SUBJECT"]}, False),
    "z-image": Recipe(_z_image, IMAGE),
}  # fmt: skip
