"""Placement: which way is taken for which memory, what is said, and the weights of pieces."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from accel.config import RehashConfig
from accel.memory import cards
from accel.memory.decide import decide
from accel.memory.fit import Kept
from accel.memory.packed_layers import PackedLayers
from accel.memory.pieces import Demand, Piece, piece_of
from accel.memory.placed_needs import of_placed
from accel.memory.placement import NoWay, Room
from accel.memory.simulate import STREAMED, STRIPS
from accel.memory.ways import Way

GB = 10**9
ENCODER = Piece("text_encoder", 10 * GB, GB, 0, 2 * GB)
DENOISER = Piece("denoiser", 28 * GB, GB, 0, GB)
DEMAND = Demand(
    (ENCODER,),
    (DENOISER,),
    Piece("vae", GB),
    {1: 8 * GB, 4: 4 * GB, 16: 2 * GB},
    {"whole": 18 * GB, STRIPS: 6 * GB, STREAMED: 5 * GB},
    {"text_encoder": GB},
    {"tiled (approximate)": 2 * GB},
)


def room(device, host=100, shared=False):
    return Room(device * GB, host * GB, shared)


@pytest.mark.parametrize(
    ("memory", "way", "slices", "decode"),
    [
        (100, Way.RESIDENT, 1, "whole"),  # 39 + 18
        (57, Way.RESIDENT, 1, "whole"),
        (56, Way.RESIDENT, 16, STRIPS),
        (44, Way.RESIDENT, 16, STREAMED),
        (43, Way.ENCODER_FIRST, 16, STRIPS),  # 29 + 6
        (35, Way.ENCODER_FIRST, 16, STRIPS),
        (33, Way.MODEL, 4, "whole"),
        (20, Way.GROUP, 1, "whole"),  # 2 blocks + 1 + 8
        (7, Way.GROUP, 16, STRIPS),
    ],
)
def test_the_cheapest_way_that_fits_is_taken(memory, way, slices, decode):
    found = decide(DEMAND, room(memory)).required()
    assert (found.way, found.slices, found.decode) == (way, slices, decode)
    assert found.peak <= memory * GB and not found.why_not


def test_every_cheaper_way_says_what_it_lacks():
    decision = decide(DEMAND, room(20))
    told = {row.way: row.why_not for row in decision.table}
    assert list(told) == [way for way in Way if way is not Way.SEQUENTIAL]  # in order of cost
    assert told[Way.RESIDENT] == "encode needs 37.25 GiB, 18.63 GiB is free"
    assert told[Way.ENCODER_FIRST].startswith("denoise needs 28.87 GiB")
    text = str(decision)
    assert text.count("taken") == 1 and "costs more" in text
    assert "moves 26.08 GiB to the device each denoiser call" in text


@pytest.mark.parametrize("memory", [100, 44, 35, 33, 20, 9, 7])
def test_a_placed_pipeline_needs_what_its_way_takes_and_more_with_a_plan(memory):
    free = replace(room(memory, 10), held=GB)
    taken = decide(DEMAND, free).required()
    needs = of_placed(DEMAND, taken, free, Kept({"output": GB}, 2), PackedLayers())
    phases = needs.phases(taken.slices)
    assert phases["denoise"] == taken.device["denoise"] + GB  # the process held as much before
    assert phases["encode"] == taken.device["encode"] + GB
    if taken.decode in ("whole", STREAMED):
        assert phases["decode"] == taken.device["decode"] + GB
    assert needs.phases(1, RehashConfig())["denoise"] == needs.denoise[1] + 2 * GB
    assert needs.tiled is not None and needs.tiled < needs.decode["strips"]


def test_less_memory_never_takes_a_cheaper_way():
    ways = [decide(DEMAND, room(n)).chosen for n in range(100, 5, -1)]
    ranks = [[*Way].index(row.way) for row in ways if row is not None]
    assert all(a <= b for a, b in pairwise(ranks)) and len(set(ranks)) == 4


@pytest.mark.parametrize(
    ("host", "way", "pinned"),
    [(100, Way.GROUP, True), (67, Way.GROUP, True), (66, Way.GROUP, False), (38, Way.DISK, False)],
)
def test_the_host_must_hold_what_waits_there(host, way, pinned):
    found = decide(DEMAND, room(20, host)).required()
    assert (found.way, found.pinned) == (way, pinned)


def test_a_small_host_reads_components_from_disk():
    assert decide(DEMAND, room(33, 10)).required().way is Way.TURNS


def test_without_an_accelerator_nothing_waits_in_the_host():
    ways = [row.way for row in decide(DEMAND, room(20, 20, True)).table]
    assert ways == [Way.RESIDENT, Way.ENCODER_FIRST, Way.TURNS, Way.DISK]


def test_blocks_stay_where_there_is_room_for_them():
    tight, wide = (decide(DEMAND, room(n, 10), offload="disk").required() for n in (9, 30))
    assert (tight.blocks, wide.blocks) == (5, 19)
    for row, n in ((tight, 9), (wide, 30)):
        assert row.peak <= n * GB
    assert "reads 21.42 GiB" in tight.cost  # 23 of 28 GB


def test_what_does_not_fit_at_all_says_what_helps():
    decision = decide(DEMAND, room(5, 5))
    assert decision.chosen is None
    with pytest.raises(NoWay, match=r"decode needs at least 5.59 GiB, 4.66 GiB is free.*tiling"):
        decision.required()


def test_a_host_that_is_too_small_is_what_is_told():
    assert (
        "0.93 GiB in host, 0.00 GiB is free; what helps: more host memory"
        in decide(DEMAND, room(9, 0), offload="disk").way_out
    )


def test_what_is_asked_for_is_the_only_way():
    assert decide(DEMAND, room(100), offload="group").required().way is Way.GROUP
    assert decide(DEMAND, room(100, 10), offload="model").chosen is None
    same = decide(DEMAND, room(100, 100, True), offload="model").required()
    assert same.way is Way.RESIDENT  # without an accelerator it means auto


@pytest.mark.parametrize(
    ("memory", "shared", "name"),
    [
        (57, False, "all resident"),
        (31, False, "model offload"),
        (25, False, "all resident, int8 weights"),  # 20 + 2: no weight moves at a denoiser call
        (18, False, "model offload, int8 weights"),
        (7, False, "group offload"),
        (4, False, "blocks from disk"),
        (25, True, "all resident, int8 weights"),
        (18, True, "blocks from disk"),
    ],
)
def test_allowed_weights_come_before_what_moves_at_each_call(memory, shared, name):
    eight = replace(
        DEMAND,
        encoders=(Piece("text_encoder", 5 * GB, GB // 2, 0, GB),),
        denoisers=(Piece("denoiser", 14 * GB, GB // 2, 0, GB // 2),),
        decode={"whole": 3 * GB},
    )
    plain = replace(DEMAND, decode={"whole": 3 * GB})
    found = decide(plain, room(memory, shared=shared), allowed={"int8": eight})
    row = found.required()
    assert row.name == name and row.peak <= memory * GB
    assert ("change the result" in row.cost) == (row.weights == "int8") == ("int8" in name)
    assert row.to_dict()["weights"] == (row.weights or None)
    assert not decide(plain, room(memory, shared=shared)).required().weights
    first = next(r for r in found.table if not r.why_not)
    assert first is row


def test_ways_that_ran_out_are_passed_over():
    first = decide(DEMAND, room(100)).required()
    second = decide(DEMAND, room(100), skip=1)
    assert first.way is Way.RESIDENT and second.required().way is Way.ENCODER_FIRST
    assert second.table[0].why_not == "ran out of memory when it was tried"


def test_pieces_count_shared_weights_once_and_quantize_linear_layers():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(10, 8)
            self.same = nn.Embedding(10, 8)
            self.same.weight = self.embed.weight
            self.blocks = nn.ModuleList([nn.Linear(8, 8, bias=False)])

    module = Model().to(torch.bfloat16)
    plain = piece_of("m", module, 160 + 3 * 128)  # stands for three blocks
    assert (plain.weights, plain.block, plain.rest) == (160 + 3 * 128, 128, 160)
    eight = piece_of("m", module, 160 + 3 * 128, "int8")
    assert (eight.weights, eight.block, eight.rest) == (160 + 3 * 64, 64, 160)


def test_stock_diffusers_stands_beside_in_the_table():
    found = cards.stock(DEMAND)
    whole, model, _ = found.values()
    assert whole["decode"] == 41 * GB and model == {
        "encode": 11 * GB,
        "denoise": 36 * GB,
        "decode": 3 * GB,  # in tiles
    }
    text = cards.text(cards.by_card(DEMAND, (24 * GB,), 64 * GB), DEMAND, 64 * GB)
    assert "24 GB  group offload" in text and "enable_model_cpu_offload" in text
