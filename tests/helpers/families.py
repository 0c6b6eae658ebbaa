"""Tiny denoisers of the families people use: real diffusers classes, random weights, one call.

Each factory returns ``(module, inputs)``: ``module(**inputs, return_dict=False)`` is one step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    CogVideoXTransformer3DModel,
    FluxTransformer2DModel,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoTransformer3DModel,
    LTX2VideoTransformer3DModel,
    LTXVideoTransformer3DModel,
    MochiTransformer3DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNetMotionModel,
    UNetSpatioTemporalConditionModel,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
)

Model = tuple[torch.nn.Module, dict[str, Any]]


def rand(*shape: int) -> torch.Tensor:
    """N(0, 1)."""
    return torch.randn(shape)


def flux() -> Model:
    """64 image and 8 text tokens; joint and single blocks."""
    module = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    return module, {
        "hidden_states": rand(1, 64, 4),
        "encoder_hidden_states": rand(1, 8, 32),
        "pooled_projections": rand(1, 32),
        "img_ids": torch.stack([torch.zeros(64), torch.arange(64) // 8, torch.arange(64) % 8], 1),
        "txt_ids": torch.zeros(8, 3),
        "timestep": torch.tensor([0.5]),
    }


def wan() -> Model:
    """80 latent tokens, 12 text tokens; self and cross attention."""
    module = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4,
        out_channels=4, text_dim=16, freq_dim=32, ffn_dim=32, num_layers=2, cross_attn_norm=True,
        qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
    )  # fmt: skip
    return module, {
        "hidden_states": rand(1, 4, 5, 8, 8),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": rand(1, 12, 16),
    }


def ltx() -> Model:
    """80 latent tokens, text with padding behind an additive mask."""
    module = LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=16,
        cross_attention_dim=32, num_layers=1, caption_channels=16,
    )  # fmt: skip
    return module, {
        "hidden_states": rand(1, 80, 8),
        "encoder_hidden_states": rand(1, 12, 16),
        "encoder_attention_mask": (torch.arange(12)[None] < 7).float(),
        "timestep": torch.tensor([500]),
        "num_frames": 5,
        "height": 4,
        "width": 4,
    }


def cogvideox() -> Model:
    """Text and video tokens in one sequence, rotary positions off."""
    module = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4,
        time_embed_dim=8, text_embed_dim=16, num_layers=2, sample_width=8, sample_height=8,
        sample_frames=17, patch_size=2, temporal_compression_ratio=4, max_text_seq_length=8,
    )  # fmt: skip
    return module, {
        "hidden_states": rand(1, 5, 4, 8, 8),
        "encoder_hidden_states": rand(1, 8, 16),
        "timestep": torch.tensor([500]),
    }


def sd3() -> Model:
    """64 image and 8 text tokens."""
    module = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=32,
        pooled_projection_dim=16, out_channels=4, pos_embed_max_size=16,
    )  # fmt: skip
    return module, {
        "hidden_states": rand(1, 4, 16, 16),
        "encoder_hidden_states": rand(1, 8, 32),
        "pooled_projections": rand(1, 16),
        "timestep": torch.tensor([500]),
    }


def hunyuanvideo() -> Model:
    """80 video tokens and padded text behind a boolean key mask."""
    module = HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1,
        num_single_layers=1, num_refiner_layers=1, patch_size=2, patch_size_t=1,
        guidance_embeds=True, text_embed_dim=16, pooled_projection_dim=8, rope_axes_dim=(2, 4, 4),
    )  # fmt: skip
    return module, {
        "hidden_states": rand(1, 4, 5, 8, 8),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": rand(1, 12, 16),
        "encoder_attention_mask": (torch.arange(12)[None] < 7).long(),
        "pooled_projections": rand(1, 8),
        "guidance": torch.tensor([6.0]),
    }


def mochi() -> Model:
    """80 video tokens; the text is cut to its valid part."""
    module = MochiTransformer3DModel(
        patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=2,
        pooled_projection_dim=16, in_channels=4, text_embed_dim=16, time_embed_dim=4,
        activation_fn="swiglu", max_sequence_length=16,
    )  # fmt: skip
    return module, {
        "hidden_states": rand(1, 4, 5, 8, 8),
        "encoder_hidden_states": rand(1, 16, 16),
        "encoder_attention_mask": torch.arange(16)[None] < 9,
        "timestep": torch.tensor([500]),
    }


def sdxl() -> Model:
    """SDXL's UNet layout with its added time and text conditioning."""
    module = UNet2DConditionModel(
        block_out_channels=(16, 32), layers_per_block=1, sample_size=16, in_channels=4,
        out_channels=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=(2, 4),
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2), projection_class_embeddings_input_dim=64,
        cross_attention_dim=16, norm_num_groups=8,
    )  # fmt: skip
    return module, {
        "sample": rand(1, 4, 16, 16),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": rand(1, 8, 16),
        "added_cond_kwargs": {"text_embeds": rand(1, 16), "time_ids": rand(1, 6)},
    }


def animatediff() -> Model:
    """AnimateDiff's UNet: spatial and temporal (motion) attention over 8 frames."""
    module = UNetMotionModel(
        block_out_channels=(16, 32), layers_per_block=1, sample_size=16, in_channels=4,
        out_channels=4, down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"), cross_attention_dim=16,
        num_attention_heads=2, norm_num_groups=8, motion_num_attention_heads=2,
        motion_max_seq_length=8,
    )  # fmt: skip
    return module, {
        "sample": rand(1, 4, 8, 16, 16),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": rand(1, 8, 16).repeat_interleave(8, 0),
    }


def svd() -> Model:
    """Stable Video Diffusion's UNet over 4 frames."""
    module = UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, sample_size=16, in_channels=8,
        out_channels=4,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=16, num_attention_heads=2, projection_class_embeddings_input_dim=24,
        addition_time_embed_dim=8, num_frames=4,
    )  # fmt: skip
    return module, {
        "sample": rand(1, 4, 8, 16, 16),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": rand(1, 1, 16),
        "added_time_ids": rand(1, 3),
    }


def wan_vace() -> Model:
    """Wan with a control branch whose blocks read the main stream."""
    module = WanVACETransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4,
        out_channels=4, text_dim=16, freq_dim=32, ffn_dim=32, num_layers=2, cross_attn_norm=True,
        qk_norm="rms_norm_across_heads", rope_max_seq_len=32, vace_layers=[0], vace_in_channels=8,
    )  # fmt: skip
    _, inputs = wan()
    return module, {**inputs, "control_hidden_states": rand(1, 8, 5, 8, 8)}


def qwen_image() -> Model:
    """64 image and 7 text tokens, complex rotary tables."""
    module = QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16,
        num_attention_heads=3, joint_attention_dim=16, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    return module, {
        "hidden_states": rand(1, 64, 16),
        "encoder_hidden_states": rand(1, 7, 16),
        "encoder_hidden_states_mask": torch.ones(1, 7, dtype=torch.long),
        "timestep": torch.tensor([0.5]),
        "img_shapes": [(1, 8, 8)],
    }


def hunyuanvideo15() -> Model:
    """128 video tokens; text of two encoders and image tokens in one sequence."""
    module = HunyuanVideo15Transformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2,
        num_refiner_layers=1, mlp_ratio=2.0, patch_size=1, patch_size_t=1, text_embed_dim=16,
        text_embed_2_dim=8, image_embed_dim=12, rope_axes_dim=(4, 4, 8), target_size=16,
        task_type="t2v",
    )  # fmt: skip
    return module, {
        "hidden_states": rand(1, 4, 2, 8, 8),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": rand(1, 8, 16),
        "encoder_attention_mask": torch.ones(1, 8),
        "encoder_hidden_states_2": rand(1, 6, 8),
        "encoder_attention_mask_2": torch.ones(1, 6),
        "image_embeds": rand(1, 3, 12),
    }


def ltx2() -> Model:
    """128 video and 9 audio tokens that attend to each other."""
    module = LTX2VideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8,
        cross_attention_dim=16, pos_embed_max_pos=20, base_height=32, base_width=32,
        audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2,
        audio_attention_head_dim=4, audio_cross_attention_dim=8, audio_scale_factor=4,
        audio_pos_embed_max_pos=20, num_layers=2, caption_channels=16,
    )  # fmt: skip
    return module, {
        "hidden_states": rand(1, 128, 4),
        "audio_hidden_states": rand(1, 9, 4),
        "encoder_hidden_states": rand(1, 12, 16),
        "audio_encoder_hidden_states": rand(1, 12, 16),
        "timestep": torch.tensor([500.0]),
        "num_frames": 2,
        "height": 8,
        "width": 8,
        "audio_num_frames": 9,
        "fps": 25.0,
    }


def _seeded(factory: Callable[[], Model]) -> Callable[[], Model]:
    def build() -> Model:
        torch.manual_seed(0)
        module, inputs = factory()
        return module.eval(), inputs

    return build


FAMILIES: dict[str, Callable[[], Model]] = {
    f.__name__: _seeded(f)
    for f in (flux, wan, ltx, cogvideox, sd3, hunyuanvideo, mochi, sdxl, animatediff, svd)
}

# Further families, for what needs no attention of every kind.
MORE: dict[str, Callable[[], Model]] = {
    f.__name__: _seeded(f) for f in (wan_vace, qwen_image, hunyuanvideo15, ltx2)
}
