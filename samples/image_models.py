"""The parts of two small models of pictures before training.

They are ordinary diffusers and transformers classes with small numbers in their configs, as in
``tiny_model.py``, and unlike the embedded model in all that step rehash depends on:

* ``dit``: ``FluxPipeline`` with ``FluxTransformer2DModel``, rectified flow, DPM-Solver++ of order
  2, and guidance by two calls of the transformer.
* ``unet``: ``StableDiffusionPipeline`` with ``UNet2DConditionModel``, prediction of the noise,
  DDIM, and guidance by one call with a batch of two.

Pictures are 32 x 32. Latents [3, 16, 16] are their means over 2 x 2 pixels, at unit variance, so
that VAE and denoisers can be trained side by side (``pooled.py`` does the same for clips).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tiny_model import TEXT_WIDTH, build_text_encoder, build_tokenizer
from torch import Tensor
from torch.nn.functional import avg_pool2d
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

SIZE, CHANNELS, CELLS = 32, 3, 16  # pixels, latent channels, latent pixels a side
MEAN, SPREAD = -0.41, 0.42  # of pixels in -1..1, over the training pictures
TOKENS = 16  # of a prompt; captions of one shape have nine


def build_image_vae() -> AutoencoderKL:
    """Return an autoencoder of pictures with latents of half the size, 0.1 M parameters."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32),
        latent_channels=CHANNELS,
        norm_num_groups=8,
        sample_size=SIZE,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = build_tokenizer()
    tokenizer.model_max_length = TOKENS
    return tokenizer


def _clip(width: int, layers: int) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(build_tokenizer()),
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=1,
        )
    )


def build_dit(vae: AutoencoderKL) -> FluxPipeline:
    """Return a FLUX pipeline: two double and four single blocks of width 96, 64 image tokens."""
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * CHANNELS,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=32,
        num_attention_heads=3,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=32,
        axes_dims_rope=(8, 12, 12),
    )
    return FluxPipeline(
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            use_dynamic_shifting=True,  # by e ** 0.47 at this size
            time_shift_type="exponential",
        ),
        vae=vae,
        text_encoder=_clip(32, 1),
        tokenizer=_tokenizer(),
        text_encoder_2=build_text_encoder(len(build_tokenizer())),
        tokenizer_2=_tokenizer(),
        transformer=transformer,
    )


def build_unet(vae: AutoencoderKL) -> StableDiffusionPipeline:
    """Return a Stable Diffusion pipeline: a UNet of two levels, attention in the lower one."""
    unet = UNet2DConditionModel(
        sample_size=CELLS,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=96,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=_clip(96, 2),
        tokenizer=_tokenizer(),
        unet=unet,
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def mean_latents(pictures: Tensor) -> Tensor:
    """Return latents [B, 3, 16, 16] of pictures [B, 3, 32, 32] in -1..1."""
    return (avg_pool2d(pictures, SIZE // CELLS) - MEAN) / SPREAD


def pack(latents: Tensor) -> Tensor:
    """Return latents [B, C, 2 h, 2 w] as FLUX's tokens [B, h w, 4 C]."""
    x = latents.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # [B, C, h, 2, w, 2]
    return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def places() -> Tensor:
    """Return the places of FLUX's image tokens, [64, 3]: 0, row, column."""
    side = torch.arange(CELLS // 2, dtype=torch.float32)
    rows, columns = torch.meshgrid(side, side, indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], -1).flatten(0, 1)


def flow_loss(pipe: FluxPipeline, x: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return the mean squared error of the velocity e - x of latents [B, 3, 16, 16]."""
    text, pooled, ids = pipe.encode_prompt(list(prompts), None, max_sequence_length=TOKENS)
    noise = torch.randn_like(x)
    times = torch.sigmoid(torch.randn(len(x)))
    t = times.view(-1, 1, 1, 1)
    guess = pipe.transformer(
        pack((1 - t) * x + t * noise),
        encoder_hidden_states=text,
        pooled_projections=pooled,
        timestep=times,  # the pipeline, too, hands on a thousandth of the scheduler's
        img_ids=places(),
        txt_ids=ids,
    ).sample
    return (guess.float() - pack(noise - x)).square().mean()


def noise_loss(pipe: StableDiffusionPipeline, x: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return the mean squared error of the noise of latents [B, 3, 16, 16]."""
    text, _ = pipe.encode_prompt(list(prompts), torch.device("cpu"), 1, False)
    noise = torch.randn_like(x)
    times = torch.randint(0, pipe.scheduler.config.num_train_timesteps, (len(x),))
    guess = pipe.unet(pipe.scheduler.add_noise(x, noise, times), times, text).sample
    return (guess.float() - noise).square().mean()


def trained_parts(pipe: Any) -> torch.nn.ModuleDict:
    """Return the denoiser and the text encoders of a pipeline; its VAE is trained before them."""
    names = ("transformer", "unet", "text_encoder", "text_encoder_2")
    found = {name: getattr(pipe, name, None) for name in names}
    return torch.nn.ModuleDict({name: part for name, part in found.items() if part is not None})
