"""Quantized attention in sliced blocks: keys and values are packed once, with the same result."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from helpers.families import FAMILIES, MORE

import accel
from accel import AttentionConfig, Plan, SlicingConfig
from accel.kernels.cpu.native import library
from accel.slicing.program import run as running

SLICES = 8


def forward(family, config):
    """Output and report of a sliced, quantized denoiser."""
    module, inputs = FAMILIES[family]() if family in FAMILIES else MORE[family]()
    plan = Plan("t", config, SlicingConfig(SLICES, min_tokens=1))
    with accel.patched(module, plan=plan) as handle, torch.no_grad():
        return module(**inputs, return_dict=False)[0], handle.report()


@pytest.fixture
def counts(monkeypatch):
    """Calls of the native functions by name."""
    lib, counted = library().lib, {}

    def count(name):
        function = getattr(lib, f"accel_attention{name}")
        counted[name] = 0

        def call(*arguments):
            counted[name] += 1
            return function(*arguments)

        monkeypatch.setattr(lib, f"accel_attention{name}", call)

    for name in ("", "_pack", "_packed"):
        count(name)
    return counted


def int8(**options):
    return AttentionConfig("int8", impl="cpu", **options)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["wan", "flux", "hunyuanvideo", "animatediff"])
def test_sliced_blocks_pack_once(family, counts, monkeypatch):
    alive = library().lib.accel_attention_alive
    before = alive()
    shared, report = forward(family, int8())
    assert alive() == before
    sites = [site for site in report.sites if site.ran]
    calls = sum(sum(site.ran.values()) for site in sites)
    assert counts["_packed"] + counts[""] == calls
    assert counts["_packed"] == SLICES * counts["_pack"] > 0
    # HunyuanVideo refines its text outside the blocks; some of AnimateDiff's modules attend within
    # samples, of which each slice has its own.
    assert bool(counts[""]) == (family in ("hunyuanvideo", "animatediff"))

    monkeypatch.setattr(running, "shared_keys", nullcontext)
    alone, _ = forward(family, int8())
    assert torch.equal(shared, alone) and counts[""] >= calls


def test_the_check_and_the_rescue_use_the_float_keys(monkeypatch):
    demoted = int8(max_error=1e-9)
    shared, report = forward("wan", demoted)
    assert all("over the limit" in next(iter(s.recomputed)) for s in report.sites if s.name)
    monkeypatch.setattr(running, "shared_keys", nullcontext)
    alone, again = forward("wan", demoted)
    assert torch.equal(shared, alone)
    assert [s.error for s in report.sites] == [s.error for s in again.sites]


def test_the_report_counts_all_packed_heads():
    module, inputs = FAMILIES["wan"]()
    sizes, threads = [], torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # which has enough to do with one head at a time
        for slicing in (None, SlicingConfig(SLICES, min_tokens=1)):
            with accel.patched(module, plan=Plan("t", int8(), slicing)) as handle, torch.no_grad():
                module(**inputs)
                sizes.append({s.name: s.scratch_bytes for s in handle.report().sites if s.ran})
    finally:
        torch.set_num_threads(threads)
    head = 128 * (12 + 16)  # a block of keys with 12 channels, of which values take 16
    assert len(sizes[0]) == 4
    assert all(head < sizes[1][name] - sizes[0][name] < 2 * head for name in sizes[0])
