"""Components of a pipeline on the meta device, built from a class name and a configuration."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Return a tensor on the meta device, which has sizes but no values."""
    return torch.empty(shape, dtype=dtype, device="meta")


def size_of(module: nn.Module) -> int:
    """Return the bytes of a module's parameters and buffers."""
    return sum(t.numel() * t.itemsize for t in [*module.parameters(), *module.buffers()])


# Settings that count equal layers, one of which stands for all.
LAYERS = ("num_layers", "num_single_layers", "n_layers", "num_visual_blocks", "num_text_blocks")
WITHIN = "transformer_layers_per_block"


@dataclass(frozen=True)
class Part:
    """A diffusers class and its configuration.

    ``dtype`` is that of its weights and activations. ``library`` is the module of diffusers'
    pipelines that has the class, where diffusers itself does not.
    """

    cls: str
    config: Mapping[str, Any]
    dtype: torch.dtype = torch.bfloat16
    library: str = "diffusers"

    def kind(self) -> Any:
        """Return the class."""
        import diffusers

        if hasattr(diffusers, self.cls) or self.library == "diffusers":
            return getattr(diffusers, self.cls)
        return getattr(importlib.import_module(f"diffusers.pipelines.{self.library}"), self.cls)

    def build(self, **changes: Any) -> Any:
        """Return the module on the meta device, without weights.

        ``changes`` replace settings of its configuration.
        """
        with torch.device("meta"):
            module = self.kind().from_config({**self.config, **self._shortened(changes)})
        return nn.Module.to(module, "meta", self.dtype).eval()

    def few_layers(self) -> Any:
        """Return the module with at most two layers of each kind."""
        few: dict[str, Any] = {name: min(2, count) for name, count in self.layers().items()}
        within = self.config.get(WITHIN)  # the layers in each block of a UNet
        if isinstance(within, (list, tuple)) and all(isinstance(n, int) for n in within):
            few[WITHIN] = tuple(min(2, n) for n in within)
        return self.build(**few)

    def _shortened(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Add lists of layers, such as ``vace_layers``, without those that ``changes`` take out."""
        most = changes.get("num_layers")
        lists = {
            name: [layer for layer in value if layer < most]
            for name, value in self._settings().items()
            if name.endswith("_layers") and isinstance(value, (list, tuple)) and most is not None
        }
        return {**lists, **changes}

    def _settings(self) -> dict[str, Any]:
        taken = inspect.signature(self.kind().__init__).parameters
        return {name: self.config.get(name, p.default) for name, p in taken.items()}

    def layers(self) -> dict[str, int]:
        """Return the numbers of layers by the name of their setting."""
        found = self._settings()
        return {name: found[name] for name in LAYERS if isinstance(found.get(name), int)}

    def weights(self) -> int:
        """Return the bytes of all weights."""
        return self._weights

    @cached_property
    def _weights(self) -> int:
        return size_of(self.build())


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
        return int(_text_settings(self.settings()).num_hidden_layers)

    def weights(self) -> int:
        """Return the bytes of all weights."""
        return self._weights

    @cached_property
    def _weights(self) -> int:
        return size_of(self.build(self.layers))

    def kind(self) -> Any:
        """Return the class."""
        import transformers

        return getattr(transformers, self.cls)

    def settings(self) -> Any:
        """Return its configuration as transformers reads it."""
        return self.kind().config_class.from_dict(dict(self.config))

    def build(self, layers: int) -> Any:
        """Return the module with ``layers`` layers on the meta device, without weights."""
        settings = self.settings()
        text = _text_settings(settings)
        text.num_hidden_layers = layers  # other names of it are mapped to this one
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:layers]
        with torch.device("meta"):
            module = self.kind()(settings)
        return nn.Module.to(module, "meta", self.dtype).eval()

    def inputs(self, config: Any) -> dict[str, Tensor]:
        """Return the inputs of one call: tokens [1, T] or pixels [1, C, H, W], without a mask."""
        if hasattr(config, "image_size"):
            size = (1, config.num_channels, config.image_size, config.image_size)
            return {"pixel_values": meta(*size, dtype=self.dtype)}
        text = _text_settings(config)
        tokens = min(self.tokens, getattr(text, "max_position_embeddings", self.tokens))
        return {"input_ids": meta(1, tokens, dtype=torch.int64)}


def _text_settings(settings: Any) -> Any:
    """Return the settings of the language model in a model that also sees."""
    return getattr(settings, "text_config", None) or settings
