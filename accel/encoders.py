"""Encoders of prompts and images: those of well-known models, of stored and of loaded ones.

Configurations are transformers'. Encoders take most weights of some pipelines (UMT5-XXL 11 GB,
Llama 3 8B 15 GB in bf16), little beside them: prompts are encoded one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from accel.parts import Encoder

# Classes that can be simulated.
KINDS = (
    "T5EncoderModel", "UMT5EncoderModel", "LlamaModel", "CLIPTextModel",
    "CLIPTextModelWithProjection", "CLIPVisionModel", "CLIPVisionModelWithProjection",
)  # fmt: skip
NAMES = ("text_encoder", "image_encoder")  # of components begin like this
# Tokens a pipeline pads a prompt to, by denoiser; CLIP's own limit comes first.
TOKENS = {
    "WanTransformer3DModel": 512,
    "HunyuanVideoTransformer3DModel": 351,  # 256 behind a template of 95
    "CogVideoXTransformer3DModel": 226,
    "MochiTransformer3DModel": 256,
    "FluxTransformer2DModel": 512,
}

_T5 = {
    "d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_heads": 64, "num_layers": 24,
    "vocab_size": 32128, "feed_forward_proj": "gated-gelu",
}  # fmt: skip
_LLAMA = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128320,
}  # fmt: skip
_CLIP = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "projection_dim": 768,
}  # fmt: skip
_VISION = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
    "num_attention_heads": 16, "patch_size": 14, "projection_dim": 1024,
}  # fmt: skip
_HALF = torch.float16

WAN = {"text_encoder": Encoder("UMT5EncoderModel", {**_T5, "vocab_size": 256384})}
HUNYUANVIDEO = {
    "text_encoder": Encoder("LlamaModel", _LLAMA, 351, _HALF),
    "text_encoder_2": Encoder("CLIPTextModel", _CLIP, 77, _HALF),
}
COGVIDEOX = {"text_encoder": Encoder("T5EncoderModel", _T5, 226)}
MOCHI = {"text_encoder": Encoder("T5EncoderModel", _T5, 256)}
ANIMATEDIFF = {"text_encoder": Encoder("CLIPTextModel", _CLIP, 77, _HALF)}
SVD = {"image_encoder": Encoder("CLIPVisionModelWithProjection", _VISION, dtype=_HALF)}
FLUX = {
    "text_encoder": Encoder("CLIPTextModel", _CLIP, 77),
    "text_encoder_2": Encoder("T5EncoderModel", _T5),
}


def stored(
    model: str, index: Mapping[str, Any], denoiser: str
) -> tuple[dict[str, Encoder], tuple[str, ...]]:
    """Encoders of a folder or hub id with the ``model_index.json`` ``index``, and the names of
    those that cannot be simulated. ``denoiser``: its class.
    """
    from transformers import PretrainedConfig

    known, unknown = {}, []
    for name, (library, cls) in _encoders(index).items():
        try:
            if library != "transformers" or cls not in KINDS:
                raise OSError("not a class known here")
            config, _ = PretrainedConfig.get_config_dict(model, subfolder=name)
            known[name] = Encoder(cls, config, TOKENS.get(denoiser, 512))
        except OSError:
            unknown.append(name)
    return known, tuple(unknown)


def _encoders(index: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    found = {k: v for k, v in index.items() if k.startswith(NAMES)}
    return {k: (v[0], v[1]) for k, v in found.items() if v[0] is not None}


def loaded(pipe: Any, denoiser: str) -> tuple[dict[str, Encoder], tuple[str, ...]]:
    """The same of a loaded pipeline."""
    known, unknown = {}, []
    for name, part in getattr(pipe, "components", {}).items():
        if part is None or not name.startswith(NAMES):
            continue
        cls = type(part).__name__
        if cls in KINDS:
            config = part.config.to_dict()
            known[name] = Encoder(cls, config, TOKENS.get(denoiser, 512), part.dtype)
        else:
            unknown.append(name)
    return known, tuple(unknown)
