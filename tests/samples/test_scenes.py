"""What tokens show: distances, motion, mirrors, and the head that is asked for them."""

from __future__ import annotations

import numpy as np
import pytest
import scenes
import torch
from clips import Layer, Path, render, sample_layers
from tiny_model import build_transformer


def pictured(x: float, velocity: tuple[float, float]) -> list[Layer]:
    """A circle of radius 12 at height 30 on a still ground."""
    still = Path((32.0, 32.0), (0.0, 0.0), 0.0, 0.0)
    return [
        Layer(still, "green", "cloudy", None, 0.0, (0.1, 0.2, 0.3)),
        Layer(
            Path((x, 30.0), velocity, 0.0, 0.0), "red", "cloudy", "circle", 12.0, (0.4, 0.5, 0.6)
        ),
    ]


def parts(layers: list[Layer]) -> list[torch.Tensor]:
    made = torch.from_numpy(scenes.scene_targets(layers)).float()
    assert made.shape == (5, 8, 8, scenes.WIDTH)
    return list(made.split(scenes.PARTS, -1))


def test_a_moving_circle_is_described_exactly():
    fine, kinds, color, ground, motion = parts(pictured(24.0, (1.0, 0.0)))
    y, x = (np.mgrid[0:32, 0:32] + 0.5) * 2 - 0.5
    for k, time in enumerate((0.0, 2.5, 6.5, 10.5, 14.5)):
        wanted = np.clip((np.hypot(x - 24.0 - time, y - 30.0) - 12.0) / scenes.REACH, -1, 1)
        plane = fine[k].view(8, 8, 4, 4).permute(0, 2, 1, 3).reshape(32, 32)
        np.testing.assert_allclose(plane, wanted, atol=1e-3)
    assert (kinds == torch.tensor([1.0, 0, 0, 0])).all()
    torch.testing.assert_close(color[2, 3, 4], torch.tensor([0.86, 0.14, 0.14]), atol=1e-3, rtol=0)
    torch.testing.assert_close(ground[0, 0, 0], torch.tensor([0.15, 0.7, 0.25]), atol=1e-3, rtol=0)
    assert motion[0, 3, 2].tolist() == [1, 0] and motion[0, 7, 7].tolist() == [0, 0]


def test_motion_is_that_of_the_flow():
    for seed in range(5):
        layers, caption = sample_layers(np.random.default_rng(seed))
        motion = parts(layers)[-1]
        clip = render(layers, caption)
        flow = (clip.forward[6] - clip.backward[5]) / 2  # of frame 6, to half a frame before 6.5
        near = torch.from_numpy(flow[:, 3::8, 3::8]).permute(1, 2, 0)
        close = (motion[2] - near).norm(dim=-1) < 0.15
        assert close.float().mean() > 0.85  # the rest lies where a shape ends


def test_mirrored_targets_are_those_of_the_mirrored_clip():
    there = torch.cat(parts(pictured(20.0, (1.5, -0.5))), -1)[None]
    back = torch.cat(parts(pictured(43.0, (-1.5, -0.5))), -1)[None]
    torch.testing.assert_close(scenes.mirror_scenes(there), back, atol=2e-3, rtol=0)


def test_what_is_near_a_shape():
    made = torch.cat(parts(pictured(31.5, (0.0, 0.0))), -1)[None]
    near = scenes.near_outline(made)
    assert near.shape == (1, 1, 5, 16, 16) and set(near.unique().tolist()) == {0.0, 1.0}
    y, x = np.mgrid[0:16, 0:16] * 4 + 1.5
    radius = np.hypot(x - 31.5, y - 30.0)
    assert (near[0, 0, 0].numpy()[radius < 13] == 1).all()
    assert (near[0, 0, 0].numpy()[radius > 18] == 0).all()


def test_the_head_asks_one_block_and_those_before_it():
    torch.manual_seed(0)
    made = torch.randn(3, 5, 8, 8, scenes.WIDTH)
    transformer = build_transformer()
    head = scenes.SceneHead(transformer, made)
    x, text = torch.randn(3, 12, 5, 16, 16), torch.zeros(3, 4, 128)
    transformer(x, timestep=torch.full((3,), 500.0), encoder_hidden_states=text)
    with torch.no_grad():
        head.net[-1].weight.zero_()
        head.net[-1].bias.zero_()
    loss = head.loss(made)
    assert float(loss.detach()) == pytest.approx(1.0, abs=0.01)  # the mean explains nothing
    transformer(x, timestep=torch.full((3,), 500.0), encoder_hidden_states=text)
    with torch.no_grad():
        head.net[-1].weight.normal_()
    head.loss(made).backward()
    touched = [block.ffn.net[2].weight.grad is not None for block in transformer.blocks]
    assert touched == [True] * (scenes.BLOCK + 1) + [False] * (5 - scenes.BLOCK)


def test_single_frames_are_not_asked_for_motion():
    made = torch.cat(parts(pictured(24.0, (1.0, 0.0))), -1)[None]
    transformer = build_transformer()
    head = scenes.SceneHead(transformer, torch.randn(3, 5, 8, 8, scenes.WIDTH))
    first = made[:, :1]
    moving = first.clone()
    moving[..., -2:] += 5.0
    colored = first.clone()
    colored[..., -5:-2] += 5.0
    losses = []
    for wanted in (first, moving, colored):
        transformer(
            torch.zeros(1, 12, 1, 16, 16),
            timestep=torch.full((1,), 500.0),
            encoder_hidden_states=torch.zeros(1, 4, 128),
        )
        losses.append(float(head.loss(wanted).detach()))
    assert losses[0] == losses[1] < losses[2] - 1
