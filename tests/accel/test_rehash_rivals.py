"""The models and rivals of the step rehash benchmarks, and how settings are chosen."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.rehash_pipe import STEPS, Pipe, counting

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "bench"))

import bench_rehash_models as bench  # noqa: E402
from rehash_caches import Contender, nothing  # noqa: E402
from rehash_models import MODELS, denoiser_of  # noqa: E402
from rehash_results import Result, Row  # noqa: E402
from rehash_rivals import Chebyshev, Kept, Transformation, skipping  # noqa: E402


def test_models_get_the_same_prompts_and_their_own_arguments():
    jobs = {name: model.jobs(3, 25, 9000, 5.0) for name, model in MODELS.items()}
    told = [[(job["prompt"], job["seed"]) for job in found] for found in jobs.values()]
    assert told[0] == told[1] == told[2] and len({job["seed"] for job in jobs["wan"]}) == 3
    assert jobs["dit"][0]["true_cfg_scale"] == jobs["unet"][0]["guidance_scale"] == 5.0
    assert jobs["wan"][0]["num_frames"] == 17 and "num_frames" not in jobs["unet"][0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dit", "unet"])
def test_small_models_run(name):
    model = MODELS[name]
    pipe = model.load()
    assert denoiser_of(pipe) is getattr(pipe, model.denoiser)
    generator = torch.Generator().manual_seed(0)
    (job,) = model.jobs(1, 4, 9000)
    del job["seed"]
    image = np.asarray(pipe(**job, generator=generator, output_type="np").images[0])
    assert image.shape == (32, 32, 3) and np.isfinite(image).all() and image.std() > 0.02


def test_chebyshev_is_exact_for_lines_and_near_for_parabolas():
    times = [1000.0, 900.0, 800.0, 700.0]
    for power, bound in ((1, 0.02), (2, 0.1)):
        values = [torch.tensor([(t / 1000) ** power]) for t in times]
        kept = Kept(times, [torch.zeros(1)] * 4, values)
        guess = Chebyshev(2, 0.5, penalty=1e-6).predict(kept, torch.zeros(1), 650.0)
        assert abs(float(guess) - 0.65**power) < bound * 0.65**power


def test_gaps_grow():
    policy = Chebyshev(1, 0.5)
    computed = [s for s in range(20) if policy.wants(s, torch.zeros(1), Kept())]
    assert computed == [0, 1, 2, 3, 4, 5, 6, 8, 10, 13, 16] or computed[-1] - computed[-2] > 1
    gaps = np.diff(computed)
    assert (np.diff(gaps) >= 0).all() and gaps[-1] > gaps[0]


def test_a_higher_threshold_computes_less():
    counts = []
    for threshold in (0.01, 0.5, 1e9):
        policy, kept, computed = Transformation(threshold), Kept(), 0
        for step in range(20):
            latents = torch.full((4,), 1.0 + 0.1 * step)
            if policy.wants(step, latents, kept):
                computed += 1
                kept.inputs.append(latents)
                kept.outputs.append(2 * latents)
        counts.append(computed)
    assert counts[0] == 20 and counts[0] > counts[1] > counts[2] == 4


@pytest.mark.parametrize("make", [lambda: Chebyshev(2, 0.5), lambda: Transformation(0.3)])
@pytest.mark.parametrize("family", ["wan", "sdxl"])
def test_a_rival_leaves_calls_out_and_goes(make, family):
    pipe = Pipe(family)
    plain = pipe()
    counter = counting(pipe)
    try:
        with skipping(make)(pipe):
            first, second = pipe(), pipe()
    finally:
        counter.remove()
    assert torch.equal(first, second) and not torch.equal(first, plain)
    assert 2 * 2 * 5 <= len(pipe.calls) < 2 * 2 * STEPS  # runs, branches, steps
    assert "forward" not in vars(denoiser_of(pipe))
    assert torch.equal(pipe(), plain)


def test_a_setting_is_chosen_by_what_it_leaves_out_and_keeps():
    def row(method, setting, computed, psnr, failed=""):
        return Row(Contender(method, setting, nothing), [Result(computed, psnr, failed=failed)])

    rows = [
        row("a", "slow", 1.5, 60.0),
        row("a", "good", 1.96, 40.0),
        row("a", "worse", 2.2, 35.0),
        row("b", "broken", 2.5, 50.0, "no"),
    ]
    assert {m: c.setting for m, c in bench.chosen(rows, 2.0, 6.0).items()} == {"a": "good"}
    assert bench.chosen(rows, 3.0, 6.0) == {}
    far = [*rows, row("c", "far", 2.0, 33.0)]
    assert set(bench.chosen(far, 2.0, 6.0)) == {"a"} and set(bench.chosen(far, 2.0, 9.0)) == {
        "a",
        "c",
    }
    lines = bench.table({1.5: [rows[0]], 2.0: [rows[1]]}, {"a": 1.8})
    assert lines[-1] == "| a | 60.0 (60.0) at 1.50× | 40.0 (40.0) at 1.96× | 1.80× |"
