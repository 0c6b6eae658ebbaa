"""Stand-ins for the parts of a pipeline that read prompts and pictures.

They have no weights. Tokenizers return ids of a prompt of a given length, encoders return hidden
states of zeros in the sizes that their configuration gives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from accel.families.components import Part

PATCH = 28  # pixels of a side that one token covers in Qwen2.5-VL


class Tokenizer:
    """A tokenizer or processor of a prompt that has ``tokens`` tokens.

    ``most`` is its own limit.
    """

    pad_token = eos_token = bos_token = unk_token = "<pad>"
    pad_token_id = eos_token_id = bos_token_id = image_token_id = 0
    padding_side = "right"
    image_token = "<image>"

    def __init__(self, tokens: int, most: int) -> None:
        self.added_tokens_encoder: dict[str, int] = {}
        self.tokens, self.model_max_length = tokens, most

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of a processor."""
        return self

    def __call__(
        self, text: Any = None, *args: Any, images: Any = None, padding: Any = False,
        max_length: int | None = None, return_tensors: str | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """Return ids and mask of prompts, padded as asked."""
        from transformers import BatchEncoding

        count = len(text) if isinstance(text, (list, tuple)) else 1
        most = max_length or self.model_max_length
        pictures = sum(map(_picture_tokens, images if isinstance(images, list) else [images]))
        used = min(self.tokens, most) + pictures
        length = most if padding == "max_length" else used
        row, gap = [1] * min(used, length), [0] * max(0, length - used)
        row = gap + row if self.padding_side == "left" else row + gap
        ids = [list(row) for _ in range(count)]
        data: dict[str, Any] = {"input_ids": ids, "attention_mask": [list(r) for r in ids]}
        if pictures:
            data |= {"pixel_values": [[0.0]], "image_grid_thw": [[1, 2, 2]]}
            data |= {"mm_token_type_ids": ids}
        return BatchEncoding(data, tensor_type=return_tensors)

    def apply_chat_template(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the ids of messages, or their text where no ids are asked for."""
        several = bool(messages) and isinstance(messages[0], (list, tuple))
        texts = ["prompt"] * len(messages) if several else "prompt"
        if not kwargs.pop("tokenize", True):
            return texts
        kwargs |= kwargs.pop("processor_kwargs", None) or {}
        kwargs.setdefault("return_tensors", None)
        found = self(texts, **kwargs)
        return found if kwargs.get("return_dict") else found["input_ids"]

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:
        """Return the words of a text."""
        return text.split()

    def batch_decode(self, ids: Any, *args: Any, **kwargs: Any) -> list[str]:
        """Return a text for each row."""
        return ["prompt"] * len(ids)

    def decode(self, *args: Any, **kwargs: Any) -> str:
        """Return a text."""
        return "prompt"

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        """Return the ids of one text."""
        return self(*args, **kwargs)["input_ids"]

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Return an id for each token."""
        return [1] * len(tokens) if isinstance(tokens, list) else 1


def _picture_tokens(picture: Any) -> int:
    if picture is None:
        return 0
    width, height = picture.size if hasattr(picture, "size") else (PATCH, PATCH)
    if callable(width):
        return 1
    return max(1, round(width / PATCH)) * max(1, round(height / PATCH))


class ImageProcessor:
    """A processor that makes pixels [n, 3, size, size] of pictures."""

    def __init__(self, size: int) -> None:
        self.size = {"height": size, "width": size}
        self.crop_size = self.size

    def __call__(self, images: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Return pixels."""
        from transformers import BatchFeature

        count = len(images) if isinstance(images, (list, tuple)) else 1
        pixels = torch.zeros(count, 3, *self.size.values(), dtype=torch.float32, device="cpu")
        return BatchFeature({"pixel_values": pixels})

    preprocess = __call__


class Output(tuple[Any, ...]):
    """What an encoder returns: by position and by name."""

    named: Mapping[str, Any]

    def __getattr__(self, name: str) -> Any:
        try:
            return self.named[name]
        except KeyError:
            raise AttributeError(name) from None

    def __getitem__(self, index: Any) -> Any:
        return self.named[index] if isinstance(index, str) else super().__getitem__(index)


class Encoder(nn.Module):
    """An encoder of prompts or pictures."""

    def __init__(self, cls: str, config: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.cls, self.config, self.dtype = cls, config, dtype
        self.device = torch.device("cpu")
        self.weight = nn.Parameter(self._zeros(0), requires_grad=False)  # pipelines ask its dtype

    def get(self, *names: str, default: Any = None) -> Any:
        """Return the first of the settings that the configuration has."""
        configs = [self.config, getattr(self.config, "text_config", None)]
        found = [getattr(c, n, None) for c in configs for n in names]
        return next((x for x in found if isinstance(x, int) and not isinstance(x, bool)), default)

    @property
    def text_model(self) -> Encoder:
        """The encoder inside of a model."""
        return self

    model = language_model = text_model

    def forward(self, input_ids: Any = None, *args: Any, **kwargs: Any) -> Output:
        """Return zeros in the sizes of the real encoder's results."""
        pixels = kwargs.get("pixel_values")
        given: Any = input_ids if input_ids is not None else kwargs.get("inputs_embeds", pixels)
        length = given.shape[1] if given.ndim < 4 else self._patches()
        width = self.get("hidden_size", "d_model", "n_embd")
        layers = self.get("num_hidden_layers", "num_layers", "n_layer")
        state = self._zeros(len(given), length, width)
        pooled = self._zeros(len(given), width)
        projected = self._zeros(len(given), self.get("projection_dim", default=width))
        first = (projected, state) if self.cls.endswith("WithProjection") else (state, pooled)
        out = Output(first)
        out.named = {
            "last_hidden_state": state, "pooler_output": pooled, "text_embeds": projected,
            "image_embeds": projected, "hidden_states": (state,) * (layers + 1),
        }  # fmt: skip
        return out

    def get_text_features(self, *args: Any, **kwargs: Any) -> Any:
        """Return the projected embedding of a prompt."""
        return self(*args, **kwargs).named["text_embeds"]

    def get_image_features(self, *args: Any, **kwargs: Any) -> Any:
        """Return the projected embedding of a picture."""
        return self(*args, **kwargs).named["image_embeds"]

    def _patches(self) -> int:
        side = self.get("image_size") // self.get("patch_size")
        return side**2 + (0 if "Siglip" in self.cls else 1)

    def _zeros(self, *size: int) -> Tensor:
        return torch.zeros(size, dtype=self.dtype, device="cpu")


def limit_of(config: Any) -> int:
    """Return the most tokens of an encoder's prompt: CLIP's positions, else 512."""
    kind = str(getattr(config, "model_type", ""))
    return int(config.max_position_embeddings) if "clip" in kind else 512


def side_of(config: Any) -> int:
    """Return the pixels of a side of an encoder's pictures."""
    vision = getattr(config, "vision_config", config)
    return int(getattr(vision, "image_size", 224) or math.isqrt(224**2))


_TEXT_WIDTHS = ("text_dim", "joint_attention_dim", "text_embed_dim", "caption_channels",
                "cross_attention_dim")  # fmt: skip


def unknown_encoder(denoiser: Part) -> Encoder:
    """Return a stand-in for an encoder of a class that is not known: as wide as the denoiser asks.

    ``denoiser``: the class and configuration of the denoiser.
    """
    widths = (denoiser.config.get(name) for name in _TEXT_WIDTHS)
    width = next((w for w in widths if isinstance(w, int)), 4096)
    config = SimpleNamespace(hidden_size=width, num_hidden_layers=1)
    return Encoder("", config, denoiser.dtype)
