"""Schedules of step rehash, cuts of a length, and sizes in bytes, for any numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel.core.cuts import cuts, rows
from accel.core.units import GIB, gib, parse_bytes
from accel.rehash.schedule import (
    FEW,
    Rate,
    budget,
    forced,
    head,
    lead,
    similar_keys,
    similar_keys_of_count,
    stretch,
    weights,
)

lengths = st.integers(1, 120)


@given(lengths, st.floats(1, 5))
def test_a_budget_is_what_was_asked_or_what_is_forced(steps: int, speedup: float) -> None:
    count = budget(steps, speedup)
    assert len(forced(steps)) <= count <= steps
    assert count in (len(forced(steps)), round(steps / speedup))
    assert {0, steps - 1} <= forced(steps) <= set(range(steps))
    assert steps > FEW or len(forced(steps)) == steps
    assert head(steps) >= steps / 5


@given(st.data(), st.integers(FEW + 1, 60), st.integers(FEW + 1, 120))
def test_a_stretched_schedule_keeps_its_share(
    data: st.DataObject, measured: int, steps: int
) -> None:
    keys = data.draw(st.sets(st.integers(0, measured - 1)))
    found, wanted = stretch(sorted(keys), measured, steps), forced(measured) | keys
    assert forced(steps) <= found <= set(range(steps))
    expected = max(len(forced(steps)), round(len(wanted) * steps / measured))
    assert len(found) == expected
    assert stretch(sorted(keys), measured, measured) == wanted


@st.composite
def similarities(draw: st.DrawFn) -> list[list[float]]:
    steps = draw(st.integers(1, 14))
    rows_ = st.lists(st.floats(-1, 1), min_size=steps, max_size=steps)
    table = draw(st.lists(rows_, min_size=steps, max_size=steps))
    for i, row in enumerate(table):
        row[i] = 1.0
    return table


@given(similarities(), st.floats(-1, 1))
def test_every_reused_step_is_like_its_anchor(table: list[list[float]], gamma: float) -> None:
    keys = similar_keys(table, gamma)
    anchor = 0
    assert {0, len(table) - 1} <= keys <= set(range(len(table)))
    for i in range(1, len(table) - 1):
        assert (i in keys) == (table[i][anchor] < gamma)
        anchor = i if i in keys else anchor


@given(similarities(), st.integers(1, 14))
def test_never_more_keys_than_asked_beside_the_forced(table: list[list[float]], count: int) -> None:
    found = similar_keys_of_count(table, count)
    assert forced(len(table)) <= found
    assert len(found) <= max(count, len(forced(len(table))))


@given(st.data(), st.integers(FEW + 1, 60), st.floats(1, 5), st.sampled_from([0, 1]))
def test_the_rule_picks_exactly_as_many_as_asked(
    data: st.DataObject, steps: int, speedup: float, order: int
) -> None:
    """Whatever errors it is told, also useless ones; its state can be saved at any step."""
    count = budget(steps, speedup)
    rate, known = Rate(steps, count, order), []
    errors = st.floats(0, 10) | st.sampled_from([math.inf, math.nan])
    for step in range(steps):
        if data.draw(st.integers(0, 9)) == 0:
            saved, rate = rate.to_dict(), Rate(steps, count, order)
            rate.restore(saved)
        if not rate.key(step):
            assert lead(steps, count) <= step < steps - 1
            continue
        if len(known) > order:
            rate.observe(step, data.draw(errors), known[: order + 1], data.draw(st.floats(0, 1)))
        known.insert(0, step)
    assert len(known) == count and set(known) >= {*range(lead(steps, count)), steps - 1}


@pytest.mark.parametrize("error", [5e-324, 0.0, math.inf, math.nan])
def test_an_error_that_says_nothing_leaves_the_gap_even(error: float) -> None:
    """A product too small for a float was once taken the logarithm of."""
    rate, silent = Rate(20, 10, 0), Rate(20, 10, 0)
    for step in range(4):
        assert rate.key(step) and silent.key(step)
    rate.observe(3, error, [1], 0.5)
    assert rate.next == silent.next


@given(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3), st.floats(-10, 10), st.floats(-10, 10))
def test_weights_draw_the_line_through_both_values(
    a: float, b: float, slope: float, at: float
) -> None:
    found = weights([a, b], at)
    assert math.isclose(sum(found), 1.0, abs_tol=1e-6 * max(map(abs, found)))
    if abs(a - b) > 1e-3:
        line = sum(w * (slope * t + 1.0) for w, t in zip(found, (a, b), strict=True))
        scale = max(abs(w * (slope * t + 1.0)) for w, t in zip(found, (a, b), strict=True))
        assert math.isclose(line, slope * at + 1.0, rel_tol=1e-6, abs_tol=1e-9 * max(1.0, scale))


@given(st.integers(0, 10_000), st.integers(1, 64))
def test_cuts_are_nearly_equal_and_larger_first(length: int, slices: int) -> None:
    found = cuts(length, slices)
    assert len(found) == slices and sum(found) == length
    assert max(found) - min(found) <= 1 and found == sorted(found, reverse=True)


@given(st.integers(1, 500), st.integers(1, 32), st.integers(0, 8))
def test_strips_cover_every_row_once(height: int, strips: int, halo: int) -> None:
    found = rows(height, strips, halo)
    assert [row for start, stop, *_ in found for row in range(start, stop)] == list(range(height))
    for start, stop, low, high in found:
        assert low == max(0, start - halo) and high == min(height, stop + halo)


UNITS = {"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
         "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}  # fmt: skip


@given(
    st.integers(0, 10**6), st.sampled_from(sorted(UNITS)), st.sampled_from(["", " "]), st.booleans()
)
def test_sizes_are_read_as_they_are_written(n: int, unit: str, space: str, upper: bool) -> None:
    n += 0 if unit else 2**20  # fewer bytes than that are a unit that was forgotten
    text = f" {n}{space}{unit.upper() if upper else unit} "
    assert parse_bytes(text) == int(n * UNITS[unit])
    assert parse_bytes(n) == n


@given(st.integers(0, 2**45))
def test_a_size_that_is_shown_can_be_read(size: int) -> None:
    assert abs(parse_bytes(gib(size, 3)) - size) <= GIB * 5.001e-4


@given(st.text(max_size=8).filter(lambda text: not any(c.isdigit() for c in text)))
def test_what_is_no_size_is_named(text: str) -> None:
    if text.strip().lower() in ("inf", "nan"):
        return
    with pytest.raises(ValueError, match="memory must look like '8GiB'"):
        parse_bytes(text)
