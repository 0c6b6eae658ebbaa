"""Short runs of small denoisers, and plans for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from accel import AttentionConfig, Plan, SlicingConfig


@torch.no_grad()
def forward(module: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """Return the output of one call."""
    return module(**inputs, return_dict=False)[0]


def sliced(slices: int, attention: AttentionConfig | None = None) -> Plan:
    """Return a plan that slices however few tokens there are."""
    return Plan("t", attention, SlicingConfig(slices, min_tokens=1))


def in_dtype(
    model: tuple[nn.Module, dict[str, Any]], dtype: torch.dtype
) -> tuple[nn.Module, dict[str, Any]]:
    """Return a denoiser and the arguments of a call in another dtype, positions left alone."""
    module, inputs = model
    keep = ("img_ids", "txt_ids")
    inputs = {
        k: v.to(dtype) if k not in keep and torch.is_tensor(v) and v.is_floating_point() else v
        for k, v in inputs.items()
    }
    return torch.nn.Module.to(module, dtype), inputs
