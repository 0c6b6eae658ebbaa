"""The model of how errors show in a video: found again from runs that follow it, and no worse than
its prior where runs say nothing.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from accel.calibration.output_error import MAX_GROUPS, gains, groups, output_errors, sampled_steps
from accel.calibration.sensitivity import fit, probes

SITES, STEPS = 6, 10
NAMES = ("full", "int8", "int4")


def plans(count, seed=0):
    """Squared errors [R, S, N] of probing plans."""
    size = np.random.default_rng(seed).uniform(0.5, 2, (SITES, STEPS))
    unit = {"full": 0.0, "int8": 1e-4, "int4": 1e-2}
    return np.array([
        np.vectorize(unit.get, otypes=[float])(choice) * size
        for choice in probes([NAMES] * SITES, STEPS, count)
    ])  # fmt: skip


def decibels(errors, site, step):
    return -10 * np.log10((site[:, None] * step * errors).sum((1, 2)))


def test_weights_are_found_again():
    site, step = np.array([1.0, 1.2, 0.9, 1.1, 0.8, 1.0]), np.exp(np.linspace(1, -1, STEPS))
    errors = plans(80)
    found = fit(errors, decibels(errors, site, step), [0] * 80)
    assert found.step.mean() == pytest.approx(1)
    assert np.corrcoef(np.log(found.step), np.log(step))[0, 1] > 0.99
    guess = decibels(errors, found.site, found.step)
    assert np.abs(guess - decibels(errors, site, step)).max() < 1.0 and found.spread < 1.0


def test_noisy_runs_of_jobs_that_differ_predict_new_plans():
    rng = np.random.default_rng(1)
    site, step = np.exp(rng.normal(0, 0.3, SITES)), np.exp(np.linspace(1, -1, STEPS))
    errors, jobs = plans(64), np.arange(24) % 8
    clean, level = decibels(errors, site, step), rng.normal(0, 4, 8)
    found = fit(errors[:24], clean[:24] + level[jobs] + rng.normal(0, 2, 24), jobs)
    guess = decibels(errors[24:], found.site, found.step)
    ranks = [np.argsort(np.argsort(x)) for x in (guess, clean[24:])]
    assert np.corrcoef(*ranks)[0, 1] > 0.95 and 1.5 < found.spread < 8


def test_a_job_that_is_easy_does_not_shift_the_others():
    errors = plans(24)
    clean, jobs = decibels(errors, np.ones(SITES), np.ones(STEPS)), np.arange(24) % 2
    found = fit(errors, clean + np.array([0, 6])[jobs], jobs)
    off = decibels(errors, found.site, found.step) - clean
    assert off.mean() == pytest.approx(3, abs=0.5) and off.std() < 0.5


def test_without_any_error_there_is_nothing_to_fit():
    with pytest.raises(ValueError, match="no run with an error"):
        fit(np.zeros((3, 2, 4)), [80.0] * 3, [0] * 3)


@pytest.mark.parametrize(("sites", "steps"), [(12, 20), (1, 1), (3, 2), (1, 4)])
def test_probes_mix_precisions_in_at_most_three_phases(sites, steps):
    found = probes([NAMES] * sites, steps, 30)
    assert len(found) == 30 and all(c.shape == (sites, steps) for c in found)
    assert {p for c in found for p in c.ravel()} == set(NAMES)
    assert max((c[:, 1:] != c[:, :-1]).any(0).sum() for c in found) <= 2
    assert all(
        (a == b).all() for a, b in zip(found, probes([NAMES] * sites, steps, 30), strict=True)
    )


def test_groups_are_neighbors_of_one_kind():
    sites = [f"blocks.{i}.attn{k}" for i in range(20) for k in (1, 2)]
    found = groups(sites)
    assert sorted(s for g in found for s in g) == sorted(sites) and len(found) == MAX_GROUPS
    assert all(len({s[-1] for s in g}) == 1 for g in found)
    assert found[0] == ("blocks.0.attn1", "blocks.1.attn1")
    assert ("blocks.19.attn1",) in found and ("blocks.19.attn2",) in found
    assert sampled_steps(20) == {0, 5, 10, 14, 19} and sampled_steps(2) == {0, 1}


class Denoiser(torch.nn.Module):
    """Two sites whose errors come out 2 and 3 times as large."""

    low: tuple[str, ...] | None = None

    def forward(self, x):
        low = self.low or ()
        return (x + 2.0 * ("a" in low) + 3.0 * ("b" in low),)


def test_the_effect_on_the_output_is_measured():
    module, steps = Denoiser(), iter((0, 0, 1, 2))

    def where(m):
        step = next(steps)
        return None if step == 1 else (step, ("a", "b"))

    def only(group):
        module.low = group

    with output_errors({"module": module}, where, only) as found:
        outputs = [module(torch.zeros(2, 2))[0] for _ in range(4)]
    assert all((o == 0).all() for o in outputs) and module.low is None
    assert found == {(("a",), 0): 8.0, (("b",), 0): 18.0, (("a",), 2): 4.0, (("b",), 2): 9.0}
    assert not module._forward_hooks
    gain = gains(found, lambda site, step: {0: 2.0, 2: 4.0}[step], ("a", "b", "c"), 3)
    np.testing.assert_allclose(gain[0], [4.0, 2.0, 1.0])
    np.testing.assert_allclose(gain[2], np.exp(np.log(gain[:2, [0, 2]]).mean()))


def test_a_call_that_fails_leaves_nothing_behind():
    module = Denoiser()

    def only(group):
        module.low = group
        if group:
            raise RuntimeError("out of memory")

    with (
        pytest.raises(RuntimeError, match="out of memory"),
        output_errors({"module": module}, lambda m: (0, ("a",)), only),
    ):
        module(torch.zeros(1))
    assert module.low is None and not module._forward_hooks
