"""Tiny pipelines that make an image of pictures; ``tiny_pipelines.py`` has those for videos."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from helpers.tiny_parts import clip, flow, kl_vae, t5, tokenizer, told
from helpers.tiny_pipelines import Recipe

IMAGE = {
    "model": "./none",
    "prompt": "a red circle moves left",
    "steps": 2,
    "width": 32,
    "height": 32,
}


# -------------------------------------------------------------------------------- Stable Diffusion


def _unet(channels: int = 4, **more: Any) -> Any:
    return diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=16, norm_num_groups=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), attention_head_dim=4,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), sample_size=4, in_channels=channels,
        **more,
    )  # fmt: skip


def _sd(name: str, channels: int = 4, **parts: Any) -> Any:
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        steps_offset=1,
    )  # fmt: skip
    return getattr(diffusers, name)(
        vae=kl_vae(), text_encoder=clip(16), tokenizer=tokenizer(), unet=_unet(channels),
        scheduler=scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False, **parts,
    )  # fmt: skip


def _sd_controlnet() -> Any:
    controlnet = diffusers.ControlNetModel(
        block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=16, norm_num_groups=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), attention_head_dim=4,
        conditioning_embedding_out_channels=(4, 4, 4, 8),
    )  # fmt: skip
    for parameter in controlnet.parameters():  # its last layers begin at zero
        torch.nn.init.normal_(parameter, std=0.1)
    return _sd("StableDiffusionControlNetPipeline", controlnet=controlnet)


def _sdxl_img2img() -> Any:
    unet = _unet(
        addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=8 * 5 + 16, transformer_layers_per_block=1,
    )  # fmt: skip
    unet.register_to_config(cross_attention_dim=16)
    return diffusers.StableDiffusionXLImg2ImgPipeline(
        vae=kl_vae(), text_encoder=clip(8), text_encoder_2=clip(8, 16), tokenizer=tokenizer(),
        tokenizer_2=tokenizer(), unet=unet, requires_aesthetics_score=True,
        scheduler=diffusers.EulerDiscreteScheduler(),
    )  # fmt: skip


# ----------------------------------------------------------------------------------- Flux and Qwen


def _flux(name: str, channels: int = 16, out: int | None = None, **parts: Any) -> Any:
    sizes = {
        "num_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2,
        "joint_attention_dim": 16, "pooled_projection_dim": 8, "axes_dims_rope": (4, 4, 8),
    }  # fmt: skip
    denoiser = diffusers.FluxTransformer2DModel(
        in_channels=channels, out_channels=out, num_single_layers=1, **sizes
    )
    if name == "FluxControlNetPipeline":
        parts["controlnet"] = diffusers.FluxControlNetModel(
            in_channels=channels, num_single_layers=1, **sizes
        )
        for parameter in parts["controlnet"].parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return getattr(diffusers, name)(
        scheduler=flow(), vae=kl_vae(4, use_quant_conv=False, use_post_quant_conv=False,
                                     shift_factor=0.06, scaling_factor=1.5),
        text_encoder=clip(8), tokenizer=tokenizer(), text_encoder_2=t5(16),
        tokenizer_2=tokenizer(), transformer=denoiser, **parts,
    )  # fmt: skip


def _flux2() -> Any:
    denoiser = diffusers.Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=16, timestep_guidance_channels=8,
        axes_dims_rope=(4, 4, 4, 4),
    )  # fmt: skip
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(4, 4, 4, 4), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, norm_num_groups=2, latent_channels=4,
        layers_per_block=1,
    )  # fmt: skip
    pipe = diffusers.Flux2Pipeline(
        scheduler=flow(), vae=vae, text_encoder=None, tokenizer=None, transformer=denoiser
    )

    def encode_prompt(prompt: Any, **rest: Any) -> Any:
        return told((1, 6, 16), prompt).to(denoiser.dtype), torch.zeros(1, 6, 4)

    pipe.encode_prompt = encode_prompt
    return pipe


def _qwen(name: str) -> Any:
    denoiser = diffusers.QwenImageTransformer2DModel(
        in_channels=16 * 4, out_channels=16, num_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=16, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )  # fmt: skip
    pipe = getattr(diffusers, name)(
        scheduler=flow(), vae=vae, text_encoder=None, tokenizer=None, processor=None,
        transformer=denoiser,
    )  # fmt: skip

    def encode_prompt(prompt: Any, **rest: Any) -> Any:
        return told((1, 6, 16), prompt).to(denoiser.dtype), torch.ones(1, 6, dtype=torch.int64)

    pipe.encode_prompt = encode_prompt
    return pipe


RECIPES: dict[str, Recipe] = {
    "sd img2img": Recipe(lambda: _sd("StableDiffusionImg2ImgPipeline"),
                         {**IMAGE, "image": "PICTURE", "arguments": {"strength": 0.6}}),
    "sd inpaint": Recipe(lambda: _sd("StableDiffusionInpaintPipeline", 9),
                         {**IMAGE, "image": "PICTURE", "mask": "MASK"}),
    "sd controlnet": Recipe(_sd_controlnet, {**IMAGE, "control": "EDGES"}),
    "sdxl img2img": Recipe(_sdxl_img2img, {**IMAGE, "image": "PICTURE",
                                           "arguments": {"strength": 1.0}}),
    "flux img2img": Recipe(lambda: _flux("FluxImg2ImgPipeline"),
                           {**IMAGE, "image": "PICTURE", "arguments": {"strength": 1.0}}),
    "flux inpaint": Recipe(lambda: _flux("FluxInpaintPipeline"),
                           {**IMAGE, "image": "PICTURE", "mask": "MASK"}),
    "flux controlnet": Recipe(lambda: _flux("FluxControlNetPipeline"),
                              {**IMAGE, "control": "EDGES"}),
    "flux kontext": Recipe(lambda: _flux("FluxKontextPipeline"),
                           {**IMAGE, "image": "PICTURE",
                            "arguments": {"max_area": 1024}}),
    "flux.2": Recipe(_flux2, {**IMAGE, "width": 64, "height": 64, "image": "PICTURE",
                              "references": ["SUBJECT"]}),
    "qwen-image edit": Recipe(lambda: _qwen("QwenImageEditPipeline"),
                              {**IMAGE, "image": "PICTURE"}),
    "qwen-image edit plus": Recipe(lambda: _qwen("QwenImageEditPlusPipeline"),
                                   {**IMAGE, "image": "PICTURE", "references": ["SUBJECT"]}),
}  # fmt: skip
