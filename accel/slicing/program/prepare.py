"""Make a program ready to run: what every call reads and every group keeps, found once.

A slice of a small block is a hundred short calls, and a GPU waits while Python looks up what the
next one needs. So arguments are read by closures, one for each place of a call that changes from
slice to slice, and what a group keeps or drops is decided before the first run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from accel.core.tree import leaves
from accel.slicing.program.groups import last_uses
from accel.slicing.program.ir import JOINS, Execution, Group, Node, Operator, Program, Stage, Step
from accel.slicing.trace.record import Affine, Ref, refs

Reader = Callable[[Execution], Any]


def stages(program: Program, in_place: frozenset[str]) -> list[Stage]:
    """Return the program's stages where the arguments ``in_place`` may be overwritten.

    They are made once and cached.
    """
    if in_place not in program.prepared:
        program.prepared[in_place] = _stages(program, in_place)
    return program.prepared[in_place]


def _stages(program: Program, in_place: frozenset[str]) -> list[Stage]:
    inputs = program.trace.inputs
    target = {out: inputs[name] for out, name in program.overwrites.items() if name in in_place}
    keep = set(refs(program.result)) | set(target.values())
    made: list[Stage] = []
    for g in reversed(program.groups):
        placed = tuple(v for v in g.stores if v in target)
        loop = []
        for op, gone in zip(g.loop, last_uses(g.loop, placed), strict=True):
            stores = tuple(v for v in op.makes if v in g.stores and v not in target)
            loop.append(_step(program, op, True, stores, tuple(gone)))
        once = tuple(_step(program, op, False) for op in g.once)
        made.append(Stage(once, tuple(loop), _shared(program, g), placed, frozenset(keep)))
        for op in (*g.once, *g.loop):
            keep.update(op.reads, op.whole)
    return made[::-1]


def _shared(program: Program, g: Group) -> bool:
    """Return whether slices of a group attend to keys that are the same for all of them."""

    def same(op: Operator) -> bool:
        call = program.nodes[op.name].call
        if call.name != "scaled_dot_product_attention":
            return False
        key = call.args[1] if len(call.args) > 1 else call.kwargs["key"]
        return key.index in op.whole or key.index not in program.axes

    return any(map(same, g.loop))


def _step(
    program: Program, op: Operator, looping: bool, stores: tuple[int, ...] = (),
    gone: tuple[int, ...] = (),
) -> Step:  # fmt: skip
    return Step(_caller(program, program.nodes[op.name], looping), stores, gone)


def _caller(
    program: Program, node: Node, looping: bool
) -> Callable[[Execution, dict[int, Tensor]], None]:
    """Return a function that runs a call and puts its results into the values it is given."""
    op, call = node.operator, node.call

    def sliced(number: int) -> bool:
        return looping and number in program.axes and number not in op.whole

    read_args, read_kwargs = (
        _reader(tree, sliced, program) for tree in (tuple(call.args), dict(call.kwargs))
    )
    args, kwargs = tuple(call.args), dict(call.kwargs)
    function, made = _function(node, looping), refs(call.result)
    single = made[0] if isinstance(call.result, Ref) else None
    first = call.name == "__setitem__"

    def run(state: Execution, into: dict[int, Tensor]) -> None:
        given = args if read_args is None else read_args(state)
        named = kwargs if read_kwargs is None else read_kwargs(state)
        if call.copies:
            given = (given[0].clone(), *given[1:])
        out = function(state, given, named)
        if first:
            out = given[0]
        if single is not None:
            into[single] = out
        else:
            tensors = [x for x in leaves(out) if isinstance(x, Tensor)]
            into.update(zip(made, tensors, strict=True))

    if looping or call.name not in JOINS:
        return run

    def join(state: Execution, into: dict[int, Tensor]) -> None:
        if op.makes[0] in state.whole:
            state.join(call, state.whole[op.makes[0]])
        else:
            run(state, into)

    return join


def _function(
    node: Node, looping: bool
) -> Callable[[Execution, tuple[Any, ...], dict[str, Any]], Any]:
    """Return what a call does with its arguments."""
    call = node.call
    if call.name == "scaled_dot_product_attention":
        return lambda state, args, kwargs: state.attend(node, args, kwargs, looping)
    function, path = call.function, call.path
    if function is None:
        return lambda state, args, kwargs: state.module(path)(*args, **kwargs)
    return lambda state, args, kwargs: function(*args, **kwargs)


def _reader(tree: Any, sliced: Callable[[int], bool], program: Program) -> Reader | None:
    """Return the function that reads an argument during a run, or None if it is always ``tree``."""
    if isinstance(tree, Ref):
        return _value(tree.index, sliced(tree.index), program)
    if isinstance(tree, Affine):
        return lambda state: tree.at(state.lengths)
    if isinstance(tree, torch.device):
        return (lambda state: state.device) if tree.type == "meta" else None
    if isinstance(tree, slice):
        inner = _reader((tree.start, tree.stop, tree.step), sliced, program)
        return None if inner is None else lambda state: slice(*inner(state))
    if isinstance(tree, Mapping):
        values = _reader(tuple(tree.values()), sliced, program)
        keys = tuple(tree)
        return None if values is None else lambda state: dict(zip(keys, values(state), strict=True))
    if not isinstance(tree, (tuple, list)):
        return None
    parts = [(_reader(part, sliced, program), part) for part in tree]
    if all(reader is None for reader, _ in parts):
        return None
    kind: Any = type(tree)
    make = kind._make if hasattr(kind, "_make") else kind
    return lambda state: make([x if reader is None else reader(state) for reader, x in parts])


def _value(number: int, sliced: bool, program: Program) -> Reader:
    """Return a function that reads a tensor: its current slice, or whole, or a parameter."""
    name = program.trace.values[number].parameter
    parameter = attrgetter(name) if name else None

    def piece(state: Execution) -> Tensor:
        found = state.now.get(number)
        return state.slice(number) if found is None else found

    def whole(state: Execution) -> Tensor:
        found = state.whole.get(number)
        if found is None:
            assert parameter is not None
            return parameter(state.block)
        return found

    return piece if sliced else whole
