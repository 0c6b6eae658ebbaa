"""Flows from a job's motion, and the latents made from them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from accel.families.family import Geometry
from accel.pipelines.motion.flows import make_flow
from accel.pipelines.motion.latents import warped_latents

SIZE = {"frames": 5, "height": 32, "width": 48}


def test_camera_pan_and_its_inverse():
    forward, backward = make_flow({"camera": {"pan": [2, -1]}}, **SIZE)
    assert forward.shape == backward.shape == (4, 2, 32, 48)
    assert torch.equal(forward[:, 0], torch.full((4, 32, 48), 2.0))
    assert torch.equal(backward, -forward)


def test_zoom_and_roll_are_inverse_to_each_other():
    forward, backward = make_flow({"camera": {"pan": [0.5, 0.25], "zoom": 1.1, "roll": 5}}, **SIZE)
    x, y = 20, 11
    there = np.array([x, y]) + forward[0, :, y, x].numpy()
    # The backward flow is affine, so its value between pixels is the bilinear one.
    i, j = int(there[0]), int(there[1])
    a, b = there[0] - i, there[1] - j
    field = backward[0].double().numpy()
    back = (1 - b) * ((1 - a) * field[:, j, i] + a * field[:, j, i + 1]) + b * (
        (1 - a) * field[:, j + 1, i] + a * field[:, j + 1, i + 1]
    )
    np.testing.assert_allclose(there + back, [x, y], atol=1e-4)


def test_zoom_grows_about_the_center_and_roll_is_clockwise():
    grow, _ = make_flow({"camera": {"zoom": 1.1}}, **SIZE)
    assert grow[0, 0, 16, 47] > 2 and grow[0, 0, 16, 0] < -2
    turn, _ = make_flow({"camera": {"roll": 10}}, **SIZE)
    assert turn[0, 1, 16, 47] > 0 and turn[0, 0, 31, 24] < 0  # right edge down, bottom edge left


def test_dragged_polygon_moves_alone_and_takes_its_place_along():
    drag = {"polygon": [[4, 4], [15, 4], [15, 15], [4, 15]], "by": [16, 8]}
    forward, backward = make_flow({"drag": [drag]}, **SIZE)
    assert forward[0, :, 10, 10].tolist() == [4.0, 2.0]
    assert not forward[0, :, 25, 40].any()
    assert not forward[3, :, 5, 5].any() and forward[3, :, 15, 20].tolist() == [4.0, 2.0]
    assert backward[0, :, 12, 14].tolist() == [-4.0, -2.0]


def test_flow_file(tmp_path):
    flow = np.random.default_rng(0).normal(size=(4, 2, 32, 48)).astype(np.float32)
    np.save(tmp_path / "f.npy", flow)
    forward, backward = make_flow({"flow": str(tmp_path / "f.npy")}, **SIZE)
    assert torch.equal(forward, torch.from_numpy(flow)) and backward is None


@pytest.mark.parametrize(
    ("motion", "message"),
    [
        ({"drift": 1}, "drift"),
        ({}, "camera, drag, video or flow"),
        ({"camera": {"pan": [1]}}, "pan"),
        ({"camera": {"zom": 1.0}}, "did you mean 'zoom'"),
        ({"camera": {"zoom": 9}}, "9"),
        ({"camera": {"pan": [math.nan, 0]}}, "nan"),
        ({"drag": [{"polygon": [[0, 0], [1, 1]], "by": [1, 0]}]}, "3 corners"),
        ({"drag": 3}, "list"),
        ({"flow": "nowhere.npy"}, "nowhere"),
        ({"flow": "x", "camera": {}}, "alone"),
    ],
)
def test_bad_motion_is_named(motion, message):
    with pytest.raises(ValueError, match=message):
        make_flow(motion, **SIZE)


def test_flow_file_of_another_shape(tmp_path):
    np.save(tmp_path / "f.npy", np.zeros((3, 2, 32, 48)))
    with pytest.raises(ValueError, match=r"\(4, 2, 32, 48\)"):
        make_flow({"flow": str(tmp_path / "f.npy")}, **SIZE)


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.5, 1.0])
def test_latents_are_white_and_as_strong_as_asked(strength):
    flow = torch.zeros(8, 2, 256, 256)
    geometry = Geometry(16, 8, 4)
    latents = warped_latents(flow, geometry, seed=1, strength=strength)
    assert latents.shape == (1, 16, 3, 32, 32)
    n = latents[0, :, 0].numel()
    assert abs(float(latents[0, :, 0].var()) - 1) < 5 * math.sqrt(2 / n)
    mix = math.hypot(1 - strength, strength)
    expected = ((1 - strength) / mix) ** 2
    found = float((latents[0, :, 0] * latents[0, :, 2]).mean())
    assert found == pytest.approx(expected, abs=5 / math.sqrt(n))


def test_latents_move_with_the_flow():
    flow = torch.zeros(4, 2, 64, 64)
    flow[:, 0] = 2.0  # 8 pixels, one latent pixel, from latent frame 0 to 1
    latents = warped_latents(flow, Geometry(4, 8, 4), seed=1, strength=0.0)
    assert torch.allclose(latents[0, :, 1, :, 1:], latents[0, :, 0, :, :-1], atol=1e-5)
