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
CLIP_G: Mapping[str, Any] = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
    "num_attention_heads": 20, "projection_dim": 1280, "hidden_act": "gelu",
}  # fmt: skip
BYT5: Mapping[str, Any] = {
    "d_model": 1472, "d_ff": 3584, "d_kv": 64, "num_heads": 6, "num_layers": 12,
    "vocab_size": 1510, "feed_forward_proj": "gated-gelu",
}  # fmt: skip
QWEN_7B: Mapping[str, Any] = {
    "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
}  # fmt: skip
QWEN_VL_7B: Mapping[str, Any] = {
    "text_config": QWEN_7B,
    "vision_config": {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
        "out_hidden_size": 3584, "tokens_per_second": 2,
    },
    "tie_word_embeddings": False,
}  # fmt: skip
QWEN3_4B: Mapping[str, Any] = {
    "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
    "tie_word_embeddings": True,
}  # fmt: skip
GEMMA3_12B: Mapping[str, Any] = {
    "text_config": {
        "hidden_size": 3840, "intermediate_size": 15360, "num_hidden_layers": 48,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256,
        "vocab_size": 262208,
    },
    "vision_config": {
        "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
        "num_attention_heads": 16, "image_size": 896, "patch_size": 14,
    },
}  # fmt: skip
MISTRAL_24B: Mapping[str, Any] = {
    "text_config": {
        "model_type": "mistral", "hidden_size": 5120, "intermediate_size": 32768,
        "num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 128, "vocab_size": 131072, "tie_word_embeddings": False,
    },
    "vision_config": {
        "model_type": "pixtral", "hidden_size": 1024, "intermediate_size": 4096,
        "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 1540, "patch_size": 14,
    },
    "tie_word_embeddings": False,
}  # fmt: skip
FLOW = "FlowMatchEulerDiscreteScheduler"


def encoder(
    cls: str,
    config: Mapping[str, Any],
    tokens: int = 512,
    dtype: torch.dtype = torch.bfloat16,
    states: bool = False,
) -> Encoder:
    """Return an encoder; ``states``: the hidden states of all layers are asked for."""
    return Encoder(cls, config, tokens, dtype, states)
