"""Exact strips in VAE decoders with GroupNorm, by two passes.

A GroupNorm's mean and variance run over the whole picture. They are taken from the whole tensor
first (``group_norm.group_statistics``). Then rows are normalized with them, activated and convolved
strip by strip, with a halo for the convolution. A residual block with input x:

    h = conv1(act(norm1(x)))    strip by strip, kept whole: norm2 needs its statistics
    y = conv2(act(norm2(h))) + shortcut(x)    strip by strip, written over h

Strips of y replace strips of h. The next strip's halo needs the last row of h before it is
overwritten, so that row is copied. Alive are x, h and what one strip takes.

Bits: each row is computed from the same numbers as without strips, and the normalization is torch's
own arithmetic (``group_norm.py``). On CPUs results were equal bit for bit in fp32, fp16 and bf16,
but that is not promised. Where torch sums statistics in another order (channels last, GPUs) or
picks another convolution for a strip, values round to a neighboring number, and a decoder's result
differs from the plain one by as much as that differs from fp64.

HunyuanVideo's middle block gives attention a mask of all tokens by all tokens, by which a frame
sees itself and earlier ones. Attention of one frame after the other, to the frames up to it, needs
no mask. Stable Video Diffusion's blocks blend two tensors; that runs in strips too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from accel import families
from accel.config import SlicingConfig
from accel.core.cuts import rows
from accel.core.diffusers_bridge import GROUP_NORM_PROCESSORS, innermost, offloaded
from accel.core.stand_in import StandIn
from accel.core.watchers import watcher
from accel.slicing.block_record import BlockRecord
from accel.slicing.group_norm import group_statistics, normalize
from accel.slicing.reasons import BROKEN, broken
from accel.slicing.vae.last_convolution import Head, Through, Together
from accel.slicing.vae.strips import Block, Put, Strips, cut, keep, watched, why_whole


def normalizer(norm: nn.GroupNorm, x: Tensor) -> Callable[[Tensor], Tensor]:
    """Return ``norm`` with the statistics of ``x`` [B, C, ...], for any slice of it."""
    mean, scale = group_statistics(x, norm.num_groups, norm.eps)
    return lambda part: normalize(part, mean, scale, norm.weight, norm.bias)


class Resnet(Strips):
    """Replaces the forward of a residual block, x [B, C, H, W] or [B, C, T, H, W]."""

    _part: Any

    def _why_whole(self, x: Tensor, *rest: Any, **named: Any) -> str:
        temb = rest[0] if rest else named.get("temb")
        return _unknown(self._part, temb) or super()._why_whole(x)

    def _strips(self, strips: int, x: Tensor, *rest: Any, **named: Any) -> Any:
        return self._second(x, self._first(x, strips), strips)

    def _first(self, x: Tensor, strips: int) -> Tensor:
        """Return the first convolution's whole result, [B, C', (T,) H, W]."""
        block, norm = self._part, normalizer(self._part.norm1, x)
        h: Tensor | None = None
        for start, stop, low, high in rows(x.shape[-2], strips, 1):
            y = block.conv1(block.nonlinearity(norm(cut(x, low, high))))
            h = keep(h, cut(y, start - low, stop - low), start, x.shape[-2])
        return h  # type: ignore[return-value]

    def _second(self, x: Tensor, h: Tensor, strips: int) -> Tensor:
        """Return the block's result, written over ``h``."""
        block, norm = self._part, normalizer(self._part.norm2, h)
        above = cut(h, 0, 0)
        for start, stop, low, high in rows(h.shape[-2], strips, 1):
            part = torch.cat([above, cut(h, start, high)], -2)
            above = cut(h, stop - 1, stop).clone()
            y = block.conv2(block.dropout(block.nonlinearity(norm(part))))
            part = cut(x, start, stop)
            if block.conv_shortcut is not None:
                part = block.conv_shortcut(part)
            y = part + cut(y, start - low, stop - low)
            cut(h, start, stop).copy_(y / getattr(block, "output_scale_factor", 1.0))
        return h


def _unknown(block: Any, temb: Tensor | None) -> str:
    """Return what keeps a residual block from being computed from its parts, or ""."""
    if temb is not None or getattr(block, "time_embedding_norm", "") == "scale_shift":
        return "conditioned on a timestep"
    if any(getattr(block, name, None) is not None for name in ("upsample", "downsample")):
        return "resamples"
    if any(offloaded(norm) for norm in (block.norm1, block.norm2)):
        return "the weights of its norms are offloaded on their own"
    return ""


class Blend(Strips):
    """Replaces the forward of an ``AlphaBlender`` of ``decoder``.

    Strips [B, C, T, h, W] of the result are written over ``x_spatial``, which belongs to the block
    around it and is not read again, unless somebody watches the decoder.
    """

    def __init__(self, *args: Any, decoder: nn.Module) -> None:
        super().__init__(*args)
        self._decoder = decoder

    def _why_whole(self, x: Tensor, *rest: Any, **named: Any) -> str:
        who = next(filter(None, map(watcher, self._decoder.modules())), "")
        return super()._why_whole(x) or (f"{who} may keep what it would overwrite" if who else "")

    def _strips(self, strips: int, x: Tensor, *rest: Any, **named: Any) -> Any:
        x_temporal, *rest_ = rest if rest else (named.pop("x_temporal"),)
        for start, stop, _, _ in rows(x.shape[-2], strips, 0):
            part = cut(x, start, stop)
            blend = self.forward(part, cut(x_temporal, start, stop), *rest_, **named)
            self._overwrote = True
            part.copy_(blend)
        self._overwrote = False
        return x


class Given(StandIn):
    """Replaces a GroupNorm's forward: while ``normalize`` is set, that function runs instead."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__(forward)
        self.normalize: Callable[[Tensor], Tensor] | None = None

    def __call__(self, x: Tensor) -> Any:
        """Normalize ``x``."""
        return (self.normalize or self.forward)(x)


class CausalMiddle(StandIn):
    """Replaces the forward of HunyuanVideo's middle block, x [B, C, T, H, W]."""

    def __init__(
        self,
        block: Any,
        forward: Callable[..., Any],
        norms: list[Given | None],
        record: BlockRecord,
    ) -> None:
        super().__init__(forward)
        self._block, self._norms, self._record = block, norms, record
        self._broken = ""

    def __call__(self, x: Tensor) -> Tensor:
        """Run the block with attention frame by frame where that is possible."""
        if not self.alive or torch.compiler.is_compiling() or x.shape[2] < 2:
            return self.forward(x)
        reason = self._broken or why_whole(x) or watched(self._block, self.forward)
        if not reason:
            try:
                return self._by_frames(x)
            except Exception as error:
                reason = broken(error)
        out = self.forward(x)  # raises what the model itself would
        if reason.startswith(BROKEN):
            self._broken = reason
        self._record.whole[reason] += 1
        return out

    def _by_frames(self, x: Tensor) -> Tensor:
        block = self._block
        x = block.resnets[0](x)
        for attn, norm, resnet in zip(
            block.attentions, self._norms, block.resnets[1:], strict=True
        ):
            if norm is not None:
                x = self._attend(attn, norm, x)
            x = resnet(x)
        return x

    def _attend(self, attn: Any, norm: Given, x: Tensor) -> Tensor:
        """Return the attention of each frame to itself and earlier ones; ``norm`` sees them all."""
        size = x.shape[-2] * x.shape[-1]
        tokens = x.permute(0, 2, 3, 4, 1).flatten(1, 3)  # [B, T·H·W, C]
        norm.normalize = normalizer(attn.group_norm, tokens.transpose(1, 2))
        try:
            normal = norm.normalize(tokens.transpose(1, 2)).transpose(1, 2)
            frames = [
                attn(tokens[:, at : at + size], encoder_hidden_states=normal[:, : at + size])
                for at in range(0, tokens.shape[1], size)
            ]
        finally:
            norm.normalize = None
        return torch.cat(frames, 1).unflatten(1, x.shape[2:]).permute(0, 4, 1, 2, 3)


class NormHead(Head):
    """A ``Head`` with a GroupNorm, whose statistics are taken first.

    ``norm`` is the GroupNorm, ``activation`` the forward of the activation.
    """

    def __init__(self, *args: Any, norm: Any, activation: Callable[..., Any], **named: Any) -> None:
        super().__init__(*args, before=activation, **named)
        self._norm, self._plain, self._activation = norm, getattr(*innermost(norm)), activation

    def _strips(self, strips: int, x: Tensor, *rest: Any, **named: Any) -> Any:
        norm = normalizer(self._norm, x)
        self._before = lambda part: self._activation(norm(part))
        try:
            return super()._strips(strips, x)
        finally:
            self._before = self._activation

    def _whole(self, x: Tensor, *rest: Any, **named: Any) -> Any:
        return self.forward(self._activation(self._plain(x)))


def known(decoder: nn.Module) -> bool:
    """Return whether ``replace`` can change this decoder."""
    norm, kind = getattr(decoder, "conv_norm_out", None), type(decoder).__name__
    decoders = families.decoders()
    return kind in decoders and decoders[kind].grouped and isinstance(norm, nn.GroupNorm)


def replace(decoder: Any, config: SlicingConfig, record: BlockRecord, put: Put) -> None:
    """Put hooks on the residual blocks, upsamplers and head of a ``known`` decoder."""
    kinds = families.grouped_blocks()
    for part in decoder.modules():
        match kinds.get(type(part).__name__):
            case "resnet":
                put(part, partial(_made, Resnet, part, config, record))
            case "upsampler" if not getattr(part, "use_conv_transpose", False):
                scale = int(getattr(part, "upsample_factor", (2, 2))[-1])
                put(part, partial(_made, Block, part, config, record, halo=1, scale=scale))
            case "blender":
                put(part, partial(_made, Blend, part, config, record, decoder=decoder))
    if kinds.get(type(decoder.mid_block).__name__) == "causal middle":
        _put_middle(decoder.mid_block, put, record)
    _put_head(decoder, config, record, put)


def _made(
    kind: Callable[..., Any], part: nn.Module, config: SlicingConfig, record: BlockRecord,
    forward: Callable[..., Any], **named: Any,
) -> Any:  # fmt: skip
    return kind(part, forward, config, record, **named)


def _put_middle(block: Any, put: Put, record: BlockRecord) -> None:
    norms: list[Given | None] = []
    for attn in block.attentions:
        if attn is None:
            norms.append(None)
        elif type(attn.processor).__name__ not in GROUP_NORM_PROCESSORS or attn.group_norm is None:
            return
        else:
            norm = Given(getattr(*innermost(attn.group_norm)))
            norms.append(norm)
            put(attn.group_norm, partial(_already, norm))
    put(block, lambda forward: CausalMiddle(block, forward, norms, record))


def _already(hook: Given, forward: Callable[..., Any]) -> Given:
    return hook


def _put_head(decoder: Any, config: SlicingConfig, record: BlockRecord, put: Put) -> None:
    norm, act, end = decoder.conv_norm_out, decoder.conv_act, decoder.conv_out
    together, activation = Together((norm, act, end)), getattr(*innermost(act))
    put(end, lambda f: NormHead(end, f, config, record, norm=norm, activation=activation,
                                together=together))  # fmt: skip
    put(norm, lambda f: Through(f, together))
    put(act, lambda f: Through(f, together))
