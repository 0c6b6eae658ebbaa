"""The table of cards in the docs is what the simulation gives, for every built-in model."""

from __future__ import annotations

import re
import sys
from datetime import date
from pathlib import Path

import pytest

from accel import families
from accel.memory import cards
from accel.memory.pieces import Demand, Piece

sys.path.append(str(Path(__file__).resolve().parent / "bench"))

import card_table

GB = 10**9
PARTS = card_table.parts(card_table.table_of("cards.md", "cards")[1])


def test_every_built_in_model_is_in_the_table():
    assert set(card_table.SIZES) == set(families.models())
    assert list(PARTS) == list(card_table.SIZES), "run: make cards"


@pytest.mark.parametrize("name", PARTS)
def test_every_card_has_a_row(name):
    head, *lines = PARTS[name]
    assert date.fromisoformat(head.split(" |")[0][-10:]) and head.count("|") == 7
    sizes = [int(n) for line in lines for n in re.match(r"\| ([\d, ]+) GB ", line)[1].split(", ")]
    assert sizes == [card // GB for card in cards.CARDS]
    assert all(line.count("|") == 7 for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flux"])
@pytest.mark.proof
def test_cells_are_what_the_simulation_gives(name):
    today = PARTS[name][0].split(" |")[0][-10:]
    found = card_table.rows(name, card_table.SIZES[name], today)
    assert found == PARTS[name], f"run: python tests/bench/card_table.py {name}"


def test_docs_say_that_it_is_simulated():
    text = (card_table.DOCS / "cards.md").read_text()
    assert "**All of it is simulated, none of it measured**" in text
    assert "| simulated |" in text and "python tests/bench/card_table.py" in text


def needs(weights: int) -> Demand:
    """A model with a denoiser of so many GB, which needs 4 GB of activations, or 1 in 16 slices."""
    denoiser = Piece("denoiser", weights * GB, GB, 0, GB // 10)
    return Demand(
        (Piece("text", 2 * GB, GB, 0, GB // 10),), (denoiser,), Piece("vae", GB),
        {1: 4 * GB, 16: GB}, {"whole": 6 * GB}, {}, {"tiled (approximate)": GB},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("card", "whole", "model", "sequential", "ours", "eight"),
    [
        (8, "no", "no", "fits", "group offload", "model offload, int8 weights"),
        (24, "no", "fits", "fits", "model offload", "the same"),
        (48, "fits", "fits", "fits", "all resident", "the same"),
    ],
)
def test_verdicts_of_a_card(card, whole, model, sequential, ours, eight):
    cells = card_table.verdicts(needs(18), needs(5), card * GB)
    assert cells[:3] == [whole, model, sequential]
    assert cells[3].startswith(ours) and cells[4].startswith(eight)


def test_a_host_that_is_too_small_is_named():
    cells = card_table.verdicts(needs(70), needs(20), 80 * GB)
    assert cells[:3] == ["no", "no: host", "no: host"] and cells[3].startswith("one component")
