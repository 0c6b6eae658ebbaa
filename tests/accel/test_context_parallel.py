"""Attention split over two processes (gloo, CPU) with accel's backend, beside one process."""

from __future__ import annotations

import pytest
import torch
from helpers import parallel
from helpers.tensors import qkv

from accel.kernels.attention import attention

pytestmark = pytest.mark.proof  # two processes, each of which builds all models
FAMILIES = ("wan", "flux", "ltx", "qwen_image")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What both processes found; they run once for all tests of this file."""
    return parallel.found(tmp_path_factory.mktemp("parallel"))


@pytest.mark.parametrize("kind", parallel.DEGREES)
@pytest.mark.parametrize("name", FAMILIES)
def test_quantized_families_give_what_one_process_gives(name, kind, found) -> None:
    """Within 1e-3, and nearer to one process than that is to full precision: INT8 costs these
    models less than 1e-3 itself.
    """
    for rank in found:
        case = rank["families"][f"{name} {kind} accel"]
        int8 = case["one process to full precision"]
        assert int8 > 1e-4 and case["ran"]["int8 by cpu"] > 0 and not case["recomputed"]
        assert case["to one process"] < min(1e-3, int8)
        assert case["to full precision"] < 1.2 * int8


@pytest.mark.parametrize("name", ["wan", "ltx"])
def test_ulysses_changes_nothing_where_the_order_of_tokens_stays(name, found) -> None:
    """Flux and Qwen-Image have text and pictures in one sequence, interleaved by rank."""
    for rank in found:
        assert rank["families"][f"{name} ulysses accel"]["to one process"] < 1e-6


@pytest.mark.parametrize("kind", parallel.DEGREES)
@pytest.mark.parametrize("name", FAMILIES)
def test_at_full_precision_only_rounding_differs(name, kind, found) -> None:
    for rank in found:
        case = rank["families"][f"{name} {kind} accel_full"]
        assert case["to one process"] < 1e-6 and not case["ran"]


def test_every_part_of_a_ring_is_quantized(found) -> None:
    """Keys that another rank sent are plain tensors by then."""
    for rank in found:
        cases = rank["families"]
        assert cases["wan ring accel"]["ran"] == {"int8 by cpu": 4}
        assert cases["wan ulysses accel"]["ran"] == {"int8 by cpu": 2}
        reasons = [*cases["ltx ring accel"]["kept"]]
        assert reasons == ["6 keys, quantized attention pays from 128 on"]


@pytest.mark.parametrize("backend", ["accel", "accel_int6", "accel_int4"])
def test_a_ring_is_as_far_from_fp64_as_one_process(backend, found) -> None:
    """Not within 1e-3 of it: the mean that is taken off the keys before they are rounded is that of
    a rank's own, so they round to other numbers, and the results differ by about as much as each
    is off.
    """
    for rank in found:
        case = rank["errors"][f"ring {backend}"]
        assert case["two"] < 1.1 * case["one"]
        assert 1e-3 < case["between"] < 2**0.5 * case["one"]
        assert sum(case["ran"].values()) == 2


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_the_mean_of_its_keys_is_all_that_a_part_of_a_ring_rounds_by(precision) -> None:
    """With that of all keys it is one process again, if parts are whole key blocks (128), but for
    the few rows whose highest keys are taken out of a block after what they saw in earlier ones.
    Queries behind a part's own, which see all keys, make them count for the mean; its own see its
    keys.
    """
    tokens, more = 1024, 96
    q, k, v = qkv(tokens, tokens, 64)
    one = attention(q, k, v, precision=precision)

    def merged(*parts):
        (out, lse), (out2, lse2) = parts
        return out + torch.sigmoid(lse2 - lse)[..., None] * (out2 - out)

    def part(keys):
        seen = torch.zeros(tokens + more, tokens, dtype=torch.bool)
        seen[:tokens, keys] = seen[tokens:] = True
        longer = torch.cat([q, q[:, :, :more]], 2)
        given = {"precision": precision, "attn_mask": seen, "return_lse": True}
        return [x[:, :, :tokens] for x in attention(longer, k, v, **given)]

    def alone(keys):
        return attention(q, k[:, :, keys], v[:, :, keys], precision=precision, return_lse=True)

    halves = slice(None, tokens // 2), slice(tokens // 2, None)
    same, apart = (parallel.relative(merged(*map(how, halves)), one) for how in (part, alone))
    assert same < 2e-3 and apart > 5 * same


def test_merging_a_ring_by_log_sum_exp_costs_nothing_but_rounding(found) -> None:
    for rank in found:
        case = rank["errors"]["ring accel_full"]
        assert case["two"] < 1e-6 and case["between"] < 1e-6


@pytest.mark.parametrize("backend", ["accel", "accel_int6", "accel_int4", "accel_full"])
def test_ulysses_gives_equal_bits(backend, found) -> None:
    for rank in found:
        assert rank["errors"][f"ulysses {backend}"]["between"] == 0.0


@pytest.mark.parametrize("kind", parallel.DEGREES)
def test_a_mask_hides_the_keys_it_belongs_to(kind, found) -> None:
    for rank in found:
        cases = {name: x for name, x in rank["masks"].items() if name.startswith(kind)}
        assert len(cases) == 6
        for name, error in cases.items():
            assert error < (1e-6 if name.endswith("full") else 0.04), name


def test_what_cannot_be_split_is_refused(found) -> None:
    for rank in found:
        cases = rank["refusals"]
        assert "Causal attention is not yet supported" in cases["causal"]
        assert "needs gradients; use torch.no_grad(), ulysses_degree" in cases["gradients"]
        assert "has dropout" in cases["dropout"] and "needs gradients" in cases["one process"]
        for name, shape in (
            ("mask of odd length", (1, 1, 1, 77)),
            ("mask of all keys", (1, 1, 1, 640)),
            ("mask by query", (1, 1, 320, 320)),
        ):
            assert f"a mask {shape} in a ring of 2 ranks with 320 keys each" in cases[name]


def test_ulysses_has_the_gradients_of_one_process(found) -> None:
    for rank in found:
        assert rank["trained"]["error"] < 1e-5
        assert rank["trained"]["kept"] == {"needs gradients": 1}


@pytest.mark.parametrize("kind", parallel.DEGREES)
def test_a_graph_around_it_has_no_break(kind, found) -> None:
    for rank in found:
        case = rank["compiled"][kind]
        assert case["equal"] and case["ran"] == {"int8 by cpu": 2 if kind == "ring" else 1}


def test_a_patch_beside_ulysses_works_in_either_order(found) -> None:
    for rank in found:
        for order in ("patched first", "patched last"):
            error, report = rank["patched"][order]
            assert error < 1e-6 and "2 calls in INT8 by the CPU kernel" in report


def test_a_ring_beside_a_patch_is_the_backends_and_the_report_says_so(found) -> None:
    for rank in found:
        error, report, counts = rank["patched"]["ring"]
        assert error < 1e-3 and counts["ran"] == {"int8 by cpu": 4}
        assert "diffusers' backend 'accel' computes its attention, in a ring" in report
        assert rank["patched"]["refused"].startswith("ValueError: a ring on a patched model")
