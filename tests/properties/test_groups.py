"""Operator groups of any chain: every output once, and nothing read before it is there."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from accel.slicing.program.groups import group, last_uses, peak
from accel.slicing.program.ir import TOKENS, Group, Name, Operator


@dataclass(frozen=True)
class Chain:
    """Operators in an order they can run in, with what is given and what is wanted."""

    operators: list[Operator]
    streams: list[Name]
    constants: list[Name]
    outputs: list[Name]


@st.composite
def chains(draw: st.DrawFn) -> Chain:
    streams, constants = ["x0", "x1"], ["w"]
    known = [*streams, *constants]
    operators = []
    for i in range(draw(st.integers(1, 9))):
        reads = draw(st.lists(st.sampled_from(known), min_size=1, max_size=3, unique=True))
        pointwise = draw(st.sampled_from([frozenset({TOKENS}), frozenset({TOKENS}), frozenset()]))
        whole = draw(st.lists(st.sampled_from(reads), max_size=2, unique=True)) if pointwise else []
        makes = [f"v{i}{c}" for c in "ab"[: draw(st.integers(1, 2))]]
        cheap = draw(st.booleans())
        operators.append(
            Operator(f"op{i}", tuple(reads), tuple(makes), pointwise, tuple(whole), cheap)
        )
        known += makes
    made = known[3:]
    outputs = draw(st.lists(st.sampled_from(made), min_size=1, max_size=2, unique=True))
    return Chain(operators, streams, constants, outputs)


def grouped(chain: Chain) -> list[Group]:
    return group(chain.operators, chain.streams, chain.outputs, TOKENS)


@given(chains())
def test_values_are_there_when_they_are_read(chain: Chain) -> None:
    """Inside a loop a value is a slice, made in this group; outside it is whole."""
    whole = {*chain.streams, *chain.constants}
    for g in grouped(chain):
        for op in g.once:
            assert set(op.reads) | set(op.whole) <= whole, op
            whole |= set(op.makes)
        sliced: set[Name] = set()
        for op in g.loop:
            for value in op.reads:
                assert value in whole or (value in sliced and value not in op.whole), (op, value)
            assert set(op.whole) <= whole, op
            sliced |= set(op.makes)
        assert set(g.stores) <= sliced
        whole |= set(g.stores)
    assert set(chain.outputs) <= whole


@given(chains())
def test_every_value_is_kept_once(chain: Chain) -> None:
    """By an operator on whole values, or by one group's loop; and no operator runs twice there."""
    groups = grouped(chain)
    kept = [v for g in groups for v in g.stores] + [
        v for g in groups for o in g.once for v in o.makes
    ]
    assert len(kept) == len(set(kept))
    for output in chain.outputs:
        assert kept.count(output) == 1
    for g in groups:
        assert len({op.name for op in g.loop}) == len(g.loop)
        assert all(TOKENS in op.pointwise for op in g.loop)


@given(chains())
def test_only_cheap_operators_run_in_several_groups_for_nothing_kept(chain: Chain) -> None:
    """The results of an expensive one that two groups need are stored by the first."""
    groups = grouped(chain)
    stored = {v for g in groups for v in g.stores}
    for op in chain.operators:
        where = [g for g in groups if op in g.loop]
        if len(where) > 1 and not op.cheap:
            assert set(op.makes) & stored, op


@given(chains(), st.integers(1, 16))
def test_more_slices_never_take_more(chain: Chain, slices: int) -> None:
    inputs = [*chain.streams, *chain.constants]
    values = [*inputs, *(v for op in chain.operators for v in op.makes)]
    sizes = {value: 64 * (1 + i % 3) for i, value in enumerate(values)}
    fewer, more = (peak(grouped(chain), sizes, inputs, n) for n in (slices, 2 * slices))
    assert sum(sizes[v] for v in inputs) <= more <= fewer


@given(chains())
def test_a_value_is_let_go_of_once_and_after_its_last_use(chain: Chain) -> None:
    free = last_uses(chain.operators, chain.outputs)
    gone: set[Name] = set()
    for op, now in zip(chain.operators, free, strict=True):
        assert not gone & {*op.reads, *op.makes}
        assert not gone & now
        gone |= now
    assert not gone & set(chain.outputs)
