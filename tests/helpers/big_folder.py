"""A Wan pipeline's folder with random bf16 weights, written without holding them in memory.

VAE, tokenizer and scheduler are the embedded model's.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from torch import nn

from accel.pipelines.load import tiny_folder

TILE = 2**20  # numbers that are repeated, each tensor from a place of its own
HEAD = 64  # channels of an attention head


def write(folder: Path, module: nn.Module, name: str, shard: int = 2 * 10**9) -> int:
    """Write random weights of a module on meta in shards; return their bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    seen: set[int] = set()
    tensors = []
    for path, p in module.named_parameters():
        if id(p) not in seen:
            seen.add(id(p))
            tensors.append((path, tuple(p.shape)))
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    filled = 0
    for path, shape in tensors:
        size = 2 * math.prod(shape)
        if filled + size > shard and shards[-1]:
            shards.append([])
            filled = 0
        shards[-1].append((path, shape))
        filled += size
    where, total = {}, 0
    for i, content in enumerate(shards):
        file = f"{name}.safetensors"
        if len(shards) > 1:
            file = f"{name}-{i + 1:05}-of-{len(shards):05}.safetensors"
        total += _write_shard(folder / file, content, seed=i)
        where |= dict.fromkeys((path for path, _ in content), file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / f"{name}.safetensors.index.json").write_text(json.dumps(index))
    return total


def _write_shard(file: Path, content: list[tuple[str, tuple[int, ...]]], seed: int) -> int:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    stop = 0
    for path, shape in content:
        start, stop = stop, stop + 2 * math.prod(shape)
        header[path] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, stop]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = torch.Generator().manual_seed(seed)
    tile = torch.randn(TILE, generator=generator)
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for i, (path, shape) in enumerate(content):
            fan = shape[-1] if len(shape) == 2 else math.prod(shape[1:])
            values = torch.ones(TILE) if "norm" in path else tile / math.sqrt(max(fan, 1))
            values = torch.zeros(TILE) if path.endswith("bias") else values
            numbers = values.bfloat16().view(torch.int16).numpy()
            numbers = np.roll(numbers, 7919 * i)
            left = math.prod(shape)
            while left:
                out.write(numbers[:left].tobytes())
                left -= min(left, TILE)
    return stop


def make(
    folder: Path, *, width: int, layers: int, encoder_width: int, encoder_layers: int
) -> dict[str, int]:
    """Write the folder; return the bytes of its components.

    ``width``: channels of the denoiser, a multiple of 64; feed-forward layers are four times as
    wide.
    """
    tiny = tiny_folder()
    for part in ("vae", "tokenizer", "scheduler"):
        shutil.copytree(tiny / part, folder / part, dirs_exist_ok=True)
    shutil.copy(tiny / "model_index.json", folder)
    config = json.loads((tiny / "transformer" / "config.json").read_text())
    config |= {
        "num_attention_heads": width // HEAD, "attention_head_dim": HEAD, "ffn_dim": 4 * width,
        "num_layers": layers, "text_dim": encoder_width,
    }  # fmt: skip
    with torch.device("meta"):
        denoiser = diffusers.WanTransformer3DModel.from_config(config)
        plain = json.loads((tiny / "text_encoder" / "config.json").read_text())
        plain |= {
            "d_model": encoder_width, "d_ff": 5 * encoder_width // 2, "d_kv": HEAD,
            "num_heads": encoder_width // HEAD, "num_layers": encoder_layers,
        }  # fmt: skip
        encoder = transformers.UMT5EncoderModel(transformers.UMT5Config(**plain))
    sizes = {
        "transformer": write(folder / "transformer", denoiser, "diffusion_pytorch_model"),
        "text_encoder": write(folder / "text_encoder", encoder, "model"),
        "vae": (folder / "vae" / "diffusion_pytorch_model.safetensors").stat().st_size,
    }
    denoiser.save_config(folder / "transformer")
    (folder / "text_encoder" / "config.json").write_text(json.dumps(plain))
    return sizes
