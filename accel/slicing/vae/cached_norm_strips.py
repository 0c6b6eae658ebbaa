"""Exact strips in the decoders of CogVideoX and Mochi, whose blocks have GroupNorm and caches.

Their residual blocks take ``(inputs, …, conv_cache)`` and return the result and new caches. As in
``norm_strips.py`` statistics are taken from the whole tensor first, then rows are normalized,
activated and convolved, and the second convolution's result is written over the first one's.
CogVideoX normalizes all frames of a piece together and scales with the latent, Mochi normalizes
each frame. A cache that has been used is dropped at once, since the new one replaces it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from accel import families
from accel.config import SlicingConfig
from accel.core.cuts import rows
from accel.core.diffusers_bridge import innermost, offloaded
from accel.core.stand_in import StandIn
from accel.slicing.block_record import BlockRecord
from accel.slicing.group_norm import group_statistics, normalize
from accel.slicing.vae.last_convolution import Together
from accel.slicing.vae.norm_strips import Given
from accel.slicing.vae.strips import Block, Put, Strips, cut, keep

Caches = dict[str, Any]


class Norm:
    """A norm around a GroupNorm, for rows of ``x`` [B, C, T, H, W] with the statistics of all."""

    def __init__(self, part: Any, given: Given, x: Tensor, latent: Tensor | None) -> None:
        self._part, self._given, self._x, self._latent = part, given, x, latent
        self._mean = self._scale = torch.empty(0, dtype=torch.float32, device="cpu")
        self._at, self._known = 0, False

    def __call__(self, part: Tensor, low: int, high: int) -> Tensor:
        """Return rows ``low`` … ``high``, given as ``part``, normalized."""
        self._at, self._given.normalize = 0, self._rows
        try:
            if self._latent is None:
                return self._part(part)
            height, mine = self._x.shape[-2], self._latent.shape[-2]
            at = torch.arange(low, high, dtype=torch.int64, device=part.device) * mine // height
            return self._part(part, self._latent.index_select(-2, at))[0]
        finally:
            self._given.normalize = None

    def _rows(self, part: Tensor) -> Tensor:
        """Normalize [B, C, T, h, W], or some frames [N, C, h, W]; these come in order."""
        layer: Any = self._part.norm_layer
        if not self._known:
            whole = self._x if part.dim() == 5 else self._x.transpose(1, 2).flatten(0, 1)
            self._mean, self._scale = group_statistics(whole, layer.num_groups, layer.eps)
            self._known = True
        here = slice(self._at, self._at + len(part))
        self._at += len(part)
        return normalize(part, self._mean[here], self._scale[here], layer.weight, layer.bias)


class CachedResnet(Strips):
    """Replaces the forward of a residual block, x [B, C, T, H, W], that also returns caches."""

    _part: Any

    def __init__(self, *args: Any, norms: tuple[Given, Given]) -> None:
        super().__init__(*args)
        self._norms = norms
        self._names = list(inspect.signature(type(self._part).forward).parameters)[2:]

    def _why_whole(self, x: Tensor, *rest: Any, **named: Any) -> str:
        block, given = self._part, dict(zip(self._names, rest, strict=False), **named)
        if given.get("temb") is not None:
            return "conditioned on a timestep"
        if getattr(block, "use_conv_shortcut", False) and block.in_channels != block.out_channels:
            return "its shortcut sees other rows"
        if any(offloaded(norm.norm_layer) for norm in (block.norm1, block.norm2)):
            return "the weights of its norms are offloaded on their own"
        return super()._why_whole(x)

    def _strips(self, strips: int, x: Tensor, *rest: Any, **named: Any) -> Any:
        given = dict(zip(self._names, rest, strict=False), **named)
        old, new = given.get("conv_cache") or {}, Caches()
        block, latent = self._part, given.get("zq")
        h = self._first(x, Norm(block.norm1, self._norms[0], x, latent), strips, old, new)
        self._overwrote = "conv1" in old
        old.pop("conv1", None)
        h = self._second(x, h, Norm(block.norm2, self._norms[1], h, latent), strips, old, new)
        old.clear()
        self._overwrote = False
        return h, new

    def _first(self, x: Tensor, norm: Norm, strips: int, old: Caches, new: Caches) -> Tensor:
        block, height = self._part, x.shape[-2]
        h: Tensor | None = None
        for start, stop, low, high in rows(height, strips, 1):
            y = block.nonlinearity(norm(cut(x, low, high), low, high))
            y, cache = block.conv1(y, conv_cache=cut(old.get("conv1"), low, high))
            h = keep(h, cut(y, start - low, stop - low), start, height)
            _add(new, "conv1", cut(cache, start - low, stop - low), start, height)
        return h  # type: ignore[return-value]

    def _second(
        self, x: Tensor, h: Tensor, norm: Norm, strips: int, old: Caches, new: Caches
    ) -> Tensor:
        """Return the block's result, written over ``h``."""
        block, height = self._part, h.shape[-2]
        above = cut(h, 0, 0)
        shortcut = getattr(block, "conv_shortcut", None)
        for start, stop, low, high in rows(height, strips, 1):
            part = torch.cat([above, cut(h, start, high)], -2)
            above = cut(h, stop - 1, stop).clone()
            y = block.nonlinearity(norm(part, low, high))
            y = getattr(block, "dropout", nn.Identity())(y)
            y, cache = block.conv2(y, conv_cache=cut(old.get("conv2"), low, high))
            _add(new, "conv2", cut(cache, start - low, stop - low), start, height)
            part = cut(x, start, stop)
            part = part if shortcut is None else shortcut(part)
            torch.add(cut(y, start - low, stop - low), part, out=cut(h, start, stop))
        return h


def _add(caches: Caches, name: str, rows_: Any, start: int, height: int) -> None:
    """Put rows of a cache in their place."""
    caches[name] = None if rows_ is None else keep(caches.get(name), rows_, start, height)


class Waits(StandIn):
    """Replaces the head's norm ``(x, latent)``, which ``CachedHead`` runs in strips."""

    def __init__(self, forward: Callable[..., Any], together: Together) -> None:
        super().__init__(forward)
        self._together = together
        self.latent: Tensor | None = None

    def __call__(self, x: Tensor, latent: Tensor, **named: Any) -> Any:
        """Return ``x`` unchanged where ``CachedHead`` does the work."""
        self.latent = None
        if not self.alive or self._together.why_not(x):
            return self.forward(x, latent, **named)
        self.latent = latent
        return x, {}


class Passes(StandIn):
    """Replaces the head's activation: it waits with the norm."""

    def __init__(self, forward: Callable[..., Any], norm: Waits) -> None:
        super().__init__(forward)
        self._norm = norm

    def __call__(self, x: Tensor) -> Any:
        """Return ``x`` unchanged where ``CachedHead`` does the work."""
        return self.forward(x) if self._norm.latent is None else x


class CachedHead(Strips):
    """Replaces the last convolution's forward ``(x, conv_cache)``; norm and activation wait."""

    def __init__(self, *args: Any, norm: Any, given: Given, waits: Waits, act: Any) -> None:
        super().__init__(*args)
        self._norm, self._given, self._waits, self._act = norm, given, waits, act

    def __call__(self, x: Tensor, conv_cache: Any = None) -> Any:
        """Run norm, activation and convolution in strips where they wait for it."""
        latent, self._waits.latent = self._waits.latent, None
        if latent is None:
            return self.forward(x, conv_cache=conv_cache)
        strips = max(1, self._most(x))
        norm, new, height = Norm(self._norm, self._given, x, latent), Caches(), x.shape[-2]
        out: Tensor | None = None
        for start, stop, low, high in rows(height, strips, 1):
            y = self._act(norm(cut(x, low, high), low, high))
            y, cache = self.forward(y, conv_cache=cut(conv_cache, low, high))
            out = keep(out, cut(y, start - low, stop - low), start, height)
            _add(new, "", cut(cache, start - low, stop - low), start, height)
        self._record.sliced[strips] += 1
        return out, new[""]


def replace(decoder: Any, config: SlicingConfig, record: BlockRecord, put: Put) -> None:
    """Put hooks on the residual blocks, upsamplers and head of a decoder."""
    kinds = families.grouped_blocks()
    for part in list(decoder.modules()):
        match kinds.get(type(part).__name__):
            case "cached resnet":
                norms = _given(part.norm1, put), _given(part.norm2, put)
                put(part, partial(_made, CachedResnet, part, config, record, norms=norms))
            case "upsampler":
                put(part, partial(_made, Block, part, config, record, halo=1, scale=2))
    if (norm := getattr(decoder, "norm_out", None)) is not None:
        _put_head(decoder, norm, config, record, put)


def _put_head(decoder: Any, norm: Any, config: Any, record: BlockRecord, put: Put) -> None:
    act, end = decoder.conv_act, decoder.conv_out
    plain, activation, given = (
        getattr(*innermost(norm)), getattr(*innermost(act)), _given(norm, put)
    )  # fmt: skip
    waits = Waits(plain, Together((norm, norm.norm_layer, act, end)))
    put(norm, lambda forward: waits)
    put(act, lambda forward: Passes(forward, waits))
    named = {"norm": _Plain(norm, plain), "given": given, "waits": waits, "act": activation}
    put(end, partial(_made, CachedHead, end, config, record, **named))


class _Plain:
    """A norm that runs its own forward although another stands in for it."""

    def __init__(self, norm: Any, forward: Callable[..., Any]) -> None:
        self.norm_layer, self._forward = norm.norm_layer, forward

    def __call__(self, *args: Any) -> Any:
        return self._forward(*args)


def _made(
    kind: Callable[..., Any], part: nn.Module, config: SlicingConfig, record: BlockRecord,
    forward: Callable[..., Any], **named: Any,
) -> Any:  # fmt: skip
    return kind(part, forward, config, record, **named)


def _given(norm: Any, put: Put) -> Given:
    """Put a hook on a norm's GroupNorm and return it."""
    made: list[Given] = []

    def make(forward: Callable[..., Any]) -> Given:
        made.append(Given(forward))
        return made[0]

    put(norm.norm_layer, make)
    return made[0]
