"""Feature slicing in a model: every transformer block of a denoiser, sliced on its first call.

Config is ``SlicingConfig``, State the record of each block, Hook a forward that stands below every
hook the block already has (offloading, caches), and ``apply_slicing`` puts it there. A block that
cannot be sliced runs unchanged, and its record says why.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from accel.config import SlicingConfig
from accel.core.autocast import autocasts
from accel.core.described import described
from accel.core.diffusers_bridge import (
    innermost,
    keeping_hook,
    offloaded,
)
from accel.core.graph_labels import label
from accel.core.stand_in import StandIn, behind, put_in_place
from accel.core.structure import blocks
from accel.core.tree import leaves
from accel.core.watchers import watcher
from accel.slicing import torch_compile
from accel.slicing.block_record import BlockRecord
from accel.slicing.output_head import Norm, Projection, head
from accel.slicing.overwritable import overwritable
from accel.slicing.program.cache import Programs, signature
from accel.slicing.program.ir import Program
from accel.slicing.program.run import Run
from accel.slicing.reasons import broken, failed
from accel.slicing.trace.record import Underivable

Reusable = Callable[[], tuple[frozenset[str], str]]
HEAD = "head"  # name of the output head among the blocks
# -------------------------------------------------------------------------------------------- Hook


class _Sliced(StandIn):
    """Replaces one block's forward.

    ``reusable`` gives the arguments that the model never reads again.
    """

    def __init__(
        self,
        block: nn.Module,
        forward: Callable[..., Any],
        config: SlicingConfig,
        programs: Programs,
        reusable: Reusable,
    ) -> None:
        super().__init__(forward)
        self.record = BlockRecord()
        self.label = label(self)
        self._block, self._config, self._programs = block, config, programs
        self._reusable = reusable
        self._few = f"fewer than {2 * config.min_tokens} tokens"
        self._short: set[Any] = set()  # arguments that have so few
        self._names = inspect.signature(type(block).forward)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.alive:
            return self.forward(*args, **kwargs)
        if torch.compiler.is_compiling():
            return torch_compile.call(self, args, kwargs, self.forward)
        return self._call(args, kwargs, self._reusable)

    def opaque(self, *args: Any, **kwargs: Any) -> Any:
        """Run a call of a compiled graph, which keeps its arguments."""
        return self._call(args, kwargs, lambda: (frozenset(), "a compiled graph keeps its input"))

    def layout(self, args: Any, kwargs: Any) -> torch_compile.Layout | None:
        """Return what a sliced call returns, or None if it would run whole, which is recorded."""
        try:
            found = self._program(self._bind(args, kwargs))
        except Exception as error:
            found = failed(error)
        if isinstance(found, str):
            reason = found
        elif (made := torch_compile.layout(found[0])) is None:
            reason = "its result is no tuple of tensors"
        else:
            return made
        self.record.whole[f"{reason}, when it was compiled"] += 1
        return None

    def _call(self, args: Any, kwargs: Any, reusable: Reusable) -> Any:
        try:
            arguments = self._bind(args, kwargs)
            found = self._program(arguments)
        except Exception as error:
            found = failed(error)
        if isinstance(found, str):
            self.record.whole[found] += 1
            return self.forward(*args, **kwargs)
        program, slices = found
        in_place = self._may_overwrite(program, *reusable())
        attempt = Run(program, self._block, arguments, slices, in_place)
        try:
            out = attempt.go()
        except Exception as error:
            if attempt.overwrote:
                raise  # the block's input is gone
            found = broken(error)
        if not isinstance(found, str):
            self._count(program, slices, in_place)
            return out
        del attempt
        out = self.forward(*args, **kwargs)  # where this fails too, the error is the user's
        self._programs.refuse(self._block, arguments, found)
        self.record.whole[found] += 1
        return out

    def _program(self, arguments: Mapping[str, Any]) -> tuple[Program, int] | str:
        """Return the program and its slices, or the reason why the block runs whole."""
        if reason := self._why_whole(arguments):
            return reason
        shapes = signature(arguments)
        if shapes in self._short:
            return self._few
        try:
            program = self._programs.find(self._block, arguments)
            slices = self._slices(program)
            self._check_hooks(program)
        except Underivable as error:
            return str(error)
        except Exception as error:
            return failed(error)
        if slices < 2:
            self._short.add(shapes)
            return self._few
        return program, slices

    def _bind(self, args: Any, kwargs: Any) -> dict[str, Any]:
        bound = self._names.bind(self._block, *args, **kwargs)
        arguments = dict(list(bound.arguments.items())[1:])
        kinds = {p.kind: name for name, p in self._names.parameters.items()}
        more = arguments.pop(kinds.get(inspect.Parameter.VAR_KEYWORD, ""), {})
        return {**arguments, **more}

    def _why_whole(self, arguments: Mapping[str, Any]) -> str:
        tensors = [x for x in leaves(arguments) if isinstance(x, Tensor)]
        if not tensors:
            return "no tensor among its arguments"
        if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
            return "needs gradients"
        if autocasts(tensors[0]):
            return "under autocast"
        if getattr(behind(self.forward), "__func__", None) is not type(self._block).forward:
            return "somebody replaced its forward"
        return "" if not self._block.training else "in training mode"

    def _slices(self, program: Program) -> int:
        """Return the most slices that leave each ``min_tokens`` tokens of the longest stream."""
        return min(self._config.slices, program.most_slices(self._config.min_tokens))

    def _check_hooks(self, program: Program) -> None:
        """Raise Underivable for a submodule that somebody watches: slices are not what it expects.

        Also where a part that is not called itself has weights elsewhere.
        """
        for path, part in self._block.named_modules():
            if path and (who := watcher(part)):
                raise Underivable(f"{path} has {who}")
        for path in program.opened:
            if offloaded(self._block.get_submodule(path)):
                raise Underivable(f"the weights of {path} are offloaded on their own")

    def _may_overwrite(
        self, program: Program, in_place: frozenset[str], kept: str
    ) -> frozenset[str]:
        """Return the arguments that this call overwrites, and note why it overwrites none."""
        self.record.copied = ""
        if hook := keeping_hook(self._block):
            in_place, self.record.copied = frozenset(), f"hook {hook!r} may need its input"
        elif not program.overwrites:
            self.record.copied = "no input of the result's size"
        elif not in_place & set(program.overwrites.values()):
            self.record.copied = kept or "its input may be read again"
        return in_place

    def _count(self, program: Program, slices: int, in_place: frozenset[str]) -> None:
        self.record.in_place += not self.record.copied
        self.record.sliced[slices] += 1
        self.record.mixing = program.mixing


# ------------------------------------------------------------------------------------------- apply


def apply_slicing(
    denoiser: nn.Module, config: SlicingConfig, undo: ExitStack, programs: Programs | None = None
) -> dict[str, BlockRecord]:
    """Slice every block of ``denoiser`` and return the records by path.

    The functions that undo it are put on ``undo`` as it is done. ``programs`` are those known
    already.
    """
    programs = programs or Programs()
    memory = _Reusable(denoiser, undo, programs.reusable)
    records = {}
    for path, block in blocks(denoiser).items():
        holder, name = innermost(block)
        hook = _Sliced(block, getattr(holder, name), config, programs, memory.of(path))
        undo.callback(put_in_place(holder, name, hook))
        records[path] = hook.record
    if parts := head(denoiser):
        records[HEAD] = record = BlockRecord()
        (at, name), (end, last) = map(innermost, parts)
        undo.callback(put_in_place(at, name, Norm(parts, getattr(at, name), record)))
        undo.callback(put_in_place(end, last, Projection(getattr(end, last), config, record)))
    return records


class _Reusable:
    """The block arguments that may be overwritten, found on the denoiser's first call."""

    def __init__(
        self, denoiser: nn.Module, undo: ExitStack, known: dict[Any, dict[str, frozenset[str]]]
    ) -> None:
        self._found: dict[str, frozenset[str]] = {}
        self._why = ""
        self._now: Any = None
        self._asked = True
        self._idle: set[Any] = set()  # calls after which no block had asked
        self._known = known
        handle = denoiser.register_forward_pre_hook(self._before, with_kwargs=True)
        undo.callback(handle.remove)

    def _before(self, denoiser: nn.Module, args: Any, kwargs: Any) -> None:
        if torch.compiler.is_compiling():
            return
        (self._idle.discard if self._asked else self._idle.add)(self._now)
        try:
            self._now, self._asked = signature({**kwargs, "": args}), False
            if self._now in self._idle:
                self._found, self._why = {}, "no block was sliced in the call before"
                return
            self._look(denoiser, args, kwargs)
        except Exception as error:
            self._found, self._why = {}, f"looking for its readers failed ({described(error)})"

    def _look(self, denoiser: nn.Module, args: Any, kwargs: Any) -> None:
        seen = ((path, watcher(part)) for path, part in denoiser.named_modules())
        path, who = next(((p, w) for p, w in seen if w), ("", ""))
        self._why = f"{who} on {path or 'the denoiser'} may keep its input" if who else ""
        if who:
            self._found = {}
            return
        key = self._now
        if key not in self._known:
            self._known[key] = overwritable(denoiser, list(blocks(denoiser)), args, kwargs)
        self._found = self._known[key]

    def of(self, path: str) -> Reusable:
        """Return what looks up a block's arguments, and why there are none, at the current call."""

        def asked() -> tuple[frozenset[str], str]:
            self._asked = True
            return self._found.get(path, frozenset()), self._why

        return asked
