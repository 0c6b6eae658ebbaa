"""Components of a pipeline on the meta device, built from a class and a configuration."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from accel.tracker import activation_peak


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A tensor of sizes only."""
    return torch.empty(shape, dtype=dtype, device="meta")


def size_of(module: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return sum(t.numel() * t.itemsize for t in [*module.parameters(), *module.buffers()])


@dataclass(frozen=True)
class Part:
    """A diffusers class and its configuration; ``dtype`` of its weights and activations."""

    cls: str
    config: Mapping[str, Any]
    dtype: torch.dtype = torch.bfloat16

    def build(self, **changes: Any) -> Any:
        """On the meta device, without weights."""
        import diffusers

        with torch.device("meta"):
            module = getattr(diffusers, self.cls).from_config({**self.config, **changes})
        return nn.Module.to(module, "meta", self.dtype).eval()

    def layers(self) -> dict[str, int]:
        """Numbers of layers by the name of their setting."""
        import diffusers

        defaults = inspect.signature(getattr(diffusers, self.cls).__init__).parameters
        return {
            name: self.config.get(name, defaults[name].default)
            for name in ("num_layers", "num_single_layers")
            if name in defaults
        }

    def weights(self) -> int:
        """Bytes, from one layer of each kind and from one more."""
        counts = self.layers()
        ones = dict.fromkeys(counts, 1)
        base = total = size_of(self.build(**ones))
        for name, count in counts.items():
            total += (count - 1) * (size_of(self.build(**{**ones, name: 2})) - base)
        return total


@dataclass(frozen=True)
class Encoder:
    """A transformers class that encodes a prompt of ``tokens`` tokens, or an image."""

    cls: str
    config: Mapping[str, Any]
    tokens: int = 512
    dtype: torch.dtype = torch.bfloat16

    def weights(self) -> int:
        """Bytes, from one layer and from one more."""
        one, two = (size_of(self._build(n)) for n in (1, 2))
        return one + (self._config().num_hidden_layers - 1) * (two - one)

    def peak(self) -> int:
        """Bytes of activations in one call. What grows with the layers, such as hidden states that
        are asked for, is counted for all of them.
        """
        layers = self._config().num_hidden_layers
        if layers <= 3:
            return self._peak(layers)
        two, three = self._peak(2), self._peak(3)
        return three + (layers - 3) * (three - two)

    def _config(self) -> Any:
        import transformers

        return getattr(transformers, self.cls).config_class.from_dict(dict(self.config))

    def _build(self, layers: int) -> Any:
        import transformers

        config = self._config()
        config.num_hidden_layers = layers  # other names of it are mapped to this one
        with torch.device("meta"):
            module = getattr(transformers, self.cls)(config)
        return nn.Module.to(module, "meta", self.dtype).eval()

    def _peak(self, layers: int) -> int:
        module = self._build(layers)
        inputs = self._inputs(module.config)
        # HunyuanVideo and Wan take a hidden state before the last.
        states = self.cls in ("LlamaModel", "CLIPVisionModel")
        weights = [*module.parameters(), *module.buffers()]
        return activation_peak(
            lambda: module(**inputs, output_hidden_states=states), inputs, weights
        )[0]

    def _inputs(self, config: Any) -> dict[str, Tensor]:
        """Tokens [1, T] without a mask, whose contents meta lacks, or pixels [1, C, H, W]."""
        if hasattr(config, "image_size"):
            size = (1, config.num_channels, config.image_size, config.image_size)
            return {"pixel_values": meta(*size, dtype=self.dtype)}
        tokens = min(self.tokens, getattr(config, "max_position_embeddings", self.tokens))
        return {"input_ids": meta(1, tokens, dtype=torch.int64)}
