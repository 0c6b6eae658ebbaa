"""Statistics of warped clips, with negative controls: methods that are known to be wrong must fail
the same checks.
"""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from helpers.warp_checks import (
    assert_white,
    constant,
    correlation,
    grid,
    ks_p_value,
    lag,
    moran,
    pooled,
    rotation,
    turbulence,
    zoom,
)
from torch.nn.functional import grid_sample

from accel.kernels.warp import NoiseWarper, warp_noise

SIZE = 256
MOTIONS = {
    "pan": constant(1.7, -0.4, 29, SIZE),
    "zoom in": zoom(1.03, 29, SIZE),
    "zoom out": zoom(1 / 1.03, 29, SIZE),
    "rotation": rotation(0.05, 29, SIZE),
    "turbulence": turbulence(29, SIZE),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("motion", "mode"), [*((name, "dither") for name in MOTIONS), ("turbulence", "round")]
)
def test_every_frame_is_white_noise(motion, mode):
    noise = warp_noise(MOTIONS[motion], channels=2, seed=3, mode=mode)
    bound = 5 / math.sqrt(2 * SIZE * SIZE)
    for frame in noise:
        assert_white(frame)
    for frame in noise[::7]:
        assert abs(correlation(frame[0], frame[1])) < 5 / SIZE
        lags = [lag(frame, dx, dy) for dy in range(4) for dx in range(-3, 4) if (dy, dx) > (0, 0)]
        assert max(map(abs, lags)) < bound
    p = [ks_p_value(frame) for frame in noise[::7]]
    assert min(p) > 1e-3 and statistics.median(p) > 0.05


def test_an_ensemble_is_white_at_every_pixel():
    """Errors that averages over a frame hide; the channels are the ensemble."""
    samples, size = 1600, 48
    flow = torch.cat([zoom(1.15, 1, size), turbulence(1, size, 3.0), zoom(0.9, 1, size)])
    for noise in warp_noise(flow, channels=samples, seed=11)[1:]:
        assert float((noise.var(0) - 1).abs().max()) < 5 * math.sqrt(2 / samples) + 0.01
        beside = (noise[..., 1:] * noise[..., :-1]).mean(0)
        below = (noise[:, 1:] * noise[:, :-1]).mean(0)
        for covariance in (beside, below):
            assert float(covariance.abs().max()) < 5 / math.sqrt(samples) + 0.005
            assert abs(float(covariance.mean())) < 4 / math.sqrt(samples * covariance.numel())


@pytest.mark.parametrize("speed", [0.1, 0.3, 0.45, 0.55, 0.75, 0.9])
def test_slow_motion_is_not_lost(speed):
    frames = 48
    noise = warp_noise(constant(speed, 0.0, frames), channels=1, seed=2)
    first, last = noise[0, 0], noise[-1, 0]
    match = [correlation(first[:, : 128 - d], last[:, d:]) for d in range(frames + 1)]
    found = max(range(frames + 1), key=match.__getitem__)
    assert abs(found - frames * speed) <= 1 and match[found] > 0.95


def test_rounding_loses_slow_motion_and_hurries_fast():
    slow = warp_noise(constant(0.3, 0.0, 48), channels=1, seed=2, mode="round")
    assert torch.equal(slow[0], slow[-1])
    fast = warp_noise(constant(0.55, 0.0, 48), channels=1, seed=2, mode="round")
    assert torch.equal(fast[-1, :, :, 48:], fast[0, :, :, :-48])  # 26.4 pixels are true


def resample(noise, where, mode):
    """``noise [C, H, W]`` at pixel positions ``where [2, H, W]`` from the center."""
    size = torch.tensor([noise.shape[2] - 1, noise.shape[1] - 1]).view(2, 1, 1) / 2
    return grid_sample(
        noise[None], (where / size).permute(1, 2, 0)[None], mode=mode, align_corners=True
    )[0]


CLIPS = {
    "pan 1/3": (constant(1 / 3, 0.0, 48, SIZE), 0.95),
    "zoom in": (zoom(1.003, 48, SIZE), 0.75),
    "zoom out": (zoom(1 / 1.003, 48, SIZE), 0.75),
    "rotation": (rotation(0.003, 48, SIZE), 0.75),
}


@pytest.mark.slow
@pytest.mark.parametrize("clip", CLIPS)
def test_latents_follow_the_exact_motion_over_a_clip(clip):
    """The last latent against the first frame's noise moved in one go by the whole motion."""
    flow, floor = CLIPS[clip]
    noise = warp_noise(flow, channels=4, seed=6)
    points = grid(SIZE) + 0.13
    back = {
        "pan 1/3": points - torch.tensor([16.0, 0.0]).view(2, 1, 1),
        "zoom in": points / 1.003**48,
        "zoom out": points * 1.003**48,
        "rotation": points + rotation(-0.003 * 48, 1, SIZE)[0],
    }[clip]
    ideal = resample(noise[0], back, "nearest")
    inner = slice(5, -5)
    found = correlation(pooled(ideal)[:, inner, inner], pooled(noise[-1])[:, inner, inner])
    assert found > floor


@pytest.mark.parametrize(
    ("name", "wrong", "least"),
    [("bilinear", "bilinear", 0.15), ("bicubic", "bicubic", 0.1), ("nearest", "nearest", 0.1)],
)
def test_interpolated_noise_fails_the_check(name, wrong, least):
    noise = torch.randn(2, SIZE, SIZE)
    points = grid(SIZE) / 1.5
    moved = resample(noise, points, wrong)
    assert moran(moved) > least
    with pytest.raises(AssertionError):
        assert_white(moved)
    assert abs(moran(warp_noise(zoom(1.5, 1, SIZE), channels=2, seed=0)[1])) < 0.01


def test_separate_splits_of_forward_and_backward_edges_fail_the_check():
    """One source, one forward and one backward edge: a joint split is independent, two splits of
    one edge each are copies.
    """
    q = torch.randn(4096)
    z = torch.randn(2, 4096)
    joint = q / math.sqrt(2) + z - z.mean(0)
    assert abs(correlation(joint[0], joint[1])) < 5 / 64
    apart = [q + z[k] - z[k] for k in range(2)]
    assert correlation(apart[0], apart[1]) > 0.99


def test_seed_decides_everything():
    flow = turbulence(3, 64)
    one, again = (warp_noise(flow, channels=2, seed=9) for _ in range(2))
    other = warp_noise(flow, channels=2, seed=10)
    assert torch.equal(one, again)
    assert abs(correlation(one, other)) < 5 / math.sqrt(one.numel())


def test_streaming_is_the_batch_and_the_past_does_not_know_the_future():
    flow = turbulence(4, 64)
    batch = warp_noise(flow, channels=3, seed=9)
    assert torch.equal(warp_noise(flow[:2], channels=3, seed=9), batch[:3])
    warper = NoiseWarper(3, 64, 64, seed=9)
    assert torch.equal(warper.noise, batch[0])
    assert all(torch.equal(warper.step(flow[k]), batch[k + 1]) for k in range(4))


def test_channels_do_not_depend_on_each_other_nor_far_pixels_on_the_flow():
    flow = turbulence(2, 64)
    many = warp_noise(flow, channels=9, seed=9)
    assert torch.equal(warp_noise(flow, channels=2, seed=9), many[:, :2])
    changed = flow.clone()
    changed[:, :, :8, :8] += 3.0  # smooth flow of a few pixels: its effect stays near
    moved = warp_noise(changed, channels=9, seed=9)
    assert torch.equal(moved[..., 40:, 40:], many[..., 40:, 40:])
    assert not torch.equal(moved, many)
