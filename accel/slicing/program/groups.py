"""Operator grouping: which operators run slice by slice together, and the peak memory of that.

The method is "Operator Grouping" of Streamlined Inference (Zhan et al. 2024, arXiv 2411.01171), for
any chain of operators. An operator says on which axes it is point-wise: on those, slice j of its
result needs only slice j of what it reads. Values it needs whole nevertheless (keys and values of
attention, statistics of a norm) are barriers: an earlier group stores them whole.

Each group computes the values it stores, slice by slice, from the block's inputs and from what
earlier groups stored. Cheap operators run again in every group that needs them. The result of an
expensive one that a later group needs too is stored as well. So the peak is

    inputs + stored values + (largest live set inside a group) / slices.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from accel.slicing.program.ir import Group, Name, Operator


class _Chain:
    """The operators with their properties along one axis."""

    def __init__(self, operators: Sequence[Operator], streams: Iterable[Name], axis: str) -> None:
        self.axis = axis
        self.maker = {value: op for op in operators for value in op.makes}
        self.sliced = set(streams)  # values that exist slice by slice
        self.level: dict[Name, int] = {}  # number of barriers before a value
        self.cone: dict[Name, int] = {}  # operators behind a value
        for op in operators:
            self._visit(op)

    def _visit(self, op: Operator) -> None:
        loop = self.loops(op) and any(v in self.sliced for v in self.slices(op))
        level = 0
        for value in (*op.reads, *op.whole):
            barrier = value in self.sliced and value in self.maker
            barrier = barrier and (not loop or value in op.whole)
            level = max(level, self.level.get(value, 0) + barrier)
        for value in op.makes:
            self.level[value] = level
            self.cone[value] = 1 + sum(self.cone.get(v, 0) for v in op.reads)
            if loop:
                self.sliced.add(value)

    def loops(self, op: Operator) -> bool:
        """Return whether an operator may run slice by slice."""
        return self.axis in op.pointwise

    def slices(self, op: Operator) -> tuple[Name, ...]:
        """Return the values that an operator reads slice by slice."""
        return tuple(v for v in op.reads if v not in op.whole)

    def in_loop(self, value: Name) -> bool:
        """Return whether an operator makes the value slice by slice."""
        return value in self.sliced and value in self.maker


def group(
    operators: Sequence[Operator], streams: Sequence[Name], outputs: Sequence[Name], axis: str
) -> list[Group]:
    """Return the groups along ``axis``, in the order they run.

    Args:
        operators: In an order in which every value is made before it is read.
        streams: Input values that have the axis.
        outputs: Values to store in the end.
        axis: The name of the axis.
    """
    chain = _Chain(operators, streams, axis)
    stores = _stores(chain, outputs)
    groups = []
    ran: set[Name] = set()
    known: set[Name] = set()  # stored by earlier groups
    for level in range(max(stores, default=0) + 1):
        wanted = list(stores.get(level, ()))
        loop = _needed(chain, wanted, known)
        once = _once(chain, loop, wanted, ran)
        wanted = [v for v in wanted if chain.in_loop(v)]
        groups.append(Group(tuple(once), tuple(loop), tuple(wanted)))
        known.update(wanted)
    return [g for g in groups if g.once or g.loop]


def _stores(chain: _Chain, outputs: Sequence[Name]) -> dict[int, list[Name]]:
    """Return the values to keep whole, by the level of the group that makes them."""
    stores: dict[int, list[Name]] = {}

    def store(value: Name) -> None:
        row = stores.setdefault(chain.level.get(value, 0), [])
        if value not in row:
            row.append(value)

    last = max((chain.level.get(v, 0) for v in outputs), default=0)
    for value in outputs:
        store(value)
    # Everything that any needed operator needs whole.
    pending, seen = list(outputs), set(outputs)
    while pending:
        op = chain.maker.get(pending.pop())
        for value in (*op.reads, *op.whole) if op else ():
            whole = op is not None and (value in op.whole or not chain.loops(op))
            if whole and chain.in_loop(value):
                store(value)
            if value not in seen:
                seen.add(value)
                pending.append(value)
    _spill(chain, stores, store, last)
    return stores


def _spill(chain: _Chain, stores: dict[int, list[Name]], store, last: int) -> None:  # type: ignore[no-untyped-def]
    """Store results of expensive operators that two groups need."""
    ran: dict[Name, int] = {}
    known: set[Name] = set()
    for level in range(last + 1):
        for op in _needed(chain, stores.get(level, []), known, ran):
            ran.setdefault(op.name, level)
            if not op.cheap and ran[op.name] < level:
                for value in op.makes:
                    row = stores.setdefault(ran[op.name], [])
                    if value not in row:
                        row.append(value)
        known.update(v for row in range(level + 1) for v in stores.get(row, []))


def _needed(
    chain: _Chain, wanted: Sequence[Name], known: set[Name], ran: Mapping[Name, int] | None = None
) -> list[Operator]:
    """Return the operators of one slice that make ``wanted``, deepest operand first.

    They stop at known values and, with ``ran``, behind an expensive operator that has run before.
    """
    order: list[Operator] = []
    done: set[Name] = set()

    def visit(value: Name) -> None:
        op = chain.maker.get(value)
        if op is None or value in known or not chain.in_loop(value) or op.name in done:
            return
        done.add(op.name)
        if ran is None or op.cheap or op.name not in ran:
            for operand in sorted(chain.slices(op), key=lambda v: -chain.cone.get(v, 0)):
                visit(operand)
        order.append(op)

    for value in wanted:
        visit(value)
    return order


def _once(
    chain: _Chain, loop: Sequence[Operator], wanted: Sequence[Name], ran: set[Name]
) -> list[Operator]:
    """Return the operators on whole values that are needed and have not run."""
    order: list[Operator] = []

    def visit(value: Name) -> None:
        op = chain.maker.get(value)
        if op is None or chain.in_loop(value) or op.name in ran:
            return
        ran.add(op.name)
        for operand in (*op.reads, *op.whole):
            visit(operand)
        order.append(op)

    for op in loop:
        for value in (*op.reads, *op.whole):
            visit(value)
    for value in wanted:
        visit(value)
    return order


# -------------------------------------------------------------------------------------------- peak


def last_uses(operators: Sequence[Operator], keep: Iterable[Name]) -> list[set[Name]]:
    """Return for each operator the values that no later one reads."""
    free: list[set[Name]] = []
    alive = set(keep)
    for op in reversed(operators):
        gone = {v for v in (*op.reads, *op.makes) if v not in alive}
        free.append(gone)
        alive.update(gone)
    return free[::-1]


def peak(
    groups: Sequence[Group],
    sizes: Mapping[Name, int],
    inputs: Sequence[Name],
    slices: int,
    in_place: Mapping[Name, Name] | None = None,
) -> int:
    """Return the largest number of bytes alive at once.

    Views count as copies, and an operator's own scratch memory does not count, so this is an
    estimate.

    Args:
        groups: The groups in the order they run.
        sizes: Bytes of whole values.
        inputs: Values held throughout.
        slices: Number of slices.
        in_place: Maps a stored value to the input whose memory it takes.
    """
    held = sum(sizes[v] for v in inputs)
    highest = held
    place = in_place or {}
    for g in groups:
        for op in g.once:
            held += sum(sizes[v] for v in op.makes)
            highest = max(highest, held)
        held += sum(sizes[v] for v in g.stores if v not in place)
        alive: dict[Name, int] = {}
        for op, gone in zip(g.loop, last_uses(g.loop, g.stores), strict=True):
            alive.update({v: -(-sizes[v] // slices) for v in op.makes})
            highest = max(highest, held + sum(alive.values()))
            for value in gone:
                alive.pop(value, None)
    return highest
