"""Merge recordings at different numbers of tokens into one, with sizes as formulas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from accel.core.tree import leaves, tree_map
from accel.slicing.trace.record import Affine, Call, Trace, Underivable, Value


def merge(traces: Sequence[Trace], lengths: Sequence[int], steps: Sequence[int]) -> Trace:
    """Return one trace with formulas, from recordings at different lengths.

    Args:
        traces: One at ``lengths`` and, for each stream, one in which it is longer.
        lengths: Tokens of each stream in the first trace.
        steps: Additional tokens of each stream in its own trace.

    Raises:
        Underivable: Sizes or calls that do not follow from the lengths.
    """
    merger = _Merger(lengths, steps)
    first = traces[0]
    if len({len(t.values) for t in traces}) > 1:
        raise Underivable("its path depends on the number of tokens")
    values = [
        Value(merger.tree([t.values[i].dims for t in traces]), v.dtype, v.parameter)
        for i, v in enumerate(first.values)
    ]
    calls = merger.calls([t.calls for t in traces])
    return Trace(values, first.inputs, calls, first.result, tuple(lengths))


class _Merger:
    def __init__(self, lengths: Sequence[int], steps: Sequence[int]) -> None:
        self._lengths, self._steps = lengths, steps

    def tree(self, trees: Sequence[Any]) -> Any:
        """Merge trees leaf by leaf."""
        flat = [leaves(t) for t in trees]
        if len({len(f) for f in flat}) > 1:
            raise Underivable("its path depends on the number of tokens")
        merged = iter([self._leaf(leaf) for leaf in zip(*flat, strict=True)])
        return tree_map(lambda _: next(merged), trees[0])

    def _leaf(self, leaf: Sequence[Any]) -> Any:
        base, *others = leaf
        if all(isinstance(x, int) and not isinstance(x, bool) for x in leaf):
            if all(x == base for x in others):
                return base
            return self._affine(base, others)
        if all(type(x) is type(base) and (x is base or x == base) for x in others):
            return base
        if base is None or isinstance(base, (bool, int, float, str)):
            raise Underivable(f"the value {base!r} depends on the number of tokens")
        what = "layer" if isinstance(base, nn.Module) else "value"
        raise Underivable(
            f"a call gets a {what} ({type(base).__name__}) as an argument that cannot be compared"
        )

    def _affine(self, base: int, others: Sequence[int]) -> Affine:
        slopes = []
        for other, step in zip(others, self._steps, strict=True):
            if (other - base) % step:
                raise Underivable(f"the size {base} is no multiple of the number of tokens")
            slopes.append((other - base) // step)
        constant = base - sum(a * n for a, n in zip(slopes, self._lengths, strict=True))
        return Affine(constant, tuple(slopes))

    def calls(self, runs: Sequence[Sequence[Call]]) -> list[Call]:
        """Merge the same call of each run."""
        if len({len(run) for run in runs}) > 1:
            raise Underivable("its path depends on the number of tokens")
        return [self._call(same) for same in zip(*runs, strict=True)]

    def _call(self, same: Sequence[Call]) -> Call:
        first = same[0]
        if any((c.name, c.path) != (first.name, first.path) for c in same):
            raise Underivable("its path depends on the number of tokens")
        return Call(
            first.name,
            self.tree([c.args for c in same]),
            self.tree([c.kwargs for c in same]),
            self.tree([c.result for c in same]),
            first.function,
            first.path,
            self.calls([c.inside for c in same]),
            first.aliases,
            first.mutates,
            first.start,
            first.copies,
            first.container,
        )
