"""Encoders of prompts and images that families share, with the sizes of released ones.

The configurations are those of transformers. In some pipelines encoders hold most of the weights
(UMT5-XXL 11 GiB, Llama 3 8B 15 GiB in bf16) but need few activations: prompts are
encoded one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from accel.families.components import Encoder

# Classes that can be simulated, and whether pipelines ask for the hidden states of all layers.
# HunyuanVideo and Wan take a layer before the last.
KINDS = {
    "T5EncoderModel": False,
    "UMT5EncoderModel": False,
    "LlamaModel": True,
    "CLIPTextModel": False,
    "CLIPTextModelWithProjection": False,
    "CLIPVisionModel": True,
    "CLIPVisionModelWithProjection": False,
}

T5: Mapping[str, Any] = {
    "d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_heads": 64, "num_layers": 24,
    "vocab_size": 32128, "feed_forward_proj": "gated-gelu",
}  # fmt: skip
LLAMA: Mapping[str, Any] = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128320,
}  # fmt: skip
CLIP: Mapping[str, Any] = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "projection_dim": 768,
}  # fmt: skip
VISION: Mapping[str, Any] = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
    "num_attention_heads": 16, "patch_size": 14, "projection_dim": 1024,
}  # fmt: skip


def encoder(
    cls: str, config: Mapping[str, Any], tokens: int = 512, dtype: torch.dtype = torch.bfloat16
) -> Encoder:
    """Return an encoder of a class in ``KINDS``."""
    return Encoder(cls, config, tokens, dtype, KINDS[cls])
