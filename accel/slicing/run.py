"""Runs a program: group by group, slice by slice, with the live block's own submodules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel import seam
from accel.kernels.shared_keys import shared_keys
from accel.slicing.groups import Group, Operator, last_uses
from accel.slicing.places import JOINS
from accel.slicing.program import Node, Program
from accel.slicing.record import Affine, Call, Ref, leaves, refs, tree_map
from accel.slicing.rules import Axis


def run(
    program: Program,
    block: nn.Module,
    arguments: Mapping[str, Any],
    slices: int,
    in_place: frozenset[str] = frozenset(),
) -> Any:
    """What ``block.forward(**arguments)`` returns, computed in ``slices`` slices.

    ``in_place``: arguments (such as "hidden_states.0") whose memory may be overwritten.
    """
    return _Run(program, block, arguments, slices, in_place).go()


def cuts(length: int, slices: int) -> list[int]:
    """Sizes of ``slices`` nearly equal parts of a stream, larger ones first."""
    size, more = divmod(length, slices)
    return [size + (j < more) for j in range(slices)]


class _Run:
    """One execution."""

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
        inputs = program.trace.inputs
        self.target = {
            out: inputs[name] for out, name in program.overwrites.items() if name in in_place
        }
        self.now: dict[Any, Tensor] = {}  # values of the current slice
        self.j = 0
        self.lengths: Sequence[int] = program.lengths

    def go(self) -> Any:
        program = self.program
        for i, g in enumerate(program.groups):
            for op in g.once:
                self._call(program.nodes[op.name], self.whole)
            with self._shared(g):
                self._loop(g)
            self._drop(program.groups[i + 1 :])
        for out, n in self.target.items():
            self.whole[out] = self.whole[n]

        def leaf(x: Any) -> Any:
            return self._tensor(x.index) if isinstance(x, Ref) else x

        return tree_map(leaf, program.result)

    def _shared(self, g: Group) -> AbstractContextManager[Any]:
        """Quantizes keys and values once for all slices, where these attend to the same ones."""

        def same(op: Operator) -> bool:
            call = self.program.nodes[op.name].call
            if call.name != "scaled_dot_product_attention":
                return False
            key = call.args[1] if len(call.args) > 1 else call.kwargs["key"]
            return key.index in op.whole or key.index not in self.program.axes

        return shared_keys() if any(map(same, g.loop)) else nullcontext()

    def _loop(self, g: Group) -> None:
        placed = [v for v in g.stores if v in self.target]
        steps = list(zip(g.loop, last_uses(g.loop, placed), strict=True))
        for j in range(self.slices):
            self.j, self.lengths = j, [sizes[j] for sizes in self.sizes]
            for op, gone in steps:
                self._call(self.program.nodes[op.name], self.now)
                for value in op.makes:
                    if value in g.stores and value not in self.target:
                        self._store(value)
                for value in gone:
                    self.now.pop(value, None)
            for value in placed:
                self._write(self.whole[self.target[value]], value, self.now[value])
            self.now.clear()
        self.lengths = self.program.lengths

    def _drop(self, later: Sequence[Group]) -> None:
        """Forget whole values that no later group and no result needs."""
        needed = set(refs(self.program.result)) | set(self.target.values())
        for g in later:
            for op in (*g.once, *g.loop):
                needed.update(op.reads, op.whole)
        for value in [v for v in self.whole if v not in needed]:
            del self.whole[value]

    def _pieces(self, number: int, tensor: Tensor) -> list[Tensor]:
        """Slice j of each stream in a whole value."""
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
        """Put this slice into the whole value, or where that has its home."""
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
        """A whole value, laid out in memory like a slice of it."""
        strides = like.stride()
        order = sorted(range(like.dim()), key=lambda d: -strides[d])
        whole = like.new_empty([sizes[d] for d in order])
        return whole.permute(sorted(range(like.dim()), key=order.__getitem__))

    def _join(self, call: Call, joined: Tensor) -> None:
        """Put what is not there yet into a joined value that others were stored in."""
        homes, parts, at = self.program.homes, refs(call.args[:1]), 0
        dim = next(homes[n][1] for n in parts if n in homes)
        for n in parts:
            part = self._tensor(n)
            if n not in homes:
                joined.narrow(dim, at, part.shape[dim]).copy_(part)
            at += part.shape[dim]

    def _tensor(self, number: int) -> Tensor:
        """A value needed whole."""
        if number not in self.whole:
            return self._parameter(number)
        return self.whole[number]

    def _parameter(self, number: int) -> Tensor:
        return attrgetter(self.program.trace.values[number].parameter)(self.block)

    def _slice(self, number: int) -> Tensor:
        """This slice of a value that has the axis."""
        if number not in self.now:
            pieces = self._pieces(number, self.whole[number])
            self.now[number] = pieces[0] if len(pieces) == 1 else torch.cat(
                pieces, self.program.axes[number].dim
            )  # fmt: skip
        return self.now[number]

    def _call(self, node: Node, into: dict[int, Tensor]) -> None:
        op, call = node.operator, node.call
        looping = into is self.now
        if not looping and op.makes[0] in self.whole and call.name in JOINS:
            return self._join(call, self.whole[op.makes[0]])

        def leaf(x: Any) -> Any:
            if isinstance(x, Ref):
                sliced = looping and x.index in self.program.axes and x.index not in op.whole
                return self._slice(x.index) if sliced else self._tensor(x.index)
            if isinstance(x, Affine):
                return x.at(self.lengths)
            if isinstance(x, torch.device) and x.type == "meta":
                return self.device
            return x

        args, kwargs = tree_map(leaf, call.args), tree_map(leaf, call.kwargs)
        if call.name == "scaled_dot_product_attention":
            out = self._attend(node, args, kwargs, looping)
        elif call.function is None:
            out = self.block.get_submodule(call.path)(*args, **kwargs)
        else:
            if call.copies:
                args = (args[0].clone(), *args[1:])
            out = call.function(*args, **kwargs)
            out = args[0] if call.name == "__setitem__" else out
        made = [x for x in leaves(out) if isinstance(x, Tensor)]
        into.update(zip(refs(call.result), made, strict=True))

    def _attend(
        self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any], looping: bool
    ) -> Tensor:
        """Attention of this slice's queries, at the site of the module that calls it."""
        given = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False))
        given.update(kwargs)
        mask, query = given.get("attn_mask"), node.call.args[0] if node.call.args else None
        query = query or node.call.kwargs["query"]
        if looping and mask is not None and mask.dim() > 1 and mask.shape[-2] > 1:
            rows = self.program.axes[query.index]
            if rows.dim == len(self.program.trace.values[query.index].dims) - 2:
                given["attn_mask"] = self._rows(mask, rows)
        rest = args[4:]
        with seam.calling(self.block.get_submodule(node.owner)):
            query, key, value = (given.pop(k) for k in ("query", "key", "value"))
            return F.scaled_dot_product_attention(
                query, key, value, given.pop("attn_mask", None), *rest, **given
            )

    def _rows(self, mask: Tensor, axis: Axis) -> Tensor:
        """Rows of a mask [..., Tq, Tk] that belong to this slice's queries."""
        at, pieces = 0, []
        for s in axis.streams:
            start = at + sum(self.sizes[s][: self.j])
            pieces.append(mask.narrow(-2, start, self.sizes[s][self.j]))
            at += self.program.lengths[s]
        return torch.cat(pieces, -2)
