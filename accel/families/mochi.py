"""Mochi, with an equal form of its attention that can be recorded without values.

Mochi's attention joins video and text, and leaves out padded text by the values in its mask, sample
by sample. A recording knows sizes, not values. So the recorded copy gets an equal attention that
knows the number of valid text tokens beforehand. There, video and text queries attend one after the
other to the same joined keys, so the video's tokens are a stream as in other models, and the text
runs on all tokens at once. The results have the same bits, because each query is independent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel.families.components import Part
from accel.families.encoders import FLOW, T5, encoder
from accel.families.family import Chunks, Decoder, Denoiser, Family, Geometry, Model, Pipeline, Vae

SCALES = (8, 6)  # pixels and frames per latent cell: its pipelines know no others

BLOCK, PROCESSOR, MASK = "MochiTransformerBlock", "MochiAttnProcessor2_0", "encoder_attention_mask"


class Processor:
    """Replaces diffusers' processor in a copy that is recorded.

    ``valid`` counts the text tokens of each sample that take part, all at its start; () means all
    tokens of all samples.
    """

    def __init__(self, valid: tuple[int, ...]) -> None:
        self.valid = valid

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the attention of video [B, N, C] and text [B, T, C] in the same shapes.

        The rotary tables are [N, H, D / 2].
        """
        seen = (attn.to_q, attn.norm_q), (attn.to_k, attn.norm_k), (attn.to_v, None)
        read = (
            (attn.add_q_proj, attn.norm_added_q), (attn.add_k_proj, attn.norm_added_k),
            (attn.add_v_proj, None),
        )  # fmt: skip
        video = [_heads(to(hidden_states), norm, attn.heads) for to, norm in seen]
        text = [_heads(to(encoder_hidden_states), norm, attn.heads) for to, norm in read]
        if image_rotary_emb is not None:
            video[:2] = [_rotated(x, *image_rotary_emb) for x in video[:2]]
        outs = [
            self._sample(
                [x[i : i + 1].transpose(1, 2) for x in video],
                [x[i : i + 1].transpose(1, 2) for x in text],
                count,
            )
            for i, count in enumerate(self.valid or (text[0].shape[1],) * len(text[0]))
        ]
        video_out, text_out = (
            _separated(torch.cat(part).transpose(1, 2).flatten(2, 3))
            for part in zip(*outs, strict=True)
        )
        video_out = attn.to_out[1](attn.to_out[0](video_out))
        return video_out, attn.to_add_out(text_out) if hasattr(attn, "to_add_out") else text_out

    def _sample(self, video: list[Tensor], text: list[Tensor], count: int) -> tuple[Tensor, Tensor]:
        """Return one sample's attention [1, H, N, D] and [1, H, T, D], zero for padded text."""
        padding = text[0].shape[2] - count
        text = [x[:, :, :count] for x in text]
        key, value = (torch.cat([video[i], text[i]], dim=2) for i in (1, 2))
        seen = F.scaled_dot_product_attention(video[0], key, value)
        read = F.scaled_dot_product_attention(text[0], key, value)
        return seen, F.pad(read, (0, 0, 0, padding))


def _heads(x: Tensor, norm: Any, heads: int) -> Tensor:
    x = x.unflatten(2, (heads, -1))
    return x if norm is None else norm(x)


def _separated(x: Tensor) -> Tensor:
    """Return x [B, N, C] with a gap in memory between its samples.

    Diffusers cuts both results out of a joint tensor, which leaves such gaps. In a linear layer on
    such a view torch rounds once before it adds the bias.
    """
    return torch.stack([x, x], 1)[:, 0]


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn neighboring channels of x [B, N, H, D] by the angles of the tables."""
    even, odd = x[..., 0::2].float(), x[..., 1::2].float()
    first, second = even * cos - odd * sin, even * sin + odd * cos
    return torch.stack([first.to(x.dtype), second.to(x.dtype)], dim=-1).flatten(-2)


class MochiTracing:
    """How Mochi's blocks are recorded; see ``family.Tracing``."""

    def settled(self, block: nn.Module, arguments: Mapping[str, Any]) -> tuple[int, ...]:
        """Return the number of valid text tokens of each sample.

        A mask without values (meta) counts all of them. Raises ValueError for a mask with holes.
        """
        mask = arguments.get(MASK)
        if type(block).__name__ != BLOCK or not isinstance(mask, Tensor):
            return ()
        if mask.is_meta:
            return (mask.shape[1],) * mask.shape[0]
        rows = mask.bool().cpu()
        counts = tuple(int(n) for n in rows.sum(1))
        if any(not bool(row[:n].all()) for row, n in zip(rows, counts, strict=True)):
            raise ValueError("its text mask has holes")
        return counts

    def prepare(self, twin: nn.Module, values: tuple[int, ...]) -> None:
        """Give a copy without weights attention and rotary tables that run on the meta device.

        Only processors of diffusers' own class are replaced.
        """
        _prepare_rotary(twin)
        part: Any
        for part in twin.modules():
            if type(getattr(part, "processor", None)).__name__ == PROCESSOR:
                part.processor = Processor(values)


def _prepare_rotary(twin: nn.Module) -> None:
    """Replace the rotary tables of a copy without weights: those of diffusers need autocast."""
    part: Any
    for part in twin.modules():
        if type(part).__name__ == "MochiRoPE":
            part.forward = _tables


def _tables(
    pos_frequencies: Tensor, num_frames: int, height: int, width: int, *_: Any, **__: Any
) -> tuple[Tensor, Tensor]:
    """Return cosines and sines [N, H, D / 2] in fp32 without values.

    ``pos_frequencies`` is [3, H, D / 2].
    """
    size = (num_frames * height * width, *pos_frequencies.shape[1:])
    table = pos_frequencies.new_empty(size, dtype=torch.float32)
    return table, table.clone()


def _geometry(pipe: Any) -> Geometry:
    return Geometry(int(pipe.transformer.config.in_channels), *SCALES)


FAMILY = Family(
    "mochi",
    denoisers={"MochiTransformer3DModel": Denoiser(prepare=_prepare_rotary)},
    vaes={"AutoencoderKLMochi": Vae(lambda config: SCALES)},
    decoders={
        "MochiDecoder3D": Decoder(
            caches=True, pieces="apart", chunks=Chunks("CogVideoXCausalConv3d")
        )
    },
    grouped_blocks={"MochiResnetBlock3D": "cached resnet"},
    pipelines={"MochiPipeline": Pipeline()},
    latents={"Mochi": _geometry},
    return_frames=("MochiPipeline",),
    models={
        "mochi": Model(
            Part("MochiTransformer3DModel", {}),
            Part("AutoencoderKLMochi", {"latent_channels": 12}),
            2,
            {"text_encoder": encoder("T5EncoderModel", T5, 256)},
            pipeline="MochiPipeline",
            schedulers={"scheduler": (FLOW, {"invert_sigmas": True})},
        )
    },
    tracing=MochiTracing(),
)
