"""What a denoiser keeps and leaves out at level "features".

Transformers: the sum that the blocks before the last ``tail`` added to the token stream (and, with
a tail, to the text stream) is kept, and added instead of running them. It is built in one buffer,
minus the stream before the first block plus the stream after the last, so blocks that write in
place (feature slicing) may overwrite their input.

UNets (Streamlined Inference, Zhan et al. 2024, section 3.3): the temporal feature inside the last
up-block is kept. It lies behind the skip connections of all but the last ``tail`` layers, so at a
reused step only the input convolution, those layers and the output head run; with a tail of 1 no
down-block does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from diffusers.hooks.hooks import ModelHook
from torch import Tensor, nn

from accel.core.diffusers_bridge import BlockKind, refresh_registries, register
from accel.core.structure import blocks

NAME = "accel_rehash_part"


class Unsupported(Exception):
    """This denoiser cannot reuse features; the message says why."""


class Features(Protocol):
    """One denoiser's features."""

    def recording(self) -> Any:
        """Context in which the denoiser runs fully; gives the list that is filled with them."""

    def reusing(self, values: list[Tensor]) -> Any:
        """Context in which the denoiser runs on ``values`` instead."""


class _Span:
    """What the part hooks of one denoiser share: nothing set, recording, or reusing."""

    def __init__(self) -> None:
        self.kept: list[Tensor] | None = None
        self.partial: list[Tensor] = []
        self.values: list[Tensor] | None = None

    @contextmanager
    def recording(self) -> Iterator[list[Tensor]]:
        """See Features."""
        kept: list[Tensor] = []
        self.kept, self.partial = kept, []
        try:
            yield kept
        finally:
            self.kept, self.partial = None, []

    @contextmanager
    def reusing(self, values: list[Tensor]) -> Iterator[None]:
        """See Features."""
        self.values = values
        try:
            yield
        finally:
            self.values = None


class _Part(ModelHook):
    """A hook on a part of the denoiser; ``keeps_input`` False: the part may work in place."""

    keeps_input = False

    def __init__(self, span: _Span) -> None:
        super().__init__()
        self.span = span
        self.alive = True

    def run(self, args: Any, kwargs: Any) -> Any:
        """The part itself."""
        forward: Any = self.fn_ref.original_forward
        return forward(*args, **kwargs)


# ------------------------------------------------------------------------------------ transformers


class _Block(_Part):
    """A block before the tail. The first takes the snapshot, the last completes it."""

    def __init__(self, span: _Span, kind: BlockKind, first: bool, last: bool, text: bool) -> None:
        super().__init__(span)
        self._kind, self._first, self._last, self._text = kind, first, last, text

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The block's forward."""
        span = self.span
        if torch.compiler.is_compiling() or (span.kept is None and span.values is None):
            return self.run(args, kwargs)
        streams = self._kind.streams(args, kwargs)
        if span.values is not None:
            if self._first:
                added = span.values + [None] * (len(streams) - len(span.values))
                streams = [s if r is None else s + r for s, r in zip(streams, added, strict=True)]
            return self._output(streams)
        kept = len(streams) if self._text else 1
        if self._first:
            span.partial = [torch.neg(s) for s in streams[:kept]]
        del streams
        output = self.run(args, kwargs)
        if self._last and span.kept is not None:
            after = self._results(output)[:kept]
            if [s.shape for s in after] == [s.shape for s in span.partial]:
                span.kept.extend(p.add_(s) for p, s in zip(span.partial, after, strict=True))
        return output

    def _results(self, output: Any) -> list[Tensor]:
        if not isinstance(output, tuple):
            return [output]
        at = (self._kind.hidden_index, self._kind.text_index)
        return [output[i] for i in at if i is not None]

    def _output(self, streams: list[Any]) -> Any:
        if self._kind.text_index is None:
            return streams[0]
        return tuple(streams if self._kind.hidden_index == 0 else streams[::-1])


def _transformer(denoiser: nn.Module, tail: int, undo: ExitStack) -> Features:
    found = list(blocks(denoiser).values())
    if found == [denoiser]:
        raise Unsupported("it has no list of blocks")
    try:
        kinds = [BlockKind(type(block)) for block in found]
    except ValueError as error:
        raise Unsupported("diffusers does not say what its blocks return") from error
    if tail >= len(found):
        raise ValueError(f"rehash tail must be less than its {len(found)} blocks, got {tail}")
    span = _Span()
    body = found[: len(found) - tail]
    for i, block in enumerate(body):
        hook = _Block(span, kinds[i], i == 0, i == len(body) - 1, tail > 0)
        undo.callback(register(block, hook, NAME))
    return span


# ------------------------------------------------------------------------------------------- UNets


class _Layer(_Part):
    """The temporal module whose output is kept."""

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        """Takes the feature."""
        if self.span.kept is not None and not torch.compiler.is_compiling():
            self.span.kept[:] = [output[0] if isinstance(output, tuple) else output]
        return output


class _Down(_Part):
    """A down-block that is left out: its skip connections are never read, only counted."""

    def new_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        """The block's forward."""
        if torch.compiler.is_compiling() or self.span.values is None:
            return self.run(args, kwargs)
        sample = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        count = len(module.resnets) + len(module.downsamplers or ())
        return sample, (sample,) * count


class _Middle(_Part):
    """The middle block or an up-block that is left out."""

    def new_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        """The block's forward."""
        if torch.compiler.is_compiling() or self.span.values is None:
            return self.run(args, kwargs)
        return kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]


class _LastUp(_Part):
    """The last up-block: only its last ``tail`` layers run, on the kept feature."""

    LISTS = ("resnets", "attentions", "motion_modules")

    def __init__(self, span: _Span, tail: int) -> None:
        super().__init__(span)
        self._tail = tail

    def new_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        """The block's forward."""
        if torch.compiler.is_compiling() or self.span.values is None:
            return self.run(args, kwargs)
        skips = kwargs["res_hidden_states_tuple"][: self._tail]
        kwargs = {**kwargs, "hidden_states": self.span.values[0], "res_hidden_states_tuple": skips}
        whole = {name: module._modules[name] for name in self.LISTS if name in module._modules}
        try:
            for name, parts in whole.items():
                module._modules[name] = parts[len(parts) - self._tail :]
            return self.run(args, kwargs)
        finally:
            module._modules.update(whole)


def _unet(denoiser: Any, tail: int, undo: ExitStack) -> Features:
    last = denoiser.up_blocks[-1]
    layers = len(last.resnets)
    if not 1 <= tail < layers:
        raise ValueError(
            f"rehash tail must be from 1 to {layers - 1}, layers of its last up-block that still "
            f"run, got {tail}"
        )
    temporal = next(
        parts
        for name in ("motion_modules", "attentions", "resnets")
        if (parts := getattr(last, name, None)) is not None
    )
    span = _Span()
    undo.callback(register(temporal[layers - 1 - tail], _Layer(span), NAME))
    for block in denoiser.down_blocks if tail == 1 else denoiser.down_blocks[1:]:
        undo.callback(register(block, _Down(span), NAME))
    middle = [] if denoiser.mid_block is None else [denoiser.mid_block]
    for block in (*middle, *denoiser.up_blocks[:-1]):
        undo.callback(register(block, _Middle(span), NAME))
    undo.callback(register(last, _LastUp(span, tail), NAME))
    return span


def find(denoiser: nn.Module, tail: int, undo: ExitStack) -> Features:
    """Hook the parts of a denoiser. Raises Unsupported, or ValueError for a tail it has not."""
    if getattr(denoiser, "_compiled_call_impl", None) is not None or hasattr(denoiser, "_orig_mod"):
        raise Unsupported("it runs under torch.compile, whose graph has no way round its blocks")
    unet = all(hasattr(denoiser, name) for name in ("down_blocks", "up_blocks", "mid_block"))
    features = (_unet if unet else _transformer)(denoiser, tail, undo)
    refresh_registries(denoiser)
    return features
