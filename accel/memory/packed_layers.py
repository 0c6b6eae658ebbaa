"""What a plan's 8-bit linear layers add to weights: their packed copies, from sizes alone.

Counted is every layer that may be packed, so it is the most: a layer that does not pay on the
machine is not packed, nor are layers of the prompt where it is far shorter than it may be.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from accel.attention.policy import precisions_of
from accel.config import LinearConfig
from accel.core.structure import DENOISERS
from accel.families.family import Model
from accel.kernels.packed_weight import packed_bytes
from accel.linear.linear_layers import in_blocks
from accel.memory.recorded_calls import parts
from accel.memory.small_values import called
from accel.memory.tracker import all_true


class LayerSize(NamedTuple):
    """Channels and inputs of a linear layer, and the most rows that one of its calls has."""

    channels: int
    inputs: int
    rows: int


@dataclass(frozen=True)
class PackedLayers:
    """The linear layers of a model's denoisers that may be packed, by site name."""

    layers: Mapping[str, LayerSize] = field(default_factory=dict)

    def bytes(self, linear: LinearConfig | None) -> int:
        """Return the most bytes that packed copies add while a job denoises and decodes.

        With ``keep="cpu"`` on a card the originals leave it one by one as they are packed, so the
        most is one copy beside all originals, in the first call.
        """
        if linear is None:
            return 0
        copies = [self._copy(name, size, linear) for name, size in self.layers.items()]
        if linear.keep == "cpu" and torch.cuda.is_available():
            return max(copies, default=0)
        return sum(copies)

    def _copy(self, name: str, size: LayerSize, linear: LinearConfig) -> int:
        """Return the bytes of a layer's copies; one of each precision that its rules have."""
        if size.rows < linear.min_rows:
            return 0
        each = packed_bytes(
            size.channels, size.inputs, smooth=linear.smooth, outliers=linear.outliers
        )
        return each * len(precisions_of(linear, name) - {"full"})


def packed_layers(model: Model, few: nn.Module, kwargs: dict[str, Any]) -> PackedLayers:
    """Return the layers of a model's denoisers.

    ``few`` is one of them on the meta device with few layers of each kind. It is called with
    ``kwargs``, which have the real size, to see how many rows each of its layers is given.
    """
    denoisers = {name: part for name, part in parts(model).items() if name in DENOISERS}
    rows: dict[str, int] = {}

    def count(path: str, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        for name in (path, _kind(path)):
            rows[name] = max(rows.get(name, 0), args[0].numel() // max(1, args[0].shape[-1]))

    hooks = [p.register_forward_pre_hook(partial(count, n)) for n, p in in_blocks(few).items()]
    try:
        with torch.no_grad(), all_true():
            called(few, kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    found = {}
    for name, part in denoisers.items():
        prefix = f"{name}." if len(denoisers) > 1 else ""
        for path, layer in in_blocks(part.build()).items():
            most = rows.get(path, rows.get(_kind(path), 0))
            found[prefix + path] = LayerSize(layer.out_features, layer.in_features, most)
    return PackedLayers(found)


def _kind(path: str) -> str:
    """Return the path with "*" for every index: that of like layers in all blocks."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", path)
