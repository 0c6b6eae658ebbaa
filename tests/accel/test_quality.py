"""Metrics of ``accel.quality``: best values of equal videos, values that can be computed another
way, and one clear error for what cannot be measured.
"""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from helpers.made_videos import distorted, moving, noise

import accel
from accel.core.quality import metric_registry, temporal_metrics

quality = accel.quality


# ------------------------------------------------------------------------------------ against numpy


def ssim_of(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """SSIM, and contrast times structure, of two planes, window by window."""
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    patches = [np.lib.stride_tricks.sliding_window_view(v, (11, 11)) for v in (x, y)]
    mx, my = ((p * window).sum((2, 3)) for p in patches)
    apart = [p - m[..., None, None] for p, m in zip(patches, (mx, my), strict=True)]
    vx, vy = ((p * p * window).sum((2, 3)) for p in apart)
    cov = (apart[0] * apart[1] * window).sum((2, 3))
    structure = (2 * cov + 58.5225) / (vx + vy + 58.5225)
    return structure * (2 * mx * my + 6.5025) / (mx * mx + my * my + 6.5025), structure


def ms_ssim_of(a: np.ndarray, b: np.ndarray, weights: list[float]) -> float:
    values = []
    for frame_a, frame_b in zip(a, b, strict=True):
        for channel in range(3):
            x, y = (f[..., channel].astype(float) for f in (frame_a, frame_b))
            value = 1.0
            for k, weight in enumerate(weights):
                if k:
                    h, w = (n // 2 * 2 for n in x.shape)
                    x, y = (v[:h, :w].reshape(h // 2, 2, w // 2, 2).mean((1, 3)) for v in (x, y))
                whole, structure = ssim_of(x, y)
                value *= (whole if k == len(weights) - 1 else structure).mean() ** weight
            values.append(value)
    return float(np.mean(values))


def test_ssim_and_psnr_by_frame():
    a, b = noise(0), distorted(noise(0), 30)
    expected = [np.mean([ssim_of(x[..., c] * 1.0, y[..., c] * 1.0)[0].mean() for c in range(3)])
                for x, y in zip(a, b, strict=True)]  # fmt: skip
    assert quality.ssim_by_frame(a, b) == pytest.approx(expected, abs=1e-9)
    assert quality.ssim(a, b) == pytest.approx(np.mean(expected), abs=1e-9)
    b = a.copy()
    b[1] ^= 1  # one level off in one frame of three
    assert quality.psnr_by_frame(a, b) == pytest.approx([math.inf, 20 * math.log10(255), math.inf])
    assert quality.psnr(a, b) == pytest.approx(20 * math.log10(255) + 10 * math.log10(3))


def test_ms_ssim_is_its_formula():
    a = moving(2, frames=1, side=180)
    b = distorted(a, 25)
    assert quality.ms_ssim(a, a) == pytest.approx(1.0)
    weights = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333]
    assert quality.ms_ssim(a, b) == pytest.approx(ms_ssim_of(a, b, weights), abs=1e-9)
    part = [w / sum(weights[:3]) for w in weights[:3]]
    small_a, small_b = a[:, :45, :53], b[:, :45, :53]
    found = quality.ms_ssim(small_a, small_b, scales=3)
    assert found == pytest.approx(ms_ssim_of(small_a, small_b, part), abs=1e-9)
    one = quality.ms_ssim(small_a, small_b, 1)
    assert one == pytest.approx(ms_ssim_of(small_a, small_b, [1.0]), abs=1e-9)


def test_ms_ssim_says_how_many_scales_fit():
    with pytest.raises(quality.CannotMeasure, match=r"176 x 176 .* 64 x 64; .*scales=3"):
        quality.ms_ssim(noise(0, (1, 64, 64, 3)), noise(1, (1, 64, 64, 3)))
    with pytest.raises(quality.CannotMeasure, match=r"got 8 x 64$"):
        quality.ms_ssim(noise(0, (1, 8, 64, 3)), noise(1, (1, 8, 64, 3)))
    with pytest.raises(ValueError, match="scales must be 1 to 5, got 6"):
        quality.ms_ssim(noise(0), noise(0), 6)


def test_temporal_flickering_is_its_formula():
    levels = np.array([10, 14, 8, 8], np.uint8)
    video = np.broadcast_to(levels[:, None, None, None], (4, 6, 5, 3)).copy()
    assert quality.temporal_flickering(video) == pytest.approx((255 - (4 + 6 + 0) / 3) / 255)
    assert quality.temporal_flickering(video[2:]) == 1.0


# -------------------------------------------------------------------------------------- by the flow


def test_warping_error_of_a_known_motion():
    """Of a picture that moves, only what flow and rounding miss is left; of flicker on it, the
    expected square: independent noise of variance v in both frames gives 2 v, less what the
    interpolation of one averages away.
    """
    pytest.importorskip("cv2", reason="optical flow needs OpenCV")
    a = moving(3)
    own = quality.warping_error(a, a)
    assert 0 <= own < 2e-5
    brighter = a.astype(int) + 8 * (np.arange(len(a)) % 2)[:, None, None, None]
    found = quality.warping_error(a, np.clip(brighter, 0, 255).astype(np.uint8))
    assert found == pytest.approx((8 / 255) ** 2, rel=0.1)
    still = np.repeat(a[:1], 5, 0)
    assert quality.warping_error(a[:5], still) > 20 * own  # the flow is the reference's
    assert quality.warping_error(still, still) == 0.0
    spread = distorted(np.full_like(still, 128), 10)  # no motion, no occlusion: nothing is averaged
    expected = np.mean(np.square((spread[1:].astype(float) - spread[:-1]) / 255))
    assert quality.warping_error(still, spread) == pytest.approx(expected, rel=1e-5)


def test_pixels_that_are_hidden_or_gone_do_not_count(monkeypatch):
    pytest.importorskip("cv2", reason="optical flow needs OpenCV")
    flow = np.zeros((6, 8, 2), np.float32)
    flow[:, 6:, 0] = 5.0  # leaves the picture
    lost = np.zeros((6, 8), bool)
    lost[2] = True
    pair = temporal_metrics.PairFlow(flow, -flow, lost, lost, False)
    monkeypatch.setattr(temporal_metrics, "neighbor_flows", lambda frames: [pair])
    video = np.zeros((2, 6, 8, 3), np.uint8)
    video[1, 2], video[1, :, 6:] = 255, 255
    assert quality.warping_error(video, video) == 0.0
    video[1, 0, 0] = 51  # a fifth, at one of 5 x 6 pixels
    assert quality.warping_error(video, video) == pytest.approx(0.2**2 / 30)


def test_smoothness_sees_a_jump():
    pytest.importorskip("cv2", reason="optical flow needs OpenCV")
    even = moving(2)
    assert quality.motion_smoothness_by_flow(even) > 0.99
    assert quality.motion_smoothness_by_flow(np.repeat(even[:1], 5, 0)) == 1.0
    jumping = even.copy()
    jumping[3] = even[6]
    assert quality.motion_smoothness_by_flow(jumping) < quality.motion_smoothness_by_flow(even)
    flat = np.zeros((3, 32, 32, 3), np.uint8)
    flat[1] = 50  # its neighbors are black, so is what is made of them
    assert quality.motion_smoothness_by_flow(flat) == pytest.approx((255 - 50) / 255)


@pytest.mark.parametrize(("speed", "share"), [(0, 0.0), (1, 0.0), (3, 1.0)])
def test_dynamic_degree_counts_fast_steps(speed, share):
    """At 16 frames a second every other frame counts: 6 pixels of 256 are 2.25 of 96, and speeds
    of 1 and 3 pixels a frame are 2 and 6.
    """
    pytest.importorskip("cv2", reason="optical flow needs OpenCV")
    assert quality.dynamic_degree_by_flow(moving(speed)) == share


def test_one_frame_has_no_motion():
    one = noise(0, (1, 24, 32, 3))
    for function in (
        quality.temporal_flickering, quality.motion_smoothness_by_flow,
        quality.dynamic_degree_by_flow, lambda v: quality.warping_error(v, v),
    ):  # fmt: skip
        with pytest.raises(quality.CannotMeasure, match=r"needs \d frames or more, got 1"):
            function(one)


# ------------------------------------------------------------------------------------- the registry


def test_measure_gives_what_is_named():
    a, b = noise(0), distorted(noise(0), 5)
    found = quality.measure(a, b)
    assert found == {"psnr": quality.psnr(a, b), "ssim": quality.ssim(a, b)}
    assert quality.measure(a, b, "temporal_flickering") == {
        "temporal_flickering": quality.temporal_flickering(b)
    }
    with pytest.raises(ValueError, match=r"metric must be one of .*did you mean 'psnr'"):
        quality.measure(a, b, ["psnrr"])
    with pytest.raises(quality.CannotMeasure, match="ms_ssim: MS-SSIM with 5 scales needs"):
        quality.measure(a, b, ["psnr", "ms_ssim"])


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (noise(1, (3, 24, 30, 3)), r"\(3, 24, 30, 3\)"),
        (noise(1, (2, 24, 32, 3)), r"\(2, 24, 32, 3\)"),
        (noise(1).astype(np.float32), "float32"),
        (noise(1)[0], r"\(24, 32, 3\)"),
    ],
    ids=["size", "length", "dtype", "one frame"],
)
def test_every_metric_wants_two_videos_of_one_shape(other, told):
    a = noise(0)
    for metric in quality.known_metrics().values():
        with pytest.raises(ValueError, match=f"same shape, got .*{told}"):
            quality.measure(a, other, [metric])
    with pytest.raises(ValueError, match="same shape"):
        quality.scores(a, other)
    pairs = (quality.psnr, quality.ssim, quality.ms_ssim, quality.vmaf, quality.jod,
             quality.warping_error, quality.psnr_by_frame, quality.ssim_by_frame)  # fmt: skip
    for function in pairs:
        with pytest.raises(ValueError, match="same shape"):
            function(a, other)


def test_a_metric_of_ones_own(monkeypatch):
    monkeypatch.setattr(metric_registry, "_KNOWN", dict(metric_registry._KNOWN))
    darker = quality.Metric("darker", lambda a, b: a.mean() - b.mean(), "darkening", "levels", None)
    a = noise(0)
    b = a // 2
    assert quality.measure(a, b, [darker]) == {"darker": pytest.approx(a.mean() - b.mean())}
    assert "darker" not in quality.known_metrics()
    quality.register(darker)
    assert quality.measure(a, b, ["darker"])["darker"] > 0
    broken = quality.Metric("broken", lambda a, b: 0.0, needs=lambda: "it needs a thing")
    found = quality.scores(a, b, [darker, broken])
    assert [score.why_not for score in found] == ["", "it needs a thing"]
    assert found[0].of_reference is None and found[1].value is None
    with pytest.raises(ValueError, match="register takes a Metric"):
        quality.register("psnr")


def test_both_videos_values_are_told_where_each_has_one():
    pytest.importorskip("cv2", reason="optical flow needs OpenCV")
    a = moving(2)
    b = distorted(a, 10)
    (score,) = quality.scores(a, b, ["warping_error"])
    assert score.value == quality.warping_error(a, b)
    assert score.of_reference == quality.warping_error(a, a)


def test_flow_without_opencv(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.setattr(metric_registry, "find_spec", lambda name: None)
    (score,) = quality.scores(noise(0), noise(0), ["warping_error"])
    assert "pip install 'opencv-python-headless>=" in score.why_not
    with pytest.raises(ValueError, match="pip install 'opencv-python-headless>="):
        quality.warping_error(noise(0), noise(0))


def test_none_is_named_after_vbench():
    """Only VBench's own networks and prompts give a VBench score."""
    for metric in quality.known_metrics().values():
        assert "vbench" not in f"{metric.name} {metric.title}".lower()
