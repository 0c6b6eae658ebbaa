"""Run a program: group by group, slice by slice, with the live block's own submodules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel.attention import sdpa
from accel.core.cuts import cuts
from accel.core.tree import leaves, tree_map
from accel.kernels.shared_keys import shared_keys
from accel.slicing.program.ir import Node, Program, Stage
from accel.slicing.program.prepare import stages
from accel.slicing.trace.record import Axis, Call, Ref, refs


def run(
    program: Program,
    block: nn.Module,
    arguments: Mapping[str, Any],
    slices: int,
    in_place: frozenset[str] = frozenset(),
) -> Any:
    """Return what ``block.forward(**arguments)`` returns, computed in ``slices`` slices.

    ``in_place``: arguments (such as "hidden_states.0") whose memory may be overwritten.
    """
    return Run(program, block, arguments, slices, in_place).go()


class Run:
    """One execution of a program.

    ``whole``: values needed in full. ``now``: those of the current slice ``j``, in which the
    streams have ``lengths`` tokens. ``overwrote``: whether an argument has changed.
    """

    def __init__(
        self,
        program: Program,
        block: nn.Module,
        arguments: Mapping[str, Any],
        slices: int,
        in_place: frozenset[str],
    ) -> None:
        self.program, self.block = program, block
        self.whole: dict[int, Tensor] = {}
        for name, value in arguments.items():
            for i, leaf in enumerate(leaves(value)):
                if isinstance(leaf, Tensor):
                    self.whole[program.trace.inputs[f"{name}.{i}"]] = leaf
        self.device = next(iter(self.whole.values())).device
        self.sizes = [cuts(n, slices) for n in program.lengths]
        self.slices = slices
        self.stages = stages(program, in_place)
        inputs = program.trace.inputs
        self.target = {
            out: inputs[name] for out, name in program.overwrites.items() if name in in_place
        }
        self.now: dict[int, Tensor] = {}
        self.overwrote = False
        self.j = 0
        self.lengths: Sequence[int] = program.lengths
        self._modules: dict[str, nn.Module] = {}

    def go(self) -> Any:
        """Return the block's result."""
        for stage in self.stages:
            for step in stage.once:
                step.run(self, self.whole)
            # Keys and values are quantized once for all slices.
            with shared_keys() if stage.shared else nullcontext():
                self._loop(stage)
            for value in [v for v in self.whole if v not in stage.keep]:
                del self.whole[value]
        for out, n in self.target.items():
            self.whole[out] = self.whole[n]

        def leaf(x: Any) -> Any:
            return self._tensor(x.index) if isinstance(x, Ref) else x

        return tree_map(leaf, self.program.result)

    def _loop(self, stage: Stage) -> None:
        now = self.now
        for j in range(self.slices):
            self.j, self.lengths = j, [sizes[j] for sizes in self.sizes]
            for step in stage.loop:
                step.run(self, now)
                for value in step.stores:
                    self._store(value)
                for value in step.gone:
                    now.pop(value, None)
            for value in stage.placed:
                self.overwrote = True
                self._write(self.whole[self.target[value]], value, now[value])
            now.clear()
        self.lengths = self.program.lengths

    def _pieces(self, number: int, tensor: Tensor) -> list[Tensor]:
        """Return slice j of each stream in a whole value."""
        axis, at, pieces = self.program.axes[number], 0, []
        for s in axis.streams:
            start = at + sum(self.sizes[s][: self.j])
            pieces.append(tensor.narrow(axis.dim, start, self.sizes[s][self.j]))
            at += self.program.lengths[s]
        return pieces

    def _write(self, whole: Tensor, number: int, value: Tensor) -> None:
        axis = self.program.axes[number]
        parts = value.split([self.sizes[s][self.j] for s in axis.streams], axis.dim)
        for piece, part in zip(self._pieces(number, whole), parts, strict=True):
            piece.copy_(part)

    def _store(self, number: int) -> None:
        """Put this slice into the whole value, or into the joined value where it has its place."""
        value = self.now[number]
        if self.j == 0:
            joined, dim, start = self.program.homes.get(number, (number, 0, 0))
            if joined not in self.whole:
                self.whole[joined] = self._blank(value, self.program.sizes(joined))
            if joined != number:
                size = self.program.sizes(number)[dim]
                self.whole[number] = self.whole[joined].narrow(dim, start, size)
        self._write(self.whole[number], number, value)

    def _blank(self, like: Tensor, sizes: Sequence[int]) -> Tensor:
        """Return a new whole value, laid out in memory like a slice of it."""
        strides = like.stride()
        order = sorted(range(like.dim()), key=lambda d: -strides[d])
        whole = like.new_empty([sizes[d] for d in order])
        return whole.permute(sorted(range(like.dim()), key=order.__getitem__))

    def join(self, call: Call, joined: Tensor) -> None:
        """Fill the missing parts of a joined value that others were stored in."""
        homes, parts, at = self.program.homes, refs(call.args[:1]), 0
        dim = next(homes[n][1] for n in parts if n in homes)
        for n in parts:
            part = self._tensor(n)
            if n not in homes:
                joined.narrow(dim, at, part.shape[dim]).copy_(part)
            at += part.shape[dim]

    def _tensor(self, number: int) -> Tensor:
        """Return a value that is needed whole."""
        if number in self.whole:
            return self.whole[number]
        return attrgetter(self.program.trace.values[number].parameter)(self.block)

    def slice(self, number: int) -> Tensor:
        """Return this slice of a whole value that has the axis."""
        pieces = self._pieces(number, self.whole[number])
        dim = self.program.axes[number].dim
        self.now[number] = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)
        return self.now[number]

    def module(self, path: str) -> nn.Module:
        """Return the live block's submodule."""
        found = self._modules.get(path)
        if found is None:
            found = self._modules[path] = self.block.get_submodule(path)
        return found

    def attend(
        self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any], looping: bool
    ) -> Tensor:
        """Return the attention of this slice's queries, at the site of the module that calls it."""
        given = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False))
        given.update(kwargs)
        mask, query = given.get("attn_mask"), node.call.args[0] if node.call.args else None
        query = query or node.call.kwargs["query"]
        if looping and mask is not None and mask.dim() > 1 and mask.shape[-2] > 1:
            rows = self.program.axes[query.index]
            if rows.dim == len(self.program.trace.values[query.index].dims) - 2:
                given["attn_mask"] = self._rows(mask, rows)
        rest = args[4:]
        with sdpa.calling(self.module(node.owner)):
            query, key, value = (given.pop(k) for k in ("query", "key", "value"))
            return F.scaled_dot_product_attention(
                query, key, value, given.pop("attn_mask", None), *rest, **given
            )

    def _rows(self, mask: Tensor, axis: Axis) -> Tensor:
        """Return the rows of a mask [..., Tq, Tk] that belong to this slice's queries."""
        at, pieces = 0, []
        for s in axis.streams:
            start = at + sum(self.sizes[s][: self.j])
            pieces.append(mask.narrow(-2, start, self.sizes[s][self.j]))
            at += self.program.lengths[s]
        return torch.cat(pieces, -2)
