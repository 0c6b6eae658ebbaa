"""A block as groups of operators, run slice by slice with the live block's own submodules.

``build`` turns a merged trace into a ``Program``. A submodule whose every operator is point-wise
on the tokens stays one call, so its hooks, LoRA branches and quantized weights work as they are;
one that holds attention, or matrix products that do not depend on the slice, is opened, and so are
diffusers' own containers, which would keep their arguments alive for too long.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel import seam
from accel.slicing.groups import Group, Operator, group, last_uses
from accel.slicing.record import Affine, Call, Ref, Trace, Underivable, leaves, refs, tree_map
from accel.slicing.rules import EXPENSIVE, Axis, Rules

TOKENS = "tokens"
FRESH = ("empty_like", "zeros_like", "new_empty", "new_zeros")


@dataclass(frozen=True)
class Node:
    """An operator and the call it stands for. ``owner``: submodule an attention call is made in."""

    operator: Operator
    call: Call
    owner: str


class _Flattener:
    """Calls of a trace as operators, with submodules kept whole where that is right."""

    def __init__(self, trace: Trace, rules: Rules) -> None:
        self.trace, self.rules = trace, rules
        self.same: dict[int, int] = {}  # a submodule's result: the value inside that it is
        self.mixing: list[str] = []
        self.opened: list[str] = []

    def real(self, number: int) -> int:
        """The value behind the results of opened submodules."""
        while number in self.same:
            number = self.same[number]
        return number

    def flatten(self, calls: Sequence[Call], owner: str) -> list[Node]:
        nodes: list[Node] = []
        for call in calls:
            nodes += [self._function(call, owner)] if call.function else self._module(call, owner)
        return nodes

    def _function(self, call: Call, owner: str) -> Node:
        found = self.rules.find(call)
        reads = tuple(dict.fromkeys(refs(call.args) + refs(call.kwargs)))
        if found is None:
            self.mixing.append(call.name)
        operator = Operator(
            f"{call.name}:{refs(call.result)[0]}",
            reads,
            tuple(refs(call.result)),
            frozenset({TOKENS} if found is not None and found.axes else ()),
            found.whole if found else (),
            call.name not in EXPENSIVE,
        )
        return Node(operator, call, owner)

    def _module(self, call: Call, owner: str) -> list[Node]:
        results = tuple(n for n in refs(call.result) if n >= call.start)
        inside = self.flatten(call.inside, call.path)
        for new, inner in call.aliases.items():
            if inner in self.rules.axes:
                self.rules.axes[new] = self.rules.axes[inner]
        looping = [n for n in inside if n.operator.pointwise]
        fixed = [n for n in inside if not n.operator.pointwise]
        clean = not any(n.operator.whole for n in inside) and not any(
            self.rules.sloped(v) for n in fixed for v in (*n.operator.reads, *n.operator.makes)
        )
        opened = not clean or (looping and any(not n.operator.cheap for n in fixed))
        opened = opened or (looping and len(inside) > 1 and call.container)
        if opened or len(results) < len(refs(call.result)):
            self.same.update(call.aliases)
            self.opened.append(call.path)
            return inside
        cheap = all(n.operator.cheap for n in inside) and call.name != "_RowWise"
        operator = Operator(
            f"{call.path}:{results[0]}",
            tuple(dict.fromkeys(refs(call.args) + refs(call.kwargs))),
            results,
            frozenset({TOKENS} if any(self.rules.sloped(n) for n in results) else ()),
            (),
            cheap,
        )
        return [Node(operator, call, owner)]


def _from_start(call: Call, values: Sequence[Any], lengths: Sequence[int]) -> Any:
    """Arguments of ``x[...]`` with ends such as -tokens counted from the start, so that a slice in
    which a stream has no token reads nothing and not everything.
    """
    if call.name not in ("__getitem__", "__setitem__"):
        return call.args
    dims = values[call.args[0].index].dims
    key = call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
    plain = next((i for i, k in enumerate(key) if not isinstance(k, (slice, int))), len(key))

    def end(x: Any, dim: Any) -> Any:
        if isinstance(x, Affine) and x.at(lengths) < 0:
            more = dim if isinstance(dim, Affine) else Affine(dim, (0,) * len(lengths))
            slopes = tuple(a + b for a, b in zip(x.slopes, more.slopes, strict=True))
            return Affine(x.constant + more.constant, slopes)
        return x

    fixed = [
        slice(end(k.start, d), end(k.stop, d), k.step) if isinstance(k, slice) else k
        for k, d in zip(key[:plain], dims, strict=False)
    ]
    return (call.args[0], (*fixed, *key[plain:]), *call.args[2:])


def _renumbered(node: Node, real: Any, trace: Trace) -> Node:
    """With the results of opened submodules replaced by the values they are."""
    op, call = node.operator, node.call
    call = replace(call, args=_from_start(call, trace.values, trace.lengths))
    operator = Operator(
        op.name, tuple(dict.fromkeys(map(real, op.reads))), op.makes, op.pointwise,
        tuple(map(real, op.whole)), op.cheap,
    )  # fmt: skip

    def leaf(x: Any) -> Any:
        return Ref(real(x.index)) if isinstance(x, Ref) else x

    args, kwargs = tree_map(leaf, call.args), tree_map(leaf, call.kwargs)
    return Node(operator, replace(call, args=args, kwargs=kwargs, inside=[]), node.owner)


@dataclass
class Program:
    """A block's forward for one set of argument shapes. ``lengths``: tokens of each stream,
    ``streams`` the argument that carries each, ``overwrites`` maps a result to the argument whose
    memory it may take, ``opened`` are submodules that are not called as such.
    """

    trace: Trace
    axes: dict[int, Axis]
    nodes: dict[str, Node]
    groups: list[Group]
    result: Any
    streams: tuple[str, ...]
    overwrites: dict[int, str]
    mixing: tuple[str, ...]
    opened: tuple[str, ...]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each stream."""
        return self.trace.lengths

    def run(
        self, block: nn.Module, arguments: Mapping[str, Any], slices: int, in_place: frozenset[str]
    ) -> Any:
        """What ``block.forward(**arguments)`` returns, computed in ``slices`` slices.

        ``in_place``: arguments (such as "hidden_states.0") whose memory may be overwritten.
        """
        return _Run(self, block, arguments, slices, in_place).go()


def build(trace: Trace, inputs: Mapping[str, Axis], streams: tuple[str, ...]) -> Program:
    """The program of a merged trace whose arguments have these axes."""
    rules = Rules(trace.values, trace.lengths)
    for name, axis in inputs.items():
        rules.set_axis(trace.inputs[name], axis)
    flattener = _Flattener(trace, rules)
    nodes = [_renumbered(n, flattener.real, trace) for n in flattener.flatten(trace.calls, "")]
    _check(nodes, trace)
    real = flattener.real
    result = tree_map(lambda x: Ref(real(x.index)) if isinstance(x, Ref) else x, trace.result)
    outputs = list(dict.fromkeys(refs(result)))
    for n in outputs:
        if rules.sloped(n) and n not in rules.axes:
            raise Underivable(f"its result mixes tokens ({', '.join(flattener.mixing)})")
    held = [n for name, n in trace.inputs.items() if n in rules.axes]
    groups = group([n.operator for n in nodes], held, outputs, TOKENS)
    program = Program(
        trace, rules.axes, {n.operator.name: n for n in nodes}, groups, result, streams, {},
        tuple(flattener.mixing), tuple(flattener.opened),
    )  # fmt: skip
    program.overwrites = _overwrites(program, outputs)
    return program


def _check(nodes: Sequence[Node], trace: Trace) -> None:
    """Every value must come from somewhere. What is changed in place must be no argument, and is
    copied first unless it was made for that.
    """
    made = {n for node in nodes for n in node.operator.makes} | set(trace.inputs.values())
    for node in nodes:
        for n in node.operator.reads:
            if n not in made and not trace.values[n].parameter:
                raise Underivable(f"{node.operator.name} uses a value hidden in a submodule")
    readers: dict[int, int] = {}
    for node in nodes:
        for n in node.operator.reads:
            readers[n] = readers.get(n, 0) + 1
    outside = set(trace.inputs.values())
    fresh = {n for node in nodes if node.call.mutates or node.call.name in FRESH
             for n in node.operator.makes}  # fmt: skip
    for node in nodes:
        name = node.call.name
        if node.call.mutates:
            target = node.call.args[0].index
            if target in outside or trace.values[target].parameter:
                raise Underivable(f"{name} changes an argument in place")
            node.call.copies = readers[target] > 1 or target not in fresh


def _overwrites(program: Program, outputs: Sequence[int]) -> dict[int, str]:
    """Results that may take the memory of a stream: made by the last group's loop, with the
    stream's sizes, from a stream that nothing reads whole.
    """
    trace, values = program.trace, program.trace.values
    whole = {v for g in program.groups for op in g.once for v in (*op.reads, *op.whole)}
    whole |= {v for g in program.groups for op in g.loop for v in op.whole}
    chosen: dict[int, str] = {}
    for out in outputs:
        if not program.groups or out not in program.groups[-1].stores:
            continue
        for name in program.streams:
            n = trace.inputs[name]
            alike = (values[n].dims, values[n].dtype) == (values[out].dims, values[out].dtype)
            alike = alike and program.axes.get(n) == program.axes.get(out)
            if alike and n not in whole and name not in chosen.values():
                chosen[out] = name
                break
    return chosen


# --------------------------------------------------------------------------------------------- run


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
        self.now: dict[int, Tensor] = {}  # values of the current slice
        self.lengths: Sequence[int] = program.lengths

    def go(self) -> Any:
        program = self.program
        for i, g in enumerate(program.groups):
            for op in g.once:
                self._call(program.nodes[op.name], self.whole)
            self._loop(g)
            self._drop(program.groups[i + 1 :])
        for out, n in self.target.items():
            self.whole[out] = self.whole[n]

        def leaf(x: Any) -> Any:
            return self._tensor(x.index) if isinstance(x, Ref) else x

        return tree_map(leaf, program.result)

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
        """Put this slice into the whole value, laid out in memory like the slice."""
        value = self.now[number]
        if self.j == 0:
            dims = self.program.trace.values[number].dims
            sizes = [d.at(self.program.lengths) if isinstance(d, Affine) else d for d in dims]
            order = sorted(range(value.dim()), key=lambda d: -value.stride(d))
            whole = value.new_empty([sizes[d] for d in order])
            back = sorted(range(value.dim()), key=order.__getitem__)
            self.whole[number] = whole.permute(back)
        self._write(self.whole[number], number, value)

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
