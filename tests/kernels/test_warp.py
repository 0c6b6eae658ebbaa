"""Warped noise: exactly Gaussian, and it moves as commanded; bounds follow from sample sizes."""

from __future__ import annotations

import math

import pytest
import torch

from accel.kernels.warp import NoiseWarper, inverse_flow, warp_noise

SIZE = 128


def grid(size=SIZE):
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return torch.stack([x, y]).float() - (size - 1) / 2 - 0.13  # off the grid: no rounding ties


def constant(dx, dy=0.0, frames=1, size=SIZE):
    return torch.tensor([dx, dy]).view(1, 2, 1, 1).expand(frames, 2, size, size).contiguous()


def zoom(factor, frames=1, size=SIZE):
    return ((factor - 1) * grid(size)).expand(frames, 2, size, size).contiguous()


def turbulence(frames=1, size=SIZE, strength=6.0):
    g = torch.Generator().manual_seed(5)
    coarse = torch.randn(frames, 2, 6, 6, generator=g) * strength
    return torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic")


def correlation(a, b):
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt())


def neighbour_correlation(noise):
    return max(
        abs(correlation(noise[..., :, 1:], noise[..., :, :-1])),
        abs(correlation(noise[..., 1:, :], noise[..., :-1, :])),
    )


MOTIONS = {
    "pan": constant(1.7, -0.4, 12),
    "zoom in": zoom(1.03, 12),
    "zoom out": zoom(0.97, 12),
    "turbulence": turbulence(12),
}


def assert_white(noise, slack=1.0):
    """Unit variance and no neighbour correlation in [C, H, W], within 5 standard errors."""
    count = noise.numel()
    assert abs(float(noise.var()) - 1) < 5 * math.sqrt(2 / count) * slack
    assert neighbour_correlation(noise) < 5 / math.sqrt(count) * slack


@pytest.mark.parametrize("mode", ["dither", "round"])
@pytest.mark.parametrize("motion", MOTIONS)
def test_every_frame_is_white_noise(motion, mode):
    for frame in warp_noise(MOTIONS[motion], channels=2, seed=3, mode=mode):
        assert_white(frame)
        assert abs(correlation(frame[0], frame[1])) < 5 / SIZE


def test_whiteness_check_catches_interpolation():
    noise = torch.randn(1, 2, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    half = (
        torch.nn.functional.avg_pool2d(noise, 2, 1) * 2
    )  # what bilinear sampling at half pixels does
    with pytest.raises(AssertionError):
        assert_white(half[0])


def test_no_flow_is_a_copy_and_a_whole_pixel_pan_too():
    still = warp_noise(constant(0.0, 0.0, 3), channels=3, seed=1)
    assert all(torch.equal(still[0], frame) for frame in still)
    moved = warp_noise(constant(2.0, -1.0), channels=3, seed=1)
    assert torch.equal(moved[1][:, :-1, 2:], moved[0][:, 1:, :-2])


@pytest.mark.parametrize("speed", [0.1, 0.3, 0.45, 0.55, 0.75, 0.9])
def test_slow_motion_is_not_lost(speed):
    frames = 24
    noise = warp_noise(constant(speed, 0.0, frames), channels=1, seed=2)
    first, last = noise[0, 0], noise[-1, 0]
    match = [correlation(first[:, : SIZE - d], last[:, d:]) for d in range(frames + 1)]
    found = max(range(frames + 1), key=match.__getitem__)
    assert abs(found - frames * speed) <= 1.5 and match[found] > 0.95


def test_rounding_loses_slow_motion():
    noise = warp_noise(constant(0.3, 0.0, 24), channels=1, seed=2, mode="round")
    assert torch.equal(noise[0], noise[-1])


def test_zoom_round_trip_needs_a_true_inverse():
    grow, shrink = zoom(1.5)[0], zoom(1 / 1.5)[0]

    def round_trip(backward):
        warper = NoiseWarper(4, SIZE, SIZE, seed=4, mode="round")  # one grid there and back
        start = warper.noise.clone()
        warper.step(grow, backward)
        end = warper.step(shrink, None)
        inner = slice(SIZE // 2 - 16, SIZE // 2 + 16)
        return correlation(start[:, inner, inner], end[:, inner, inner])

    assert round_trip(None) > 0.97
    assert round_trip(-grow) < 0.6  # the released code's shortcut


def test_fixed_point_inverse():
    flow = zoom(1.2)[0]
    exact = zoom(1 / 1.2)[0]
    assert float((inverse_flow(flow) - exact).abs().max()) < 0.02


def test_density_is_conserved_when_nothing_leaves():
    warper = NoiseWarper(1, 32, 32, seed=0)
    flow = torch.zeros(2, 32, 32)
    flow[0, :, 10] = 1.0  # column 10 lands on column 11, and is refilled by expansion
    warper.step(flow, torch.zeros(2, 32, 32))
    assert float(warper._rho.sum()) == pytest.approx(32 * 32, rel=1e-6)


def test_huge_flow_gives_fresh_noise():
    noise = warp_noise(constant(1e9), channels=2, seed=0)
    assert_white(noise[1])
    assert abs(correlation(noise[0], noise[1])) < 5 / SIZE


def test_seed_decides_everything():
    flow = turbulence(3, 64)
    one, again = (warp_noise(flow, channels=2, seed=9) for _ in range(2))
    other = warp_noise(flow, channels=2, seed=10)
    assert torch.equal(one, again)
    assert abs(correlation(one, other)) < 5 / math.sqrt(one.numel())
    assert torch.equal(warp_noise(flow[:2], channels=2, seed=9), one[:3])


@pytest.mark.parametrize(
    ("flow", "options", "message"),
    [
        (torch.zeros(2, 8, 8), {}, r"\[F, 2, H, W\]"),
        (torch.zeros(1, 3, 8, 8), {}, r"\(1, 3, 8, 8\)"),
        (torch.full((1, 2, 8, 8), math.nan), {}, "128 NaN"),
        (torch.zeros(1, 2, 8, 8, dtype=torch.int64), {}, "int64"),
        (torch.zeros(1, 2, 8, 8), {"channels": 0}, "channels"),
        (torch.zeros(1, 2, 8, 8), {"mode": "nearest"}, "nearest"),
        (torch.zeros(1, 2, 8, 8), {"backward": torch.zeros(2, 2, 8, 8)}, "backward"),
    ],
)
def test_bad_input_is_named(flow, options, message):
    with pytest.raises(ValueError, match=message):
        warp_noise(flow, **{"channels": 1, "seed": 0, **options})
