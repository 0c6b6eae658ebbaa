"""Build a program, the groups of operators of a block (``accel/slicing/program/run.py`` runs it).

``build`` turns a merged trace into a ``Program``. A submodule in which every operator is point-wise
on the tokens stays one call, so its hooks, LoRA branches and quantized weights work unchanged. A
submodule that holds attention, or matrix products that do not depend on the slice, is opened. So
are diffusers' own containers, which would keep their arguments alive for too long.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from accel.core.tree import leaves, tree_map
from accel.slicing import group_norm
from accel.slicing.program import memory_reuse
from accel.slicing.program.groups import group
from accel.slicing.program.ir import TOKENS, Node, Operator, Program
from accel.slicing.trace.kinds import EXPENSIVE
from accel.slicing.trace.record import Affine, Axis, Call, Ref, Trace, Underivable, Value, refs
from accel.slicing.trace.rules import Rules

NAMED = 3  # functions that a reason names; what follows them usually mixes because they do
FRESH = ("empty_like", "zeros_like", "new_empty", "new_zeros")


class _Flattener:
    """Turns the calls of a trace into operators, and keeps submodules whole where possible."""

    def __init__(self, trace: Trace, rules: Rules) -> None:
        self.trace, self.rules = trace, rules
        self.same: dict[int, int] = {}  # a submodule's result: the value inside it that it equals
        self.mixing: list[str] = []
        self.opened: list[str] = []

    def real(self, number: int) -> int:
        """Return the value behind the results of opened submodules."""
        while number in self.same:
            number = self.same[number]
        return number

    def flatten(self, calls: Sequence[Call], owner: str) -> list[Node]:
        """Return calls made in the submodule ``owner`` as operators."""
        nodes: list[Node] = []
        for call in calls:
            if not call.function:
                nodes += self._module(call, owner)
            elif call.name == "group_norm" and self.rules.crosses(call):
                nodes += self._group_norm(call, owner)
            else:
                nodes.append(self._function(call, owner))
        return nodes

    def _group_norm(self, call: Call, owner: str) -> list[Node]:
        """Return two operators: statistics of the whole value, and its slice normalized by them."""
        names = ("input", "num_groups", "weight", "bias", "eps")
        given = {**dict(zip(names, call.args, strict=False)), **call.kwargs}
        x, groups, eps = given["input"], given["num_groups"], given.get("eps", 1e-5)
        values, result = self.trace.values, refs(call.result)[0]
        made = (len(values), len(values) + 1)
        size = (values[x.index].dims[0], groups)
        values += [Value(size, torch.float32), Value(size, torch.float32)]
        self.rules.set_axis(result, self.rules.axes[x.index])
        stats = tuple(map(Ref, made))
        affine = (given.get("weight"), given.get("bias"))
        first = Call("group_statistics", (x, groups, eps), {}, stats, group_norm.group_statistics)
        last = Call("normalize", (x, *stats, *affine), {}, Ref(result), group_norm.normalize)
        operators = (
            Operator(f"group_statistics:{made[0]}", (x.index,), made),
            Operator(f"normalize:{result}", tuple(refs(last.args)), (result,), frozenset({TOKENS})),
        )
        pairs = zip(operators, (first, last), strict=True)
        return [Node(operator, part, owner) for operator, part in pairs]

    def _function(self, call: Call, owner: str) -> Node:
        found = self.rules.find(call)
        reads = tuple(dict.fromkeys(refs(call.args) + refs(call.kwargs)))
        floats = any(self.trace.values[n].dtype.is_floating_point for n in refs(call.result))
        if found is None and floats:
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


def _explicit(call: Call, values: Sequence[Any], lengths: Sequence[int]) -> Any:
    """Return arguments that mean the same where a slice holds no token of a stream.

    Ends such as -tokens in ``x[...]`` are counted from the start, and sizes of -1 are written out.
    """
    if call.name in ("view", "reshape") and -1 in leaves(call.args[1:]):
        return (call.args[0], values[refs(call.result)[0]].dims)
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
    """Return the node with the results of opened submodules replaced by the values they equal."""
    op, call = node.operator, node.call
    call = replace(call, args=_explicit(call, trace.values, trace.lengths))
    operator = Operator(
        op.name, tuple(dict.fromkeys(map(real, op.reads))), op.makes, op.pointwise,
        tuple(map(real, op.whole)), op.cheap,
    )  # fmt: skip

    def leaf(x: Any) -> Any:
        return Ref(real(x.index)) if isinstance(x, Ref) else x

    args, kwargs = tree_map(leaf, call.args), tree_map(leaf, call.kwargs)
    return Node(operator, replace(call, args=args, kwargs=kwargs, inside=[]), node.owner)


def build(trace: Trace, inputs: Mapping[str, Axis], streams: tuple[str, ...]) -> Program:
    """Return the program of a merged trace whose arguments have the axes ``inputs``.

    Raises Underivable if its result mixes tokens, or if the trace cannot be run in slices.
    """
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
            first = list(dict.fromkeys(flattener.mixing))
            named = ", ".join(first[:NAMED]) + (" and others" if len(first) > NAMED else "")
            raise Underivable(f"its result mixes tokens ({named})")
    held = [n for name, n in trace.inputs.items() if n in rules.axes]
    groups = group([n.operator for n in nodes], held, outputs, TOKENS)
    program = Program(
        trace, rules.axes, {n.operator.name: n for n in nodes}, groups, result, streams, {},
        tuple(flattener.mixing), tuple(flattener.opened),
    )  # fmt: skip
    program.overwrites = memory_reuse.overwrites(program, outputs)
    program.homes = memory_reuse.homes(program, outputs)
    return program


def _check(nodes: Sequence[Node], trace: Trace) -> None:
    """Check that each value has a source, and decide what is copied before it is changed in place.

    Raises Underivable for a value without a source and for an argument that is changed in place.
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
