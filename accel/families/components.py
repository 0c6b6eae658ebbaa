"""Components of a pipeline on the meta device, built from a class name and a configuration."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Return a tensor on the meta device, which has sizes but no values."""
    return torch.empty(shape, dtype=dtype, device="meta")


def size_of(module: nn.Module) -> int:
    """Return the bytes of a module's parameters and buffers."""
    return sum(t.numel() * t.itemsize for t in [*module.parameters(), *module.buffers()])


@dataclass(frozen=True)
class Part:
    """A diffusers class and its configuration.

    ``dtype`` is that of its weights and activations.
    """

    cls: str
    config: Mapping[str, Any]
    dtype: torch.dtype = torch.bfloat16

    def build(self, **changes: Any) -> Any:
        """Return the module on the meta device, without weights.

        ``changes`` replace settings of its configuration.
        """
        import diffusers

        with torch.device("meta"):
            module = getattr(diffusers, self.cls).from_config({**self.config, **changes})
        return nn.Module.to(module, "meta", self.dtype).eval()

    def layers(self) -> dict[str, int]:
        """Return the numbers of layers by the name of their setting."""
        import diffusers

        defaults = inspect.signature(getattr(diffusers, self.cls).__init__).parameters
        return {
            name: self.config.get(name, defaults[name].default)
            for name in ("num_layers", "num_single_layers")
            if name in defaults
        }

    def weights(self) -> int:
        """Return the bytes of all weights.

        They follow from a model with one layer of each kind and from models with one layer more.
        """
        counts = self.layers()
        ones = dict.fromkeys(counts, 1)
        base = total = size_of(self.build(**ones))
        for name, count in counts.items():
            total += (count - 1) * (size_of(self.build(**{**ones, name: 2})) - base)
        return total


@dataclass(frozen=True)
class Encoder:
    """A transformers class that encodes a prompt of ``tokens`` tokens, or an image.

    ``states``: whether the pipeline asks for the hidden states of all layers.
    """

    cls: str
    config: Mapping[str, Any]
    tokens: int = 512
    dtype: torch.dtype = torch.bfloat16
    states: bool = False

    @property
    def layers(self) -> int:
        """Number of layers."""
        return int(self._config().num_hidden_layers)

    def weights(self) -> int:
        """Return the bytes of all weights.

        They follow from models with one and with two layers.
        """
        one, two = (size_of(self.build(n)) for n in (1, 2))
        return one + (self.layers - 1) * (two - one)

    def _config(self) -> Any:
        import transformers

        return getattr(transformers, self.cls).config_class.from_dict(dict(self.config))

    def build(self, layers: int) -> Any:
        """Return the module with ``layers`` layers on the meta device, without weights."""
        import transformers

        config = self._config()
        config.num_hidden_layers = layers  # other names of it are mapped to this one
        with torch.device("meta"):
            module = getattr(transformers, self.cls)(config)
        return nn.Module.to(module, "meta", self.dtype).eval()

    def inputs(self, config: Any) -> dict[str, Tensor]:
        """Return the inputs of one call: tokens [1, T] or pixels [1, C, H, W], without a mask."""
        if hasattr(config, "image_size"):
            size = (1, config.num_channels, config.image_size, config.image_size)
            return {"pixel_values": meta(*size, dtype=self.dtype)}
        tokens = min(self.tokens, getattr(config, "max_position_embeddings", self.tokens))
        return {"input_ids": meta(1, tokens, dtype=torch.int64)}
