"""Tiny pipelines whole enough to render: real diffusers classes with random weights.

``RECIPES`` gives each pipeline and a job for it, whose files are named by what they hold: PICTURE,
LAST, MASK, CLIP, POSE, FACE, EDGES, SUBJECT (``write_files``). Where a prompt is encoded by a
multimodal language model with a processor of its own (LLaVA, Qwen2.5-VL, Mistral, Gemma), a
function stands in for ``encode_prompt``; everything else is what diffusers runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image

from helpers.tiny_parts import (
    cogvideox_vae,
    flow,
    hunyuan_vae,
    ltx2_vaes,
    ltx_vae,
    pictures,
    t5,
    tokenizer,
    told,
    umt5,
    vision,
    wan_vae,
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """A pipeline's factory, and the job that it renders."""

    build: Callable[[], Any]
    job: dict[str, Any]

    def __call__(self, dtype: torch.dtype = torch.float32) -> Any:
        """The pipeline, the same every time."""
        torch.manual_seed(0)
        pipe = self.build()
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval()
        pipe.set_progress_bar_config(disable=True)
        return pipe.to(dtype)


def write_files(folder: Path) -> dict[str, str]:
    """Write every kind of input into a folder; their paths by name."""
    random = np.random.default_rng(0)
    paths = {}
    for name in ("PICTURE", "LAST", "MASK", "EDGES", "SUBJECT"):
        levels = random.integers(0, 256, (5, 7, 3), np.uint8)
        image = Image.fromarray(levels).resize((90, 70), Image.Resampling.BICUBIC)
        if name == "MASK":
            image = Image.new("L", (90, 70))
            image.paste(255, (20, 10, 60, 40))
        image.save(folder / f"{name.lower()}.png")
        paths[name] = str(folder / f"{name.lower()}.png")
    for name in ("CLIP", "POSE", "FACE"):
        (folder / name.lower()).mkdir()
        start, end = random.integers(0, 256, (2, 40, 60, 3), np.uint8).astype(float)
        for n in range(12):
            levels = start + (end - start) * n / 11
            Image.fromarray(levels.astype(np.uint8)).save(folder / name.lower() / f"{n:02}.png")
        paths[name] = str(folder / name.lower())
    return paths


def with_files(value: Any, paths: dict[str, str]) -> Any:
    """A job with the names of files replaced by their paths."""
    if isinstance(value, dict):
        return {k: with_files(v, paths) for k, v in value.items()}
    if isinstance(value, list):
        return [with_files(v, paths) for v in value]
    return paths.get(value, value) if isinstance(value, str) else value


# --------------------------------------------------------------------------------------------- Wan


def _wan_denoiser(channels: int, image: int | None = None, **more: Any) -> Any:
    return diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=channels, out_channels=16,
        text_dim=16, freq_dim=16, ffn_dim=32, num_layers=2, rope_max_seq_len=32, image_dim=image,
        added_kv_proj_dim=None if image is None else 24, **more,
    )  # fmt: skip


def _wan(name: str, **parts: Any) -> Any:
    shared = {"vae": wan_vae(), "text_encoder": umt5(16), "tokenizer": tokenizer(),
              "scheduler": flow(shift=3.0)}  # fmt: skip
    return getattr(diffusers, name)(**shared | parts)


def _wan21_i2v(**more: Any) -> Any:
    return _wan(
        "WanImageToVideoPipeline", transformer=_wan_denoiser(36, 4, **more),
        image_encoder=vision(4), image_processor=pictures(),
    )  # fmt: skip


def _wan22_i2v() -> Any:
    return _wan(
        "WanImageToVideoPipeline", transformer=_wan_denoiser(36), transformer_2=_wan_denoiser(36),
        boundary_ratio=0.9,
    )  # fmt: skip


def _wan_ti2v() -> Any:
    return _wan("WanImageToVideoPipeline", transformer=_wan_denoiser(16), expand_timesteps=True)


def _wan_v2v() -> Any:
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return _wan("WanVideoToVideoPipeline", transformer=_wan_denoiser(16), scheduler=scheduler)


def _wan_vace() -> Any:
    denoiser = diffusers.WanVACETransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16, text_dim=16,
        freq_dim=16, ffn_dim=32, num_layers=2, rope_max_seq_len=32, vace_layers=[0],
        vace_in_channels=96,
    )  # fmt: skip
    return _wan("WanVACEPipeline", transformer=denoiser)


def _wan_animate() -> Any:
    sizes = {"4": 16, "8": 16, "16": 16}
    denoiser = diffusers.WanAnimateTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=36, latent_channels=16,
        out_channels=16, text_dim=16, freq_dim=16, ffn_dim=32, num_layers=2, rope_max_seq_len=32,
        image_dim=4, motion_encoder_channel_sizes=sizes, motion_encoder_size=16,
        motion_style_dim=8, motion_dim=4, motion_encoder_dim=16, face_encoder_hidden_dim=16,
        face_encoder_num_heads=2, inject_face_latents_blocks=2,
    )  # fmt: skip
    return _wan(
        "WanAnimatePipeline", transformer=denoiser, image_encoder=vision(4),
        image_processor=pictures(), scheduler=diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    )  # fmt: skip


# --------------------------------------------------------------------------------------------- LTX


def _ltx(name: str) -> Any:
    denoiser = diffusers.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=16,
        cross_attention_dim=32, num_layers=1, caption_channels=16,
    )  # fmt: skip
    return getattr(diffusers, name)(
        scheduler=flow(), vae=ltx_vae(), text_encoder=t5(16), tokenizer=tokenizer(),
        transformer=denoiser,
    )  # fmt: skip


def _ltx2(name: str) -> Any:
    from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors

    denoiser = diffusers.LTX2VideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8,
        cross_attention_dim=16, audio_in_channels=4, audio_out_channels=4,
        audio_num_attention_heads=2, audio_attention_head_dim=4, audio_cross_attention_dim=8,
        num_layers=2, caption_channels=16, rope_double_precision=False, rope_type="split",
    )  # fmt: skip
    connectors = LTX2TextConnectors(
        caption_channels=16, text_proj_in_factor=3, video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=8, video_connector_num_layers=1,
        video_connector_num_learnable_registers=None, audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=8, audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=None, connector_rope_base_seq_len=32,
        rope_double_precision=False, rope_type="split",
    )  # fmt: skip
    pipe = getattr(diffusers, name)(
        scheduler=flow(), text_encoder=None, tokenizer=None, connectors=connectors,
        transformer=denoiser, **ltx2_vaes(),
    )  # fmt: skip

    def encode_prompt(prompt: Any, negative_prompt: Any = None, **rest: Any) -> Any:
        mask = torch.ones(1, 8, dtype=torch.int64)
        embeds = [told((1, 8, 48), p).to(denoiser.dtype) for p in (prompt, negative_prompt)]
        return embeds[0], mask, embeds[1], mask

    pipe.encode_prompt = encode_prompt
    return pipe


# ------------------------------------------------------------------------------------ HunyuanVideo


def _siglip(size: int) -> dict[str, Any]:
    from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        hidden_size=size, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        image_size=32, patch_size=16,
    )  # fmt: skip
    processor = SiglipImageProcessor(size={"height": 32, "width": 32})
    return {"image_encoder": SiglipVisionModel(config), "feature_extractor": processor}


def _hunyuan_sizes(**more: Any) -> dict[str, Any]:
    return {
        "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 10, "num_layers": 1,
        "num_single_layers": 1, "num_refiner_layers": 1, "patch_size": 2, "text_embed_dim": 16,
        "pooled_projection_dim": 8, "rope_axes_dim": (2, 4, 4), **more,
    }  # fmt: skip


def _hunyuan_told(pipe: Any) -> Any:
    """The same pipeline with a stand-in for its language model."""
    dtype = lambda: pipe.transformer.dtype  # noqa: E731

    def encode_prompt(prompt: Any, **rest: Any) -> Any:
        return (
            told((1, 6, 16), prompt).to(dtype()), told((1, 8), prompt).to(dtype()),
            torch.ones(1, 6, dtype=torch.int64),
        )  # fmt: skip

    pipe.encode_prompt = encode_prompt
    return pipe


def _hunyuan_i2v() -> Any:
    denoiser = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4, image_condition_type="token_replace", **_hunyuan_sizes()
    )
    return _hunyuan_told(diffusers.HunyuanVideoImageToVideoPipeline(
        transformer=denoiser, vae=hunyuan_vae(), scheduler=flow(), text_encoder=None,
        tokenizer=None, text_encoder_2=None, tokenizer_2=None, image_processor=None,
    ))  # fmt: skip


def _framepack() -> Any:
    denoiser = diffusers.HunyuanVideoFramepackTransformer3DModel(
        in_channels=4, has_image_proj=True, image_proj_dim=16, has_clean_x_embedder=True,
        **_hunyuan_sizes(),
    )  # fmt: skip
    return _hunyuan_told(diffusers.HunyuanVideoFramepackPipeline(
        transformer=denoiser, vae=hunyuan_vae(), scheduler=flow(), text_encoder=None,
        tokenizer=None, text_encoder_2=None, tokenizer_2=None, **_siglip(16),
    ))  # fmt: skip


def _hunyuan15_i2v() -> Any:
    from diffusers import ClassifierFreeGuidance

    denoiser = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=1,
        num_refiner_layers=1, mlp_ratio=2.0, text_embed_dim=16, text_embed_2_dim=8,
        image_embed_dim=12, rope_axes_dim=(4, 4, 8), target_size=32, task_type="i2v",
    )  # fmt: skip
    vae = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(16, 16), layers_per_block=1,
        spatial_compression_ratio=2, temporal_compression_ratio=2,
    )  # fmt: skip
    pipe = diffusers.HunyuanVideo15ImageToVideoPipeline(
        transformer=denoiser, vae=vae, scheduler=flow(), text_encoder=None, tokenizer=None,
        text_encoder_2=None, tokenizer_2=None, guider=ClassifierFreeGuidance(guidance_scale=3.0),
        **_siglip(12),
    )  # fmt: skip

    def encode_prompt(prompt: Any, **rest: Any) -> Any:
        first, second = (told(s, prompt).to(denoiser.dtype) for s in ((1, 6, 16), (1, 5, 8)))
        return first, torch.ones(1, 6), second, torch.ones(1, 5)

    pipe.encode_prompt = encode_prompt
    return pipe


# ---------------------------------------------------------------------------------- CogVideoX, SVD


def _cogvideox(name: str, channels: int) -> Any:
    denoiser = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=channels, out_channels=4,
        time_embed_dim=8, text_embed_dim=16, num_layers=1, sample_width=4, sample_height=4,
        sample_frames=5, patch_size=2, temporal_compression_ratio=4, max_text_seq_length=16,
        use_rotary_positional_embeddings=True,
    )  # fmt: skip
    return getattr(diffusers, name)(
        tokenizer=tokenizer(), text_encoder=t5(16), vae=cogvideox_vae(), transformer=denoiser,
        scheduler=diffusers.CogVideoXDDIMScheduler(),
    )  # fmt: skip


def _svd() -> Any:
    vae = diffusers.AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2
    )
    denoiser = diffusers.UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 32), layers_per_block=1, in_channels=8, out_channels=4,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=16, num_attention_heads=2, projection_class_embeddings_input_dim=24,
        addition_time_embed_dim=8, num_frames=4,
    )  # fmt: skip
    return diffusers.StableVideoDiffusionPipeline(
        vae=vae, image_encoder=vision(16, 16, 224), unet=denoiser, feature_extractor=pictures(),
        scheduler=diffusers.EulerDiscreteScheduler(prediction_type="v_prediction"),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ recipes

SHORT = {
    "model": "./none",
    "prompt": "a red circle moves left",
    "steps": 2,
    "width": 32,
    "height": 32,
    "frames": 5,
}

RECIPES: dict[str, Recipe] = {
    "wan 2.1 i2v": Recipe(_wan21_i2v, {**SHORT, "image": "PICTURE"}),
    "wan first and last frame": Recipe(
        lambda: _wan21_i2v(pos_embed_seq_len=10),
        {**SHORT, "image": "PICTURE", "last_image": "LAST", "fit": "pad"},
    ),
    "wan 2.2 i2v": Recipe(_wan22_i2v, {**SHORT, "image": "PICTURE",
                                       "arguments": {"guidance_scale_2": 3.0}}),
    "wan 2.2 ti2v": Recipe(_wan_ti2v, {**SHORT, "image": "PICTURE"}),
    "wan v2v": Recipe(_wan_v2v, {**SHORT, "video": "CLIP", "steps": 3,
                                 "arguments": {"strength": 0.7}}),
    "wan vace": Recipe(_wan_vace, {**SHORT, "video": "CLIP", "mask": "MASK",
                                   "references": ["SUBJECT"]}),
    "wan animate": Recipe(_wan_animate, {
        **SHORT, "image": "PICTURE", "control": "POSE",
        "arguments": {"face_video": "FACE", "segment_frame_length": 5}}),
    "ltx i2v": Recipe(lambda: _ltx("LTXImageToVideoPipeline"),
                      {**SHORT, "frames": 9, "image": "PICTURE"}),
    "ltx conditions": Recipe(lambda: _ltx("LTXConditionPipeline"),
                             {**SHORT, "frames": 9, "image": "PICTURE", "last_image": "LAST"}),
    "ltx-2 i2v": Recipe(lambda: _ltx2("LTX2ImageToVideoPipeline"),
                        {**SHORT, "image": "PICTURE"}),
    "ltx-2 conditions": Recipe(lambda: _ltx2("LTX2ConditionPipeline"),
                               {**SHORT, "video": "CLIP", "last_image": "LAST"}),
    "hunyuanvideo i2v": Recipe(_hunyuan_i2v, {**SHORT, "image": "PICTURE"}),
    "hunyuanvideo 1.5 i2v": Recipe(_hunyuan15_i2v, {
        **{k: SHORT[k] for k in ("model", "prompt", "steps", "frames")}, "image": "PICTURE"}),
    "framepack": Recipe(_framepack, {**SHORT, "image": "PICTURE", "last_image": "LAST",
                                     "arguments": {"latent_window_size": 3}}),
    "cogvideox i2v": Recipe(lambda: _cogvideox("CogVideoXImageToVideoPipeline", 8),
                            {**SHORT, "frames": 9, "image": "PICTURE"}),
    "cogvideox v2v": Recipe(lambda: _cogvideox("CogVideoXVideoToVideoPipeline", 4),
                            {**SHORT, "frames": 9, "video": "CLIP",
                             "arguments": {"strength": 1.0}}),
    "svd": Recipe(_svd, {
        **{k: v for k, v in SHORT.items() if k != "prompt"}, "frames": 3, "image": "PICTURE",
        "arguments": {"motion_bucket_id": 60, "decode_chunk_size": 2}}),
}  # fmt: skip
