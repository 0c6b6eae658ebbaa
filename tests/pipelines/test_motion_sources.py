"""Where flows come from: keyframed layers, a camera over a depth map, a driving video, files."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from accel.cli import main
from accel.core.optical_flow import OUT, along, estimate
from accel.pipelines.motion import camera as camera_motion
from accel.pipelines.motion.flow_pictures import GRAY, arrows, color_wheel
from accel.pipelines.motion.flows import make_flow
from accel.pipelines.motion.layers import Layer
from accel.pipelines.motion.scene import Depth, fill_gaps
from accel.pipelines.motion.strength import make_strength
from accel.pipelines.video import read_video, write_video

SIZE = {"frames": 9, "height": 48, "width": 64}
SQUARE = [[20, 16], [36, 16], [36, 32], [20, 32]]


def test_keyframes_are_reached_in_their_time_and_way():
    keys = [{"at": 0.5, "move": [8, 0], "easing": "in"}, {"at": 1, "scale": 4.0, "rotate": 90}]
    layer = Layer(SQUARE, keys=keys)
    for t, move, scale, angle in ((0, 0, 1, 0), (0.25, 2, 1, 0), (0.5, 8, 1, 0), (0.75, 4, 2, 45)):
        matrix, shift = layer.pose(t)
        assert shift[0] == pytest.approx(move)
        assert math.sqrt(np.linalg.det(matrix)) == pytest.approx(scale)
        assert math.degrees(math.atan2(matrix[1, 0], matrix[0, 0])) == pytest.approx(angle)
    there = layer.displacement(np.array([36.0, 24.0]), 0.0, 1.0)
    np.testing.assert_allclose(there, [28 - 36, 56 - 24], atol=1e-9)  # right goes down, 4 x 8


def test_flow_of_a_layer_leads_back():
    drag = {"polygon": SQUARE, "keys": [{"at": 1, "move": [10, 4], "rotate": 40, "scale": 1.5}]}
    forward, backward = make_flow({"drag": [drag]}, **SIZE)
    start = np.array([28.0, 24.0])
    for k in range(8):
        x, y = np.rint(start).astype(int)
        there = start + forward[k, :, y, x].numpy()
        x, y = np.rint(there).astype(int)
        np.testing.assert_allclose(there + backward[k, :, y, x].numpy(), start, atol=0.3)
        start = there
    np.testing.assert_allclose(start, [38, 28], atol=1.0)


def test_order_of_layers_is_z_then_list():
    low, high = {"polygon": SQUARE, "by": [8, 0]}, {"polygon": SQUARE, "by": [0, 8]}
    assert make_flow({"drag": [low, high]}, **SIZE)[0][0, :, 24, 28].tolist() == [0, 1]
    first, _ = make_flow({"drag": [{**low, "z": 1}, high]}, **SIZE)
    assert first[0, :, 24, 28].tolist() == [1, 0]


def test_dolly_on_a_plane_is_a_zoom():
    forward, _ = make_flow({"camera": {"dolly": 0.05}}, **SIZE)
    exact, _ = make_flow({"camera": {"zoom": 1 / 0.95}}, **SIZE)
    np.testing.assert_allclose(forward[0], exact[0], atol=1e-5)


def test_orbit_moves_the_near_against_the_far(tmp_path):
    depth = np.full((48, 64), 2.0)
    depth[16:32, 24:40] = 1.0
    np.save(tmp_path / "d.npy", depth)
    camera = {"orbit": [1, 0], "depth": str(tmp_path / "d.npy")}
    forward, backward = make_flow({"camera": camera}, **SIZE)
    near, far = forward[0, 0, 24, 32], forward[0, 0, 4, 32]
    assert near < -0.5 and abs(far) < 0.05  # the pivot lies in the far plane
    assert torch.isfinite(forward).all() and torch.isfinite(backward).all()
    assert abs(backward[0, 0, 24, 31] + near) < 0.1


def test_camera_that_runs_into_the_scene_is_named():
    with pytest.raises(ValueError, match=r"frame \d.*less dolly"):
        make_flow({"camera": {"dolly": 0.2}}, **SIZE)


def test_camera_keys_are_poses_of_the_whole_clip():
    keys = [{"at": 0.5, "pan": [8, 0]}, {"at": 1, "zoom": 2.0, "easing": "in"}]
    forward, backward = make_flow({"camera": {"keys": keys}}, **SIZE)
    np.testing.assert_allclose(forward[:4, 0], 2.0, atol=1e-5)
    place = np.array([40.0, 20.0])
    for k in range(8):  # the flow is affine, so its value between pixels is the bilinear one
        x, y = np.floor(place).astype(int)
        a, b = place - [x, y]
        field = forward[k].double().numpy()
        top = (1 - a) * field[:, y, x] + a * field[:, y, x + 1]
        place = (
            place + (1 - b) * top + b * ((1 - a) * field[:, y + 1, x] + a * field[:, y + 1, x + 1])
        )
    np.testing.assert_allclose(place, [31.5 + 2 * 8.5, 23.5 - 2 * 3.5], atol=1e-3)
    assert backward is not None
    for camera, message in (
        ({"keys": keys, "pan": [1, 0]}, "either pan per frame or keys"),
        ({"keys": [{"at": 0.5}, {"at": 0.5}]}, "rising"),
        ({"keys": [{"at": 0.5, "depth": "x"}]}, "depth"),
        ({"keys": 3}, "list"),
    ):
        with pytest.raises(ValueError, match=message):
            make_flow({"camera": camera}, **SIZE)


@pytest.mark.parametrize(
    "camera", [{"orbit": [3, -1], "dolly": 0.01}, {"orbit": [0, 4], "roll": 2}]
)
def test_a_plane_moves_as_its_points_do_over_a_flat_depth_map(camera, tmp_path):
    np.save(tmp_path / "d.npy", np.ones((48, 64)))
    exact = make_flow({"camera": camera}, **SIZE)
    projected = make_flow({"camera": {**camera, "depth": str(tmp_path / "d.npy")}}, **SIZE)
    for one, other in zip(exact, projected, strict=True):
        inner = (one - other)[:, :, 14:34, 18:46]
        assert float(inner.abs().max()) < 0.25  # of the nearest point, which is half a pixel off


def test_a_scene_has_no_back(tmp_path):
    np.save(tmp_path / "d.npy", np.ones((48, 64)))
    for depth in ({}, {"depth": str(tmp_path / "d.npy")}):
        with pytest.raises(ValueError, match=r"at frame \d .*from behind.*less orbit"):
            make_flow({"camera": {"orbit": [30, 0], **depth}}, **SIZE)


def test_an_orbit_takes_as_many_renderings_as_frames(tmp_path, monkeypatch):
    np.save(tmp_path / "d.npy", np.ones((48, 64)))
    seen = []
    monkeypatch.setattr(camera_motion, "splat", lambda *a: seen.append(1) or np.zeros((48, 64, 2)))
    make_flow(
        {"camera": {"orbit": [0.1, 0], "depth": str(tmp_path / "d.npy")}},
        frames=33,
        height=48,
        width=64,
    )
    assert len(seen) == 2 * 32
    make_flow({"camera": {"orbit": [0.1, 0]}}, frames=33, height=48, width=64)
    assert len(seen) == 2 * 32


def test_depth_is_what_it_is_said_to_be(tmp_path, caplog):
    far = np.full((48, 64), 4.0, np.float32)
    far[16:32, 24:40] = 2.0
    np.save(tmp_path / "depth.npy", far)
    np.save(tmp_path / "disparity.npy", 1 / far)
    Image.fromarray((far * 1000).astype(np.uint16)).save(tmp_path / "mm.png")
    wanted = Depth(str(tmp_path / "depth.npy")).distances(48, 64)
    for name, kind in (("disparity.npy", "disparity"), ("disparity.npy", "inverse")):
        found = Depth(str(tmp_path / name), kind).distances(48, 64)
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
    with caplog.at_level("INFO", logger="accel"):
        found = Depth.parse({"file": str(tmp_path / "mm.png"), "kind": "depth", "scale": 0.001})
        np.testing.assert_allclose(found.distances(48, 64), wanted, rtol=1e-3)
    assert "read as depth; distances from 2 to 4" in caplog.text
    with pytest.raises(ValueError, match="say kind: depth"):
        Depth(str(tmp_path / "mm.png")).distances(48, 64)
    with pytest.raises(ValueError, match=r"0\.25 to 0\.5|2 to 4"):
        Depth(str(tmp_path / "depth.npy"), "near").distances(48, 64)
    with pytest.raises(ValueError, match="did you mean 'disparity'"):
        Depth("x", "disparty")


def test_gaps_are_filled_from_around():
    values = np.zeros((5, 7, 1))
    known = np.zeros((5, 7), bool)
    values[:, 0], known[:, 0], values[0, 6], known[0, 6] = 2.0, True, 4.0, True
    filled = fill_gaps(values, known)
    assert (filled[:, 0] == 2).all() and filled[0, 6] == 4 and filled.min() == 2


def texture(height=160, width=200):
    rng = np.random.default_rng(0)
    return cv2.GaussianBlur(rng.uniform(0, 255, (height, width, 3)).astype(np.float32), (0, 0), 2)


def clip(step=(1, 0), frames=9, image=None):
    image = texture() if image is None else image
    image = (image - image.min()) / (image.max() - image.min()) * 255
    rows = [
        np.roll(image, (k * step[1], k * step[0]), (0, 1))[40:136, 40:168] for k in range(frames)
    ]
    return np.stack(rows).round().astype(np.uint8)


@pytest.mark.slow
def test_flow_of_a_driving_video(tmp_path):
    write_video(tmp_path / "d.mp4", clip((2, 0)), fps=8)
    forward, backward = make_flow({"video": str(tmp_path / "d.mp4")}, **SIZE)  # half its size
    inner = forward[:, :, 8:-8, 8:-8]
    assert abs(float(inner[:, 0].median()) - 1) < 0.1 and abs(float(inner[:, 1].median())) < 0.1
    assert abs(float(backward[:, 0, 8:-8, 8:-8].median()) + 1) < 0.1


def test_what_is_covered_leaves_the_picture():
    still, moving = clip((0, 0), 2), clip((0, 0), 2, texture()[::-1])
    still[0, 30:60, 30:60], still[1, 30:60, 42:72] = (moving[0, 30:60, 30:60],) * 2
    forward, backward, cuts = estimate(still)
    lost, found = forward[0, ..., 0] == OUT, backward[0, ..., 0] == OUT
    assert not cuts
    assert lost[35:55, 62:70].mean() > 0.5 and found[35:55, 32:40].mean() > 0.5
    assert lost[:, 90:].mean() < 0.05


@pytest.mark.slow
def test_scene_cuts_are_found_and_named(tmp_path):
    both = np.concatenate([clip((1, 0), 5), 255 - clip((1, 0), 4, texture()[::-1])])
    write_video(tmp_path / "c.mp4", both, fps=8)
    with pytest.raises(ValueError, match=r"c\.mp4 has scene cuts before frame 5.*cuts: fresh"):
        make_flow({"video": {"file": str(tmp_path / "c.mp4")}}, **SIZE)
    forward, _ = make_flow({"video": {"file": str(tmp_path / "c.mp4"), "cuts": "fresh"}}, **SIZE)
    assert (forward[4] == OUT).all() and (forward[3] != OUT).any()


@pytest.mark.slow
def test_a_camera_films_a_video(tmp_path):
    write_video(tmp_path / "d.mp4", clip((2, 0)), fps=8)
    video = {"video": str(tmp_path / "d.mp4")}
    alone, _ = make_flow(video, **SIZE)
    still, _ = make_flow({**video, "camera": {}}, **SIZE)
    inner = (slice(None), slice(None), slice(8, -8), slice(8, -8))
    np.testing.assert_allclose(alone[inner], still[inner], atol=1e-3)
    both, back = make_flow({**video, "camera": {"pan": [0, 1]}}, **SIZE)
    assert abs(float(both[inner][:, 0].median()) - 1) < 0.1
    assert float((both - alone)[inner][:, 1].median()) == pytest.approx(1, abs=0.05)
    assert float(back[inner][:, 1].median()) == pytest.approx(-1, abs=0.1)
    zoomed, _ = make_flow(
        {**video, "camera": {"keys": [{"at": 0.0, "zoom": 2.0}, {"at": 1, "zoom": 2.0}]}}, **SIZE
    )
    assert float(zoomed[inner][:, 0].median()) == pytest.approx(2, abs=0.2)


@pytest.mark.slow
def test_frames_between_those_that_are_used_are_looked_at(tmp_path):
    """Seven pixels a used frame are found as seven times one."""
    write_video(tmp_path / "d.mp4", clip((2, 0), 57), fps=8)
    forward, backward = make_flow({"video": str(tmp_path / "d.mp4")}, **SIZE)
    inner = (slice(None), 0, slice(8, -8), slice(12, -12))
    assert abs(float(forward[inner].median()) - 7) < 0.3
    assert abs(float(backward[inner].median()) + 7) < 0.3


def test_flows_are_followed_one_after_the_other():
    first, second = np.zeros((2, 8, 16, 2), np.float32)
    first[..., 0], second[..., 0] = 2.0, np.arange(16)
    found = along(first, second)
    np.testing.assert_allclose(found[:, :13, 0], np.broadcast_to(2 + np.arange(13) + 2, (8, 13)))
    first[2], second[:, 9] = OUT, OUT
    gone = along(first, second)[..., 0] == OUT
    assert gone[2].all() and gone[:, 7].all() and gone.sum() == 16 + 7


def write_flo(path, flow):
    head = np.array([202021.25], "<f4").tobytes() + np.array(flow.shape[2:0:-1], "<i4").tobytes()
    path.write_bytes(head + flow.transpose(1, 2, 0).astype("<f4").tobytes())


def test_flo_files(tmp_path):
    flows = np.random.default_rng(0).normal(size=(8, 2, 48, 64)).astype(np.float32)
    for k, flow in enumerate(flows):
        write_flo(tmp_path / f"{k:03d}.flo", flow)
    forward, backward = make_flow({"flow": str(tmp_path)}, **SIZE)
    assert np.array_equal(forward, flows) and backward is None
    one, _ = make_flow({"flow": str(tmp_path / "003.flo")}, **SIZE)
    assert np.array_equal(one[7], flows[3])


def test_bad_files_are_named(tmp_path):
    (tmp_path / "a.flo").write_bytes(b"no flow")
    (tmp_path / "v.mp4").write_bytes(b"no video")
    write_video(tmp_path / "one.mp4", clip(frames=1), fps=8)
    np.save(tmp_path / "d.npy", np.zeros((4, 4)))
    for motion, message in (
        ({"flow": str(tmp_path / "a.flo")}, r"a\.flo is of no known format"),
        ({"flow": str(tmp_path)}, r"\.flo and \.npy files; leave one kind"),
        ({"video": str(tmp_path / "v.mp4")}, "v.mp4 cannot be read"),
        ({"video": str(tmp_path / "one.mp4")}, "1 frames, needs 2"),
        ({"video": "no.mp4"}, "no.mp4 does not exist"),
        ({"video": {"file": "no.mp4", "last": 0}}, "last must be a whole number from 1"),
        ({"video": "x", "camera": {"orbit": [1, 0], "depth": "d.npy"}}, "leave camera depth out"),
        ({"camera": {"orbit": [1, 0], "depth": str(tmp_path / "d.npy")}}, "positive"),
        ({"camera": {"orbit": [1, 0], "depth": "no.png"}}, "no.png does not exist"),
        ({"camera": {"roll": "x"}}, "roll"),
        ({"drag": [{"polygon": SQUARE}]}, "either by"),
        ({"drag": [{"polygon": SQUARE, "keys": [{"at": 2}]}]}, "from 0 to 1, got 2"),
        ({"drag": [{"polygon": SQUARE, "keys": [{"at": 1}, {"at": 0.5}]}]}, "rising"),
        ({"drag": [{"polygon": SQUARE, "by": [1, 0], "easing": "ot"}]}, "did you mean 'out'"),
    ):
        with pytest.raises(ValueError, match=message):
            make_flow(motion, **SIZE)


def test_strength_by_region_moves_along(tmp_path):
    region = {"polygon": SQUARE, "strength": 0.9, "by": [16, 0]}
    gamma = make_strength({"default": 0.25, "regions": [region]}, **SIZE)
    assert gamma.shape == (9, 48, 64)
    assert float(gamma[0, 24, 22]) == pytest.approx(0.9) and gamma[8, 24, 22] == 0.25
    assert float(gamma[8, 24, 50]) == pytest.approx(0.9) and gamma[0, 24, 50] == 0.25
    np.save(tmp_path / "s.npy", np.full((48, 64), 0.5))
    assert make_strength({"map": str(tmp_path / "s.npy")}, **SIZE).shape == (1, 48, 64)
    for bad, message in (
        ({"regions": [{"polygon": SQUARE, "strength": 2}]}, "strength.*got 2"),
        ({"regions": 3}, "list"),
        ({"map": "no.npy"}, "no.npy does not exist"),
        ({"defualt": 1}, "did you mean 'default'"),
    ):
        with pytest.raises(ValueError, match=message):
            make_strength(bad, **SIZE)


def test_color_wheel_and_arrows():
    flow = torch.zeros(1, 2, 32, 32)
    flow[0, 0, :, 8:16], flow[0, 0, :, 16:24], flow[0, :, :, 24:] = 2.0, -2.0, OUT
    picture = color_wheel(flow)[0]
    assert picture[0, 0].tolist() == [255] * 3 and picture[0, 31].tolist() == [GRAY] * 3
    assert picture[0, 10].tolist() == [255, 0, 0] and picture[0, 20].tolist() == [0, 255, 255]
    drawn = arrows(np.zeros((2, 32, 32, 3), np.uint8), flow)
    assert drawn.shape == (2, 128, 128, 3) and drawn[1].max() == 255
    assert not drawn[0, :, 100:].any()


@pytest.mark.slow
def test_motion_command_draws_every_job(tmp_path, capsys):
    (tmp_path / "jobs.yaml").write_text(
        "jobs:\n"
        "  - {prompt: x, name: a, motion: {camera: {pan: [1, 0]}}, frames: 5}\n"
        "  - {prompt: x, name: b}\n"
    )
    write_video(tmp_path / "a.mp4", np.zeros((5, 64, 64, 3), np.uint8), fps=8)
    assert main(["motion", str(tmp_path / "jobs.yaml"), "--out", str(tmp_path)]) == 0
    assert read_video(tmp_path / "a-flow.mp4").shape == (4, 64, 64, 3)
    assert read_video(tmp_path / "a-arrows.mp4").shape == (5, 256, 256, 3)
    assert len(capsys.readouterr().out.split()) == 2 and not (tmp_path / "b-flow.mp4").exists()
