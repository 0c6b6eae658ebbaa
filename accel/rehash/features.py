"""The features that are kept at level "features", and how a denoiser runs on them.

Transformers: kept is the sum that the blocks before the last ``tail`` added to the token stream
(and, with a tail, to the text stream). A reused step adds it instead of running those blocks. The
sum is built in one buffer, minus the stream before the first block plus the stream after the last,
so blocks that write in place (feature slicing) may overwrite their input.

UNets (Streamlined Inference, Zhan et al. 2024, section 3.3): the temporal feature inside the last
up-block is kept. It lies behind the skip connections of all but the last ``tail`` layers, so a
reused step runs only the input convolution, those layers and the output head. With a tail of 1 it
runs no down-block.
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
    """The features of one denoiser."""

    def recording(self) -> Any:
        """Return a context in which the denoiser runs fully; it yields the list of kept tensors."""

    def reusing(self, values: list[Tensor]) -> Any:
        """Return a context in which the denoiser runs on ``values`` instead."""


class _Span:
    """State that the part hooks of one denoiser share: idle, recording, or reusing."""

    def __init__(self) -> None:
        self.kept: list[Tensor] | None = None
        self.partial: list[Tensor] = []
        self.values: list[Tensor] | None = None

    @contextmanager
    def recording(self) -> Iterator[list[Tensor]]:
        """Record; see ``Features``."""
        kept: list[Tensor] = []
        self.kept, self.partial = kept, []
        try:
            yield kept
        finally:
            self.kept, self.partial = None, []

    @contextmanager
    def reusing(self, values: list[Tensor]) -> Iterator[None]:
        """Reuse ``values``; see ``Features``."""
        self.values = values
        try:
            yield
        finally:
            self.values = None


class _Part(ModelHook):
    """A hook on a part of the denoiser.

    ``keeps_input`` False: the part may work in place.
    """

    keeps_input = False

    def __init__(self, span: _Span) -> None:
        super().__init__()
        self.span = span
        self.alive = True

    def run(self, args: Any, kwargs: Any) -> Any:
        """Run the part itself."""
        forward: Any = self.fn_ref.original_forward
        return forward(*args, **kwargs)


# ------------------------------------------------------------------------------------ transformers


class _Block(_Part):
    """A block before the tail. The first takes the snapshot, the last completes it."""

    def __init__(self, span: _Span, kind: BlockKind, first: bool, last: bool, text: bool) -> None:
        super().__init__(span)
        self._kind, self._first, self._last, self._text = kind, first, last, text

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Run the block, or replace it while features are reused."""
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
        raise Unsupported("diffusers does not say what its blocks take and return") from error
    if tail >= len(found):
        raise ValueError(f"rehash tail must be less than the {len(found)} blocks, got {tail}")
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
        """Keep the output while features are recorded."""
        if self.span.kept is not None and not torch.compiler.is_compiling():
            self.span.kept[:] = [output[0] if isinstance(output, tuple) else output]
        return output


class _Down(_Part):
    """A down-block that is skipped: its skip connections are counted but never read."""

    def new_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the block, or pass its input through while features are reused."""
        if torch.compiler.is_compiling() or self.span.values is None:
            return self.run(args, kwargs)
        sample = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        count = len(module.resnets) + len(module.downsamplers or ())
        return sample, (sample,) * count


class _Middle(_Part):
    """The middle block or an up-block that is skipped."""

    def new_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the block, or pass its input through while features are reused."""
        if torch.compiler.is_compiling() or self.span.values is None:
            return self.run(args, kwargs)
        return kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]


class _LastUp(_Part):
    """The last up-block: a reused step runs only its last ``tail`` layers, on the kept feature."""

    LISTS = ("resnets", "attentions", "motion_modules")

    def __init__(self, span: _Span, tail: int) -> None:
        super().__init__(span)
        self._tail = tail

    def new_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the block, or only its last layers while features are reused."""
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
            f"rehash tail (layers of the last up-block that still run) must be from 1 to "
            f"{layers - 1}, got {tail}"
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
    """Put hooks on the parts of a denoiser and return its features.

    Raises Unsupported, or ValueError for a tail that it does not have.
    """
    if getattr(denoiser, "_compiled_call_impl", None) is not None or hasattr(denoiser, "_orig_mod"):
        raise Unsupported("it runs under torch.compile, whose graph cannot skip its blocks")
    unet = all(hasattr(denoiser, name) for name in ("down_blocks", "up_blocks", "mid_block"))
    features = (_unet if unet else _transformer)(denoiser, tail, undo)
    refresh_registries(denoiser)
    return features
