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
from accel.slicing.block_record import BlockRecord
from accel.slicing.group_norm import group_statistics, normalize
from accel.slicing.vae.strips import Block, Head, Put, Through, _cut, _keep, _possible, _Strips


def normalizer(norm: nn.GroupNorm, x: Tensor) -> Callable[[Tensor], Tensor]:
    """Return ``norm`` with the statistics of ``x`` [B, C, ...], for any slice of it."""
    mean, scale = group_statistics(x, norm.num_groups, norm.eps)
    return lambda part: normalize(part, mean, scale, norm.weight, norm.bias)


class Resnet(_Strips):
    """Replaces the forward of a residual block, x [B, C, H, W] or [B, C, T, H, W]."""

    def __init__(self, block: Any, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._block = block

    def __call__(self, x: Tensor, *rest: Any, **named: Any) -> Tensor:
        """Run the block in strips where that is possible."""
        temb = rest[0] if rest else named.get("temb")
        if reason := _why_whole(self._block, x, temb):
            self._record.whole[reason] += 1
            return self.forward(x, *rest, **named)
        if (strips := self._count(x)) < 2:
            return self.forward(x, *rest, **named)
        return self._second(x, self._first(x, strips), strips)

    def _first(self, x: Tensor, strips: int) -> Tensor:
        """Return the first convolution's whole result, [B, C', (T,) H, W]."""
        block, norm = self._block, normalizer(self._block.norm1, x)
        h: Tensor | None = None
        for start, stop, low, high in rows(x.shape[-2], strips, 1):
            y = block.conv1(block.nonlinearity(norm(_cut(x, low, high))))
            h = _keep(h, _cut(y, start - low, stop - low), start, x.shape[-2])
        return h  # type: ignore[return-value]

    def _second(self, x: Tensor, h: Tensor, strips: int) -> Tensor:
        """Return the block's result, written over ``h``."""
        block, norm = self._block, normalizer(self._block.norm2, h)
        above = _cut(h, 0, 0)
        for start, stop, low, high in rows(h.shape[-2], strips, 1):
            part = torch.cat([above, _cut(h, start, high)], -2)
            above = _cut(h, stop - 1, stop).clone()
            y = block.conv2(block.dropout(block.nonlinearity(norm(part))))
            part = _cut(x, start, stop)
            if block.conv_shortcut is not None:
                part = block.conv_shortcut(part)
            y = part + _cut(y, start - low, stop - low)
            _cut(h, start, stop).copy_(y / getattr(block, "output_scale_factor", 1.0))
        return h


def _why_whole(block: Any, x: Tensor, temb: Tensor | None) -> str:
    """Return why a residual block cannot run in strips here, or ""."""
    norms = (block.norm1, block.norm2)
    if temb is not None or getattr(block, "time_embedding_norm", "") == "scale_shift":
        return "conditioned on a timestep"
    if any(getattr(block, name, None) is not None for name in ("upsample", "downsample")):
        return "resamples"
    if any(norm._forward_hooks or norm._forward_pre_hooks or offloaded(norm) for norm in norms):
        return "hooks on its norms"
    return "under autocast" if not x.is_meta and torch.is_autocast_enabled(x.device.type) else ""


class Blend(_Strips):
    """Replaces the forward of an ``AlphaBlender``.

    Strips [B, C, T, h, W] of the result are written over ``x_spatial``, which belongs to the block
    around it and is not read again.
    """

    def __call__(self, x_spatial: Tensor, x_temporal: Tensor, *rest: Any, **named: Any) -> Tensor:
        """Blend two tensors in strips where that is possible."""
        if (strips := self._count(x_spatial)) < 2:
            return self.forward(x_spatial, x_temporal, *rest, **named)
        for start, stop, _, _ in rows(x_spatial.shape[-2], strips, 0):
            part = _cut(x_spatial, start, stop)
            part.copy_(self.forward(part, _cut(x_temporal, start, stop), *rest, **named))
        return x_spatial


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

    def __init__(self, block: Any, forward: Callable[..., Any], norms: list[Given | None]) -> None:
        super().__init__(forward)
        self._block, self._norms = block, norms

    def __call__(self, x: Tensor) -> Tensor:
        """Run the block with attention frame by frame where that is possible."""
        if not self.alive or not _possible() or x.shape[2] < 2:
            return self.forward(x)
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
        self._norm, self._activation = norm, activation

    def __call__(self, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        """Run norm, activation and convolution in strips where that is possible."""
        if self.alive and self._together():
            norm = normalizer(self._norm, x)
            self._before = lambda part: self._activation(norm(part))
        try:
            return super().__call__(x)
        finally:
            self._before = self._activation


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
                put(part, partial(Resnet, part, config=config, record=record))
            case "upsampler" if not getattr(part, "use_conv_transpose", False):
                scale = int(getattr(part, "upsample_factor", (2, 2))[-1])
                put(part, partial(Block, config=config, record=record, halo=1, scale=scale))
            case "blender":
                put(part, partial(Blend, config=config, record=record))
    if kinds.get(type(decoder.mid_block).__name__) == "causal middle":
        _put_middle(decoder.mid_block, put)
    _put_head(decoder, config, record, put)


def _put_middle(block: Any, put: Put) -> None:
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
    put(block, lambda forward: CausalMiddle(block, forward, norms))


def _already(hook: Given, forward: Callable[..., Any]) -> Given:
    return hook


def _put_head(decoder: Any, config: SlicingConfig, record: BlockRecord, put: Put) -> None:
    norm, act = decoder.conv_norm_out, decoder.conv_act

    def together() -> bool:
        return _possible() and not offloaded(norm)

    activation = getattr(*innermost(act))
    put(decoder.conv_out, lambda f: NormHead(f, config, record, norm=norm, activation=activation,
                                             together=together))  # fmt: skip
    put(norm, lambda f: Through(f, together))
    put(act, lambda f: Through(f, together))
