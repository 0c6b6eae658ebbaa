"""LTX-Video and LTX-2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accel.families.components import Part
from accel.families.encoders import FLOW, GEMMA3_12B, T5, encoder
from accel.families.family import Decoder, Family, Geometry, Model, Pipeline, Strip, Vae

VAE_097: Mapping[str, Any] = {
    "block_out_channels": (128, 256, 512, 1024, 2048),
    "down_block_types": ("LTXVideo095DownBlock3D",) * 4,
    "decoder_block_out_channels": (256, 512, 1024), "layers_per_block": (4, 6, 6, 2, 2),
    "decoder_layers_per_block": (5, 5, 5, 5), "spatio_temporal_scaling": (True,) * 4,
    "decoder_spatio_temporal_scaling": (True,) * 3, "decoder_inject_noise": (False,) * 4,
    "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
    "upsample_residual": (True,) * 3, "upsample_factor": (2,) * 3, "timestep_conditioning": True,
    "spatial_compression_ratio": 32, "temporal_compression_ratio": 8,
}  # fmt: skip
SHIFT: Mapping[str, Any] = {
    "use_dynamic_shifting": True, "base_shift": 0.95, "max_shift": 2.05,
    "base_image_seq_len": 1024, "max_image_seq_len": 4096, "shift_terminal": 0.1,
}  # fmt: skip
CONNECTORS: Mapping[str, Any] = {
    "caption_channels": 3840, "text_proj_in_factor": 49, "video_connector_num_attention_heads": 30,
    "video_connector_attention_head_dim": 128, "video_connector_num_layers": 2,
    "video_connector_num_learnable_registers": 128, "video_gated_attn": False,
    "audio_connector_num_attention_heads": 30, "audio_connector_attention_head_dim": 128,
    "audio_connector_num_layers": 2, "audio_connector_num_learnable_registers": 128,
    "audio_gated_attn": False, "connector_rope_base_seq_len": 4096, "rope_theta": 10000.0,
    "rope_double_precision": True, "causal_temporal_positioning": False, "rope_type": "split",
    "per_modality_projections": False, "proj_bias": False,
}  # fmt: skip
AUDIO: Mapping[str, Any] = {
    "base_channels": 128, "output_channels": 2, "ch_mult": (1, 2, 4), "num_res_blocks": 2,
    "attn_resolutions": None, "in_channels": 2, "resolution": 256, "latent_channels": 8,
    "norm_type": "pixel", "causality_axis": "height", "mid_block_add_attention": False,
    "sample_rate": 16000, "mel_hop_length": 160, "mel_bins": 64,
}  # fmt: skip


def _model(sizes: Mapping[str, Any], vae: Mapping[str, Any]) -> Model:
    return Model(
        Part("LTXVideoTransformer3DModel", sizes),
        Part("AutoencoderKLLTXVideo", vae),
        encoders={"text_encoder": encoder("T5EncoderModel", T5, 128)},
        pipeline="LTXPipeline",
        schedulers={"scheduler": (FLOW, SHIFT)},
    )


def _ltx2() -> Model:
    rope = {"rope_double_precision": True, "rope_type": "split"}
    return Model(
        Part("LTX2VideoTransformer3DModel",
             {**rope, "cross_attn_timestep_scale_multiplier": 1000, "caption_channels": 3840}),
        Part("AutoencoderKLLTX2Video", {}),
        encoders={
            "text_encoder": encoder("Gemma3ForConditionalGeneration", GEMMA3_12B, 1024, states=True)
        },
        pipeline="LTX2Pipeline",
        others={
            "connectors": Part("LTX2TextConnectors", CONNECTORS, library="ltx2"),
            "audio_vae": Part("AutoencoderKLLTX2Audio", AUDIO),
            "vocoder": Part("LTX2Vocoder", {}, library="ltx2"),
        },
        schedulers={"scheduler": (FLOW, SHIFT)},
        limits={"tokenizer": 1024},
    )  # fmt: skip


def _scales(config: Mapping[str, Any]) -> tuple[int, int]:
    halvings = 2 ** sum(config.get("spatio_temporal_scaling", (True, True, True, False)))
    space = config.get("spatial_compression_ratio") or config.get("patch_size", 4) * halvings
    time = config.get("temporal_compression_ratio") or config.get("patch_size_t", 1) * halvings
    return int(space), int(time)


def _geometry(pipe: Any) -> Geometry:
    config = pipe.transformer.config
    if (config.patch_size, config.patch_size_t) != (1, 1):
        raise ValueError("motion for LTX needs a transformer with patches of one latent pixel")
    channels = int(pipe.vae.config.latent_channels)
    return Geometry(channels, *_scales(pipe.vae.config), layout="tokens")


def _conditions(given: Mapping[str, Any], frames: int | None) -> list[Any]:
    """Return what LTX-Video is to keep: first and last by frame, a video from the first on."""
    from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition

    places = {"image": 0, "video": 0, "last_image": (frames or 1) - 1}
    return [
        LTXVideoCondition(
            frame_index=places[key], **{"video" if key == "video" else "image": value}
        )
        for key, value in given.items()
    ]


def _conditions_2(given: Mapping[str, Any], frames: int | None) -> list[Any]:
    """Return what LTX-2 is to keep, by latent frame: 0 is the first and -1 the last."""
    from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition

    places = {"image": 0, "video": 0, "last_image": -1}
    return [LTX2VideoCondition(frames=value, index=places[key]) for key, value in given.items()]


FAMILY = Family(
    "ltx",
    vaes={"AutoencoderKLLTXVideo": Vae(_scales), "AutoencoderKLLTX2Video": Vae(_scales)},
    decoders={
        "LTXVideoDecoder3d": Decoder(("norm_out", "conv_act")),
        "LTX2VideoDecoder3d": Decoder(("norm_out", "conv_act")),
    },
    strips={
        "LTXVideoResnetBlock3d": Strip(2), "LTXVideoUpsampler3d": Strip(1, 2),
        "LTX2VideoResnetBlock3d": Strip(2), "LTX2VideoUpsampler3d": Strip(1, 2),
    },
    pipelines={
        "LTXPipeline": Pipeline(32),
        "LTXImageToVideoPipeline": Pipeline(32, needs=("image",), clean_first=True),
        "LTXConditionPipeline": Pipeline(32, conditions=_conditions, clean_first=True),
        "LTX2ImageToVideoPipeline": Pipeline(32, needs=("image",)),
        "LTX2ConditionPipeline": Pipeline(32, conditions=_conditions_2),
    },
    latents={"LTX": _geometry},
    models={
        "ltx-video-2b": _model({}, {}),
        "ltx-video-13b": _model(
            {"attention_head_dim": 128, "cross_attention_dim": 4096, "num_layers": 48}, VAE_097
        ),
        "ltx-2": _ltx2(),
    },
)  # fmt: skip
