"""Poisoned activations in a patched model: finite or as torch's, and named in the report."""

from __future__ import annotations

import pytest
import torch
from helpers.linear_kernels import ours
from helpers.rehash_pipe import Pipe

import accel
from accel.kernels.cpu.native import library

IMPLS = ["reference"] + ["cpu"] * (library().isa not in ("none", "scalar"))
PLACES = {  # where the poison comes in, and the site that meets it first
    "ffn.net.0": "blocks.1.ffn.net.0.proj",  # in one pass with its GELU
    "ffn.net.2": "blocks.1.ffn.net.2",
    "attn1.to_v": "blocks.1.attn1.to_v",  # whose rows attention mixes
}
CALLS = 4  # two steps, two branches


def loud(x):
    x[..., 3] = 1e4


def not_a_number(x):
    x[0, 5, 2] = float("nan")


def infinite(x):
    x[0, 7, 1], x[0, 9, 4] = float("inf"), -float("inf")


def zeros(x):
    x.zero_()


def zero_rows(x):
    x[:, ::2] = 0


def poisoned(pipe, place, poison):
    """Let ``poison`` change what the part at ``place`` of the last block is given."""

    def before(module, args):
        x = args[0].clone()
        poison(x)
        return (x, *args[1:])

    pipe.transformer.blocks[1].get_submodule(place).register_forward_pre_hook(before)


def outputs(pipe, impl, **options):
    """The plain and the patched result of a short run, and the report of the latter."""
    plain = pipe(steps=2)
    accel.patch(pipe, plan=ours(impl=impl, **options))
    out, report = pipe(steps=2), accel.report(pipe)
    accel.unpatch(pipe)
    return plain, out, report


def site(report, name):
    (found,) = [s for s in report.layers if s.name == name]
    return found


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("poison", [loud, zeros, zero_rows])
def test_finite_poison_gives_a_finite_result_near_torchs(impl, place, poison):
    pipe = Pipe("wan")
    poisoned(pipe, place, poison)
    plain, out, report = outputs(pipe, impl)
    assert out.isfinite().all() and (out - plain).abs().mean() < 0.02 * plain.abs().mean()
    assert sum(site(report, PLACES[place]).ran.values()) == CALLS and "not finite" not in str(
        report
    )


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("poison", [not_a_number, infinite])
def test_what_is_not_finite_is_as_torchs_and_named(impl, place, poison):
    pipe = Pipe("wan")
    poisoned(pipe, place, poison)
    plain, out, report = outputs(pipe, impl)
    assert not plain.isfinite().all()
    assert torch.equal(out.isfinite(), plain.isfinite())
    same = plain.isfinite()  # rows that the poison does not reach
    assert (out - plain)[same].abs().sum() <= 0.02 * plain[same].abs().sum()
    name, why = PLACES[place], "result not finite, nor is torch's"
    assert site(report, name).recomputed[why] >= 1
    lines = [line for line in str(report).splitlines() if why in line]
    assert any(name in line for line in lines), str(report)


def hidden():
    """A pipeline with a loud channel whose own weights are zero.

    All that is left of the other channels is their rounding.
    """
    pipe = Pipe("wan")
    poisoned(pipe, "ffn.net.2", loud)
    with torch.no_grad():
        pipe.transformer.blocks[1].ffn.net[2].weight[:, 3] = 0
    return pipe


@pytest.mark.parametrize("impl", IMPLS)
def test_a_loud_channel_that_hides_the_others_is_found_and_named(impl):
    plain, out, report = outputs(hidden(), impl)
    assert (out - plain).abs().mean() < 0.02 * plain.abs().mean()
    found = site(report, PLACES["ffn.net.2"])
    (why,) = found.recomputed
    assert why.startswith("int8 has error") and "over the limit of 0.1" in why and not found.ran
    assert why in str(report) and f"demoted: {why}" in found.kept


@pytest.mark.parametrize("impl", IMPLS)
def test_a_loud_channel_that_is_kept_hides_nothing(impl):
    plain, out, report = outputs(hidden(), impl, outliers=1)
    assert (out - plain).abs().mean() < 0.02 * plain.abs().mean()
    found = site(report, PLACES["ffn.net.2"])
    assert sum(found.ran.values()) == CALLS and not found.recomputed
