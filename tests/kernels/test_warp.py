"""Warped noise: exactly Gaussian, and it moves as commanded. What one frame does and what is said
of bad input; statistics over clips are in test_warp_laws.py.
"""

from __future__ import annotations

import math

import pytest
import torch
from helpers.warp_checks import assert_white, constant, correlation, rotation, turbulence, zoom

from accel.kernels.warp import NoiseWarper, inverse_flow, warp_noise

SIZE = 128


def test_no_flow_is_a_copy_of_noise_and_density():
    warper = NoiseWarper(3, 64, 64, seed=1)
    start = warper.noise.clone()
    warper.step(turbulence(1, 64)[0])
    density, noise = warper._rho.clone(), warper.noise.clone()
    warper.step(torch.zeros(2, 64, 64))
    assert torch.equal(warper.noise, noise) and torch.equal(warper._rho, density)
    assert not torch.equal(noise, start)


def test_whole_pixel_pan_is_a_copy_with_a_fresh_strip():
    moved = warp_noise(constant(2.0, -1.0), channels=64, seed=1)
    assert torch.equal(moved[1][:, :-1, 2:], moved[0][:, 1:, :-2])
    strip = moved[1][:, :, :2]
    for other in (moved[0][:, :, :2], moved[0][:, :, -2:], moved[1][:, :, 2:4]):
        assert abs(correlation(strip, other)) < 4 / math.sqrt(strip.numel())


def columns(targets: list[list[int]], size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Flows that send column i to the columns targets[i]: forward to the first one, the others by
    the backward flow. Columns that nobody names point out of the frame.
    """
    far = float(10 * size)
    forward, backward = torch.full((2, 2, size, size), far)
    for source, names in enumerate(targets):
        for number, target in enumerate(names):
            if number == 0:
                forward[:, :, source] = torch.tensor([target - source, 0.0])[:, None]
            backward[:, :, target] = torch.tensor([source - target, 0.0])[:, None]
    return forward, backward


@pytest.mark.parametrize("degree", [2, 3, 5])
def test_a_split_shares_its_source_equally(degree):
    """corr(child, parent) = 1 / sqrt(d), siblings independent, children sum to sqrt(d) parent."""
    warper = NoiseWarper(128, 64, 64, seed=3, mode="round")
    parent = warper.noise[:, :, 0].clone()
    children = warper.step(*columns([list(range(degree))]))[:, :, :degree]
    bound = 4 / math.sqrt(parent.numel())
    for i in range(degree):
        assert abs(correlation(children[..., i], parent) - degree**-0.5) < bound
        for j in range(i):
            assert abs(correlation(children[..., i], children[..., j])) < bound
    torch.testing.assert_close(children.sum(-1), math.sqrt(degree) * parent, atol=1e-5, rtol=1e-5)


def test_a_merge_weighs_by_density():
    """Column 0 splits in two; one half (density 1/2) merges with column 9 (density 1)."""
    warper = NoiseWarper(128, 64, 64, seed=3, mode="round")
    whole = warper.noise[:, :, 9].clone()
    warper.step(*columns([[0, 1], *[[]] * 8, [9]]))
    half = warper.noise[:, :, 1].clone()
    merged = warper.step(*columns([[], [5], *[[]] * 7, [5]]))[:, :, 5]
    bound = 4 / math.sqrt(merged.numel())
    assert abs(correlation(merged, whole) - math.sqrt(2 / 3)) < bound
    assert abs(correlation(merged, half) - math.sqrt(1 / 3)) < bound
    expected = (half * math.sqrt(0.5) + whole) / math.sqrt(1.5)
    torch.testing.assert_close(merged, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "tree",
    [[[[0, 1]], [[5], [5]]], [[[0, 1, 2]], [[0], [0], [2]], [[7], [], [7]]]],
    ids=["1-2-1", "1-3-2-1"],
)
def test_expansion_then_contraction_recovers_the_source(tree):
    warper = NoiseWarper(8, 64, 64, seed=3, mode="round")
    source = warper.noise[:, :, 0].clone()
    for targets in tree:
        last = warper.step(*columns(targets))
    torch.testing.assert_close(last[:, :, tree[-1][0][0]], source, atol=1e-5, rtol=0)


def test_zoom_round_trip_needs_a_true_inverse():
    grow, shrink = zoom(1.5)[0], zoom(1 / 1.5)[0]

    def round_trip(backward):
        warper = NoiseWarper(4, SIZE, SIZE, seed=4, mode="round")  # one grid there and back
        start = warper.noise.clone()
        warper.step(grow, backward)
        end = warper.step(shrink, None)
        inner = slice(SIZE // 2 - 16, SIZE // 2 + 16)
        return correlation(start[:, inner, inner], end[:, inner, inner])

    assert round_trip(zoom(1 / 1.5)[0]) > 0.999
    assert round_trip(None) > 0.97
    assert round_trip(-grow) < 0.6  # the released code's shortcut


def test_rotation_there_and_back():
    warper = NoiseWarper(4, SIZE, SIZE, seed=4, mode="round")
    start = warper.noise.clone()
    warper.step(rotation(0.1)[0], rotation(-0.1)[0])
    end = warper.step(rotation(-0.1)[0], rotation(0.1)[0])
    inner = slice(24, -24)
    assert correlation(start[:, inner, inner], end[:, inner, inner]) > 0.88


def test_fixed_point_inverse():
    flow = zoom(1.2)[0]
    exact = zoom(1 / 1.2)[0]
    assert float((inverse_flow(flow) - exact).abs().max()) < 0.02


def test_density_is_conserved_when_nothing_leaves():
    warper = NoiseWarper(1, 32, 32, seed=0)
    flow = torch.zeros(2, 32, 32)
    flow[0, :, 10] = 1.0  # column 10 lands on column 11, and is refilled by expansion
    for _ in range(5):
        warper.step(flow, torch.zeros(2, 32, 32))
        assert float(warper._rho.sum()) == pytest.approx(32 * 32, rel=1e-6)
        assert float(warper._rho.min()) > 0


def test_density_stays_finite_in_an_endless_zoom():
    warper = NoiseWarper(2, 64, 64, seed=0)
    for _ in range(60):
        warper.step(zoom(1.3, size=64)[0])
    assert float(warper._rho.min()) > 9e-7 and torch.isfinite(warper.noise).all()
    assert_white(warper.noise)


@pytest.mark.parametrize("speed", [1e9, 3e38, -3e38])
def test_huge_flow_gives_fresh_noise(speed):
    noise = warp_noise(constant(speed, speed), channels=2, seed=0)
    assert_white(noise[1])
    assert abs(correlation(noise[0], noise[1])) < 5 / SIZE


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 1), (3, 5)])
def test_tiny_frames(shape):
    flow = torch.linspace(-2, 2, 3 * 2 * shape[0] * shape[1]).view(3, 2, *shape)
    noise = warp_noise(flow, channels=2, seed=0)
    assert noise.shape == (4, 2, *shape) and torch.isfinite(noise).all()


def test_no_flow_at_all_is_one_frame():
    assert warp_noise(torch.zeros(0, 2, 4, 4), channels=3, seed=0).shape == (1, 3, 4, 4)


@pytest.mark.parametrize(
    ("flow", "options", "message"),
    [
        (torch.zeros(2, 8, 8), {}, r"\[F, 2, H, W\]"),
        (torch.zeros(1, 3, 8, 8), {}, r"\(1, 3, 8, 8\)"),
        (torch.full((1, 2, 8, 8), math.nan), {}, "128 NaN"),
        (torch.full((1, 2, 8, 8), math.inf), {}, "infinite"),
        (torch.zeros(1, 2, 8, 8, dtype=torch.int64), {}, "int64"),
        (torch.zeros(1, 2, 8, 8), {"channels": 0}, "channels"),
        (torch.zeros(1, 2, 8, 8), {"mode": "nearest"}, "nearest"),
        (torch.zeros(1, 2, 8, 8), {"impl": "cuda"}, "'cpu', 'gpu', 'reference'"),
        (torch.zeros(1, 2, 8, 8), {"backward": torch.zeros(2, 2, 8, 8)}, "backward"),
    ],
)
def test_bad_input_is_named(flow, options, message):
    with pytest.raises(ValueError, match=message):
        warp_noise(flow, **{"channels": 1, "seed": 0, **options})


def test_bad_step_is_named():
    warper = NoiseWarper(1, 8, 8, seed=0)
    with pytest.raises(ValueError, match=r"\[2, 8, 8\].*\(2, 8, 9\)"):
        warper.step(torch.zeros(2, 8, 9))
    with pytest.raises(ValueError, match="backward has 128 NaN"):
        warper.step(torch.zeros(2, 8, 8), torch.full((2, 8, 8), math.nan))
    assert warper.frame == 0
