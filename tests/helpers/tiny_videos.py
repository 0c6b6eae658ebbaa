"""Tiny pipelines that make videos: real diffusers classes with random weights."""

from __future__ import annotations

from typing import Any

import diffusers

from helpers.tiny_parts import (
    ROPE,
    chat,
    clip,
    cogvideox_vae,
    flow,
    hunyuan_vae,
    kl_vae,
    language,
    llava,
    ltx2_vaes,
    ltx_vae,
    pictures,
    siglip,
    t5,
    vision,
    wan_vae,
    words,
)  # fmt: skip
from helpers.tiny_recipe import VIDEO, Recipe

LONG = {**VIDEO, "frames": 9}

# --------------------------------------------------------------------------------------------- Wan


def _wan_denoiser(channels: int = 16, image: int | None = None, **more: Any) -> Any:
    return diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=channels, out_channels=16,
        text_dim=16, freq_dim=16, ffn_dim=32, num_layers=3, rope_max_seq_len=32, image_dim=image,
        added_kv_proj_dim=None if image is None else 24, **more,
    )  # fmt: skip


def _unipc() -> Any:
    return diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )


def _wan(name: str = "WanPipeline", **parts: Any) -> Any:
    shared = {"vae": wan_vae(), "text_encoder": t5(cls="UMT5"), "tokenizer": words(),
              "scheduler": flow(shift=3.0)}  # fmt: skip
    parts.setdefault("transformer", _wan_denoiser())
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


def _wan_vace() -> Any:
    denoiser = diffusers.WanVACETransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16, text_dim=16,
        freq_dim=16, ffn_dim=32, num_layers=2, rope_max_seq_len=32, vace_layers=[0, 1],
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
        image_processor=pictures(), scheduler=_unipc(),
    )  # fmt: skip


# --------------------------------------------------------------------------------------------- LTX


def _ltx(name: str = "LTXPipeline") -> Any:
    denoiser = diffusers.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=16,
        cross_attention_dim=32, num_layers=1, caption_channels=16,
    )  # fmt: skip
    return getattr(diffusers, name)(
        scheduler=flow(), vae=ltx_vae(), text_encoder=t5(), tokenizer=words(),
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
    return getattr(diffusers, name)(
        scheduler=flow(), text_encoder=language("Gemma3TextModel"), tokenizer=words(),
        connectors=connectors, transformer=denoiser, **ltx2_vaes(),
    )  # fmt: skip


# ------------------------------------------------------------------------------------ HunyuanVideo


def _hunyuan(
    name: str, denoiser: Any = diffusers.HunyuanVideoTransformer3DModel, **more: Any
) -> Any:
    parts = {n: more.pop(n) for n in (*_READERS, "image_encoder", "feature_extractor") if n in more}
    model = denoiser(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1,
        num_single_layers=1, num_refiner_layers=1, patch_size=2, text_embed_dim=16,
        pooled_projection_dim=8, rope_axes_dim=(2, 4, 4), **more,
    )  # fmt: skip
    shared = {"text_encoder": language("LlamaModel"), "tokenizer": words(512)}
    return getattr(diffusers, name)(
        transformer=model, vae=hunyuan_vae(), scheduler=flow(), text_encoder_2=clip(8, most=77),
        tokenizer_2=words(77), **shared | parts,
    )  # fmt: skip


_READERS = ("text_encoder", "tokenizer", "image_processor")


def _hunyuan_i2v() -> Any:
    marks = ("<image>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    return _hunyuan(
        "HunyuanVideoImageToVideoPipeline", text_encoder=llava(), image_processor=pictures(48),
        tokenizer=words(512, *marks, start=2), image_condition_type="token_replace",
    )  # fmt: skip


def _framepack() -> Any:
    return _hunyuan(
        "HunyuanVideoFramepackPipeline", diffusers.HunyuanVideoFramepackTransformer3DModel,
        has_image_proj=True, image_proj_dim=16, has_clean_x_embedder=True, **siglip(16),
    )  # fmt: skip


def _hunyuan15(name: str, task: str, **parts: Any) -> Any:
    denoiser = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2,
        num_refiner_layers=1, mlp_ratio=2.0, text_embed_dim=16, text_embed_2_dim=8,
        image_embed_dim=12, rope_axes_dim=(4, 4, 8), target_size=32, task_type=task,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(16, 16), layers_per_block=1,
        spatial_compression_ratio=2, temporal_compression_ratio=2,
    )  # fmt: skip
    return getattr(diffusers, name)(
        transformer=denoiser, vae=vae, scheduler=flow(), tokenizer=chat(), tokenizer_2=words(),
        text_encoder=language("Qwen2_5_VLTextModel", rope_parameters=ROPE), text_encoder_2=t5(8),
        guider=diffusers.ClassifierFreeGuidance(guidance_scale=3.0), **parts,
    )  # fmt: skip


# --------------------------------------------------------------------------------- further families


def _cogvideox(name: str = "CogVideoXPipeline", channels: int = 4) -> Any:
    denoiser = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=channels, out_channels=4,
        time_embed_dim=8, text_embed_dim=16, num_layers=3, sample_width=4, sample_height=4,
        sample_frames=5, patch_size=2, temporal_compression_ratio=4, max_text_seq_length=16,
        use_rotary_positional_embeddings=True,
    )  # fmt: skip
    return getattr(diffusers, name)(
        tokenizer=words(), text_encoder=t5(), vae=cogvideox_vae(), transformer=denoiser,
        scheduler=diffusers.CogVideoXDDIMScheduler(),
    )  # fmt: skip


def _mochi() -> Any:
    vae = diffusers.AutoencoderKLMochi(
        latent_channels=12, encoder_block_out_channels=(32,) * 4,
        decoder_block_out_channels=(32,) * 4, layers_per_block=(1,) * 5,
    )  # fmt: skip
    denoiser = diffusers.MochiTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=2, pooled_projection_dim=16,
        in_channels=12, text_embed_dim=16, time_embed_dim=4, max_sequence_length=16,
    )  # fmt: skip
    return diffusers.MochiPipeline(
        scheduler=flow(invert_sigmas=True), vae=vae, text_encoder=t5(), tokenizer=words(),
        transformer=denoiser,
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


def _animatediff() -> Any:
    denoiser = diffusers.UNetMotionModel(
        block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=16, norm_num_groups=8,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"), num_attention_heads=2,
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"), motion_num_attention_heads=2,
        motion_max_seq_length=16, sample_size=4,
    )  # fmt: skip
    return diffusers.AnimateDiffPipeline(
        vae=kl_vae(), text_encoder=clip(), tokenizer=words(), unet=denoiser, motion_adapter=None,
        scheduler=diffusers.DDIMScheduler(clip_sample=False, steps_offset=1),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ recipes

RECIPES: dict[str, Recipe] = {
    "wan": Recipe(lambda: _wan(scheduler=_unipc()), VIDEO),
    "wan 2.1 i2v": Recipe(_wan21_i2v, {**VIDEO, "image": "PICTURE"}),
    "wan first and last frame": Recipe(
        lambda: _wan21_i2v(pos_embed_seq_len=10),
        {**VIDEO, "image": "PICTURE", "last_image": "LAST", "fit": "pad"},
    ),
    "wan 2.2 i2v": Recipe(_wan22_i2v, {**VIDEO, "image": "PICTURE",
                                       "arguments": {"guidance_scale_2": 3.0}}),
    "wan 2.2 ti2v": Recipe(lambda: _wan("WanImageToVideoPipeline", expand_timesteps=True),
                           {**VIDEO, "image": "PICTURE"}),
    "wan v2v": Recipe(lambda: _wan("WanVideoToVideoPipeline", scheduler=_unipc()),
                      {**VIDEO, "video": "CLIP", "steps": 3, "arguments": {"strength": 0.7}}),
    "wan vace": Recipe(_wan_vace, {**VIDEO, "video": "CLIP", "mask": "MASK",
                                   "references": ["SUBJECT"]}),
    "wan animate": Recipe(_wan_animate, {
        **VIDEO, "image": "PICTURE", "control": "POSE",
        "arguments": {"face_video": "FACE", "segment_frame_length": 5}}),
    "ltx": Recipe(_ltx, LONG),
    "ltx i2v": Recipe(lambda: _ltx("LTXImageToVideoPipeline"), {**LONG, "image": "PICTURE"}),
    "ltx conditions": Recipe(lambda: _ltx("LTXConditionPipeline"),
                             {**LONG, "image": "PICTURE", "last_image": "LAST"}),
    "ltx-2 i2v": Recipe(lambda: _ltx2("LTX2ImageToVideoPipeline"),
                        {**VIDEO, "image": "PICTURE"}),
    "ltx-2 conditions": Recipe(lambda: _ltx2("LTX2ConditionPipeline"),
                               {**VIDEO, "video": "CLIP", "last_image": "LAST"}),
    "hunyuanvideo": Recipe(lambda: _hunyuan("HunyuanVideoPipeline", guidance_embeds=True), VIDEO),
    "hunyuanvideo i2v": Recipe(_hunyuan_i2v, {**VIDEO, "image": "PICTURE"}),
    "hunyuanvideo 1.5": Recipe(lambda: _hunyuan15("HunyuanVideo15Pipeline", "t2v"), VIDEO),
    "hunyuanvideo 1.5 i2v": Recipe(
        lambda: _hunyuan15("HunyuanVideo15ImageToVideoPipeline", "i2v", **siglip(12)),
        {**{k: VIDEO[k] for k in ("model", "prompt", "steps", "frames")}, "image": "PICTURE"}),
    "framepack": Recipe(_framepack, {**VIDEO, "image": "PICTURE", "last_image": "LAST",
                                     "arguments": {"latent_window_size": 3}}),
    "cogvideox": Recipe(_cogvideox, LONG),
    "cogvideox i2v": Recipe(lambda: _cogvideox("CogVideoXImageToVideoPipeline", 8),
                            {**LONG, "image": "PICTURE"}),
    "cogvideox v2v": Recipe(lambda: _cogvideox("CogVideoXVideoToVideoPipeline"),
                            {**LONG, "video": "CLIP", "arguments": {"strength": 1.0}}),
    "mochi": Recipe(_mochi, {**VIDEO, "frames": 7}),
    "svd": Recipe(_svd, {
        **{k: v for k, v in VIDEO.items() if k != "prompt"}, "frames": 3, "image": "PICTURE",
        "arguments": {"motion_bucket_id": 60, "decode_chunk_size": 2}}),
    "animatediff": Recipe(_animatediff, VIDEO),
}  # fmt: skip
