"""Noise that follows a job's motion: what layers keep, what slow motion keeps, and its laws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d

from accel.families.family import Geometry
from accel.kernels.warp import NoiseWarper
from accel.pipelines.job import Job, JobError
from accel.pipelines.motion.flows import make_flow, open_motion
from accel.pipelines.motion.grid import Grid
from accel.pipelines.motion.latents import followed
from accel.pipelines.motion.noise_options import NoiseOptions
from accel.pipelines.motion.prepared import prepare

SIDE, SQUARE = 96, [[16, 24], [47, 24], [47, 63], [16, 63]]


def noise_of(motion: dict[str, Any], frames: int, scale: int = 1, channels: int = 16) -> Any:
    """First and last frame of the noise on the fine grid."""
    grid = Grid(SIDE, SIDE, scale)
    warper = NoiseWarper(channels, *grid.shape, seed=1)
    first = warper.noise.clone()
    moving = open_motion(motion, frames=frames, height=SIDE, width=SIDE)
    for forward, backward in moving.steps(grid, frames):
        both = (torch.from_numpy(flow).permute(2, 0, 1) for flow in (forward, backward))
        warper.advance(*both, out=torch.empty_like(first))
    return first, warper.noise


def alike(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize(("by", "steps"), [(24, 24), (24, 16), (30, 8), (24, 4), (24, 2)])
def test_a_dragged_layer_keeps_its_noise_and_uncovers_fresh(by, steps, scale):
    first, last = noise_of({"drag": [{"polygon": SQUARE, "by": [by, 0]}]}, steps + 1, scale)
    rows, lead = slice(26 * scale, 62 * scale), by * scale
    kept = first[:, rows, 18 * scale : 46 * scale]
    assert alike(kept, last[:, rows, 18 * scale + lead : 46 * scale + lead]) > 0.99
    ground = last[:, rows, 17 * scale : (14 + by) * scale]
    assert abs(alike(ground, first[:, rows, 17 * scale : (14 + by) * scale])) < 0.03
    assert abs(float(ground.var()) - 1) < 0.05
    across = alike(ground[..., 1:], ground[..., :-1])
    assert abs(across) < 0.03


def test_a_still_layer_in_a_moving_camera_keeps_its_noise():
    motion = {"camera": {"pan": [1.5, 0]}, "drag": [{"polygon": SQUARE, "by": [0, 0]}]}
    first, last = noise_of(motion, 17)
    assert torch.equal(first[:, 26:62, 18:46], last[:, 26:62, 18:46])


def test_a_layer_that_passes_behind_another_comes_out_with_fresh_noise():
    low = {"polygon": [[4, 40], [19, 40], [19, 55], [4, 55]], "by": [60, 0]}
    high = {"polygon": [[30, 30], [55, 30], [55, 69], [30, 69]], "by": [0, 0], "z": 1}
    first, last = noise_of({"drag": [low, high]}, 31)
    assert torch.equal(first[:, 32:68, 32:54], last[:, 32:68, 32:54])
    assert abs(alike(first[:, 42:54, 6:18], last[:, 42:54, 66:78])) < 0.06


@pytest.mark.parametrize("turn", [{"rotate": 90}, {"scale": 1.8}, {"scale": 0.5, "move": [20, 8]}])
def test_noise_under_any_layer_stays_white(turn):
    drag = {"polygon": SQUARE, "keys": [{"at": 1, **turn}]}
    _, last = noise_of({"camera": {"roll": 1}, "drag": [drag]}, 17, channels=64)
    n = last.numel()
    assert abs(float(last.mean())) < 5 / n**0.5 and abs(float(last.var()) - 1) < 5 * (2 / n) ** 0.5
    for shift in ((0, 1), (1, 0), (1, 1), (2, 0)):
        moved = last.roll(shift, (1, 2))[:, 2:, 2:]
        assert abs(float((moved * last[:, 2:, 2:]).mean())) < 5 / moved.numel() ** 0.5


def cells_of(first: torch.Tensor, shift: float, block: int) -> torch.Tensor:
    """Sums of ``first`` over the cells that a pan by ``shift`` samples brings to each cell."""
    total = torch.cat([torch.zeros(*first.shape[:2], 1), first.cumsum(-1)], -1)

    def until(x: float) -> torch.Tensor:
        low = int(np.floor(x))
        return total[..., low] * (low + 1 - x) + total[..., min(low + 1, first.shape[-1])] * (
            x - low
        )

    columns = [
        (until(a + block) - until(a)).view(first.shape[0], -1, block).sum(-1)
        for a in (j * block - shift for j in range(first.shape[-1] // block))
        if a >= 0
    ]
    return torch.stack(columns, -1)


def test_slow_motion_is_finer_than_a_pixel():
    for speed, frames in ((0.125, 25), (0.3, 9), (0.9, 25)):
        found = {}
        for scale in (1, 2, 4):
            block = 8 * scale
            first, last = noise_of({"camera": {"pan": [speed, 0]}}, frames, scale)
            exact = cells_of(first, speed * (frames - 1) * scale, block)
            pooled = avg_pool2d(last, block)[..., -exact.shape[-1] :]
            found[scale] = alike(exact, pooled)
        assert found[2] > 0.92 and found[4] > 0.95, found


def test_slow_zoom_keeps_more_with_finer_and_weighted_noise():
    """Zoomed in and out again, cells hold what they held."""
    keys = [{"at": 0.5, "zoom": 1.3}, {"at": 1, "zoom": 1.0}]
    kept = {}
    for version, spatial in ((1, 8), (2, 8)):
        moving = open_motion({"camera": {"keys": keys}}, frames=33, height=SIDE, width=SIDE)
        latents = followed(
            moving, Geometry(16, spatial, 1), (33, SIDE, SIDE), seed=1, strength=0.0,
            version=version,
        )[0]  # fmt: skip
        kept[version] = alike(latents[:, 0, 2:-2, 2:-2], latents[:, -1, 2:-2, 2:-2])
    assert kept[2] > kept[1] + 0.02 and kept[2] > 0.9, kept


@pytest.mark.parametrize("motion", [{"camera": {"zoom": 1.02}}, {"camera": {"zoom": 0.98}}])
def test_weighted_latents_are_white(motion):
    moving = open_motion(motion, frames=9, height=128, width=128)
    latents = followed(moving, Geometry(64, 8, 4), (9, 128, 128), seed=3, strength=0.0)[0, :, -1]
    n = latents.numel()
    assert abs(float(latents.var()) - 1) < 5 * (2 / n) ** 0.5
    assert abs(float((latents[..., 1:] * latents[..., :-1]).mean())) < 5 / n**0.5


@pytest.mark.parametrize("strength", [0.0, 0.2, 0.5, 1.0])
def test_latents_are_no_noise_that_a_sampler_draws(strength):
    """A pipeline's generator starts from the job's seed too, and stochastic samplers add noise."""
    moving = open_motion({"camera": {"pan": [1, 0]}}, frames=9, height=64, width=64)
    for seed in (0, 7):
        latents = followed(moving, Geometry(16, 8, 4), (9, 64, 64), seed=seed, strength=strength)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(4):
            drawn = torch.randn(latents.shape, generator=generator)
            frames_first = drawn.transpose(1, 2).reshape(latents.shape)
            for noise in (drawn, frames_first):
                assert abs(alike(latents, noise)) < 5 / latents.numel() ** 0.5


def test_the_first_version_gives_its_bytes():
    """One sample a pixel, equal weights, layers that mix, and one generator for both noises."""
    motion = {"drag": [{"polygon": SQUARE, "by": [24, 0]}], "version": 1}
    moving = open_motion(motion, frames=5, height=SIDE, width=SIDE)
    size = (5, SIDE, SIDE)
    found = followed(moving, Geometry(4, 8, 4), size, seed=2, strength=0.5, version=1)[0]
    warper = NoiseWarper(4, SIDE, SIDE, seed=2)
    forward, backward = make_flow(motion, frames=5, height=SIDE, width=SIDE)
    frames = [warper.noise.clone()]
    frames += [warper.step(forward[k], backward[k]).clone() for k in range(4)]
    pooled = torch.stack([avg_pool2d(frames[k], 8) * 8 for k in (0, 4)])
    fresh = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(2))
    mixed = (0.5 * pooled + 0.5 * fresh) / 0.5**0.5
    torch.testing.assert_close(found, mixed.transpose(0, 1), rtol=0, atol=1e-6)
    new = followed(moving, Geometry(4, 8, 4), size, seed=2, strength=0.5)[0]
    assert not torch.equal(new, found)


def test_noise_for_checkpoints_of_other_kinds(tmp_path):
    """Means of groups with their deviation taken out, rounded flow, and a file made elsewhere."""
    geometry, size = Geometry(16, 8, 4), (9, 64, 64)
    moving = open_motion({"camera": {"pan": [1, 0]}}, frames=9, height=64, width=64)
    blended = NoiseOptions(temporal="blend-norm")
    groups = [list(group) for group in blended.groups(49, geometry)]
    assert [k for g in groups for k in g] == list(range(49)) and {*map(len, groups)} == {3, 4}
    noise = followed(moving, geometry, size, seed=1, strength=0.0, options=blended)[0]
    assert noise.shape == (16, 3, 8, 8)
    torch.testing.assert_close(noise.std((-1, -2)), torch.ones(16, 3))
    frames = np.random.default_rng(0).normal(size=(9, 8, 8, 16)).astype(np.float16)
    np.save(tmp_path / "noises.npy", frames)
    job = Job("x", motion={"noise": str(tmp_path / "noises.npy")}, strength=0.0, frames=9,
              width=64, height=64)  # fmt: skip
    latents = prepare(job, geometry).latents(3)[0]
    kept = torch.from_numpy(frames[::4].astype(np.float32)).permute(3, 0, 1, 2)
    torch.testing.assert_close(latents, kept)
    np.save(tmp_path / "noises.npy", frames[:, :7])
    with pytest.raises(ValueError, match=r"needs \(9, 8, 8, 16\)"):
        prepare(job, geometry)
    np.save(tmp_path / "noises.npy", frames * 3)
    with pytest.raises(ValueError, match=r"deviation of 3.*noise has 1"):
        prepare(job, geometry)
    for bad, message in (
        ({"noise": "a.npy", "camera": {}}, "stands alone"),
        ({"noise": {"temporal": "blend"}, "camera": {}}, "did you mean|one of"),
        ({"noise": {"supersample": 0}, "camera": {}}, "from 1 to 16"),
    ):
        with pytest.raises(JobError, match=message):
            Job("x", motion=bad)


@pytest.mark.parametrize("rounding", ["dither", "round"])
def test_layers_keep_their_noise_however_flow_is_rounded(rounding):
    motion = {"drag": [{"polygon": SQUARE, "by": [28, 0]}], "noise": {"rounding": rounding}}
    moving = open_motion(motion, frames=15, height=SIDE, width=SIDE)
    warper = NoiseWarper(8, SIDE, SIDE, seed=1, mode=rounding)
    first = warper.noise.clone()
    for step in moving.steps(Grid(SIDE, SIDE), 15):
        both = (torch.from_numpy(flow).permute(2, 0, 1) for flow in step)
        warper.advance(*both, out=torch.empty_like(first))
    assert alike(first[:, 26:62, 18:46], warper.noise[:, 26:62, 46:74]) > 0.99


def test_two_frames_of_noise_are_in_memory_at_a_time(monkeypatch):
    made = []
    empty = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda t, **k: made.append(t.shape) or empty(t, **k))
    moving = open_motion({"camera": {"pan": [1, 0]}}, frames=33, height=64, width=64)
    followed(moving, Geometry(8, 8, 4), (33, 64, 64), seed=1, strength=0.0)
    assert made.count(torch.Size([8, 128, 128])) == 1  # beside the warper's own
