"""Where a program's results and stored values lie: in existing memory, if possible."""

from __future__ import annotations

from collections.abc import Sequence

from accel.slicing import group_norm
from accel.slicing.program.ir import JOINS, Program
from accel.slicing.trace.record import refs


def overwrites(program: Program, outputs: Sequence[int]) -> dict[int, str]:
    """Return the results that may take the memory of a stream, with that stream's argument.

    The last group's loop makes them, with the stream's sizes, from a stream that nothing reads
    whole.
    """
    trace, values = program.trace, program.trace.values
    statistics = group_norm.group_statistics  # keeps no view of what it reads
    once = [op for g in program.groups for op in g.once]
    once = [op for op in once if program.nodes[op.name].call.function is not statistics]
    whole = {v for op in once for v in (*op.reads, *op.whole)}
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


def homes(program: Program, outputs: Sequence[int]) -> dict[int, tuple[int, int, int]]:
    """Return the stored values that can lie inside a joined value, which saves a copy of each.

    They are read only to be joined with others on whole values. Each is mapped to the joined value,
    the dimension, and its offset there.
    """
    stored = {v for g in program.groups for v in g.stores} - set(outputs)
    readers: dict[int, int] = {}
    for g in program.groups:
        for op in (*g.once, *g.loop):
            for v in op.reads:
                readers[v] = readers.get(v, 0) + 1
    found: dict[int, tuple[int, int, int]] = {}
    for op in (op for g in program.groups for op in g.once):
        call = program.nodes[op.name].call
        if call.name not in JOINS:
            continue
        dim, at = call.kwargs.get("dim", call.args[1] if len(call.args) > 1 else 0), 0
        dim %= len(program.sizes(op.makes[0]))
        for v in refs(call.args[:1]):
            if v in stored and readers[v] == 1:
                found[v] = (op.makes[0], dim, at)
            at += program.sizes(v)[dim]
    return found
