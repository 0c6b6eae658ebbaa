"""LoRAs with random weights for tiny pipelines, written as PEFT and diffusers have them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file


def layers(module: torch.nn.Module, *ends: str) -> dict[str, torch.nn.Linear]:
    """Linear layers whose path ends in one of ``ends``."""
    return {
        name: part for name, part in module.named_modules()
        if isinstance(part, torch.nn.Linear) and name.endswith(ends)
    }  # fmt: skip


def write_lora(
    path: Path, module: torch.nn.Module, *, seed: int = 0, rank: int = 2, scale: float = 0.3,
    prefix: str = "transformer.", ends: tuple[str, ...] = ("to_q", "to_v"),
) -> Path:  # fmt: skip
    """A LoRA for every layer that ends in ``ends``."""
    g, tensors = torch.Generator().manual_seed(seed), {}
    for name, layer in layers(module, *ends).items():
        key = f"{prefix}{name}"
        tensors[f"{key}.lora_A.weight"] = torch.randn(rank, layer.in_features, generator=g) * scale
        tensors[f"{key}.lora_B.weight"] = torch.randn(layer.out_features, rank, generator=g) * scale
    save_file(tensors, path)
    return path
