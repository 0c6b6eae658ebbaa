"""Metrics of ``accel.quality``: best values of equal videos, values that can be computed another
way, and one clear error for what cannot be measured.
"""

from __future__ import annotations

import math
import sys
from importlib.util import find_spec
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import accel
from accel.cli import main
from accel.core.quality import (
    color_video_vdp,
    lpips_alexnet,
    metric_registry,
    temporal_metrics,
    vmaf_ffmpeg,
)
from accel.pipelines.video import write_video

quality = accel.quality
VDP = pytest.mark.skipif(find_spec("pycvvdp") is None, reason="the package cvvdp is not installed")


def noise(seed: int, shape: tuple[int, ...] = (3, 24, 32, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def moving(speed: int, frames: int = 9, side: int = 96) -> np.ndarray:
    """A smooth picture that moves left by ``speed`` pixels a frame."""
    rng = np.random.default_rng(7)
    wide = side + speed * frames
    y, x = np.mgrid[0:side, 0:wide]
    picture = sum(
        np.sin(2 * math.pi * (x * rng.uniform(-9, 9) + y * rng.uniform(-9, 9)) / side + k)[
            ..., None
        ]
        * rng.uniform(-1, 1, 3)
        for k in range(24)
    )
    levels = (127.5 + 100 * picture / np.abs(picture).max()).astype(np.uint8)
    return np.stack([levels[:, speed * k : speed * k + side] for k in range(frames)])


def distorted(video: np.ndarray, amount: float, seed: int = 0) -> np.ndarray:
    shift = np.random.default_rng(seed).normal(0, amount, video.shape)
    return np.clip(np.rint(video + shift), 0, 255).astype(np.uint8)


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


# --------------------------------------------------------------------------------- VMAF, JOD, LPIPS


def test_vmaf():
    """Chroma does not count, so a frame of odd size needs no padding."""
    pytest.importorskip("imageio_ffmpeg", reason="VMAF needs imageio-ffmpeg")
    a = moving(2, frames=4, side=97)
    same = quality.vmaf(a, a)
    fine, coarse = (quality.vmaf(a, distorted(a, amount)) for amount in (6, 40))
    assert same > 97 and same > fine > coarse >= 0
    assert quality.vmaf(a, distorted(a, 40)) == coarse
    assert quality.vmaf(a, np.full_like(a, 128)) < 10  # the first video is the reference:
    assert quality.vmaf(distorted(a, 40), a) != coarse


def test_vmaf_without_what_it_needs(monkeypatch):
    a = noise(0)
    vmaf_ffmpeg.why_not_vmaf.cache_clear()
    try:
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "imageio_ffmpeg", None)
            with pytest.raises(quality.CannotMeasure, match="pip install 'imageio-ffmpeg>="):
                quality.vmaf(a, a)
        vmaf_ffmpeg.why_not_vmaf.cache_clear()
        other = ModuleType("imageio_ffmpeg")
        other.get_ffmpeg_exe = lambda: "/bin/true"
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "imageio_ffmpeg", other)
            with pytest.raises(quality.CannotMeasure, match="libvmaf, which /bin/true is not"):
                quality.vmaf(a, a)
    finally:
        vmaf_ffmpeg.why_not_vmaf.cache_clear()
    with pytest.raises(quality.CannotMeasure, match="16 x 16 or more, got 8 x 32"):
        quality.vmaf(a[:, :8], a[:, :8])


@VDP
@pytest.mark.slow
def test_jod():
    a = moving(2, frames=4, side=64)
    fine, coarse = (quality.jod(a, distorted(a, amount)) for amount in (3, 60))
    assert quality.jod(a, a) == pytest.approx(10.0, abs=1e-4)
    assert 10 > fine > coarse
    assert quality.jod(a[:1], distorted(a[:1], 60)) < 10
    loaded = {name.partition(".")[0] for name, module in sys.modules.items() if module is not None}
    assert "torchvision" not in loaded or hasattr(sys.modules["torchvision"], "__version__")


def test_jod_without_its_package(monkeypatch):
    monkeypatch.setattr(color_video_vdp, "find_spec", lambda name: None)
    with pytest.raises(quality.CannotMeasure, match="pip install 'cvvdp>="):
        quality.jod(noise(0), noise(0))


def test_the_stand_in_is_gone_afterwards(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)  # importing it raises ImportError
    with color_video_vdp._torchvision():
        from torchvision.ops import MLP
        from torchvision.transforms import GaussianBlur

        with pytest.raises(ImportError, match="needs torchvision"):
            MLP(3, [4])
    assert sys.modules["torchvision"] is None
    assert not [name for name in sys.modules if name.startswith("torchvision.")]
    image = torch.rand(2, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    line = np.exp(-0.5 * (np.arange(-6, 7) / 3) ** 2)
    window = np.outer(line, line) / line.sum() ** 2
    padded = np.pad(image.numpy(), [(0, 0), (0, 0), (6, 6), (6, 6)], mode="reflect")
    patches = np.lib.stride_tricks.sliding_window_view(padded, (13, 13), axis=(2, 3))
    expected = (patches * window).sum((-1, -2))
    np.testing.assert_allclose(GaussianBlur(13, 3)(image).numpy(), expected, atol=1e-5)


LAYERS = {0: (64, 3, 11, 4, 2), 3: (192, 64, 5, 1, 2), 6: (384, 192, 3, 1, 1),
          8: (256, 384, 3, 1, 1), 10: (256, 256, 3, 1, 1)}  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights of AlexNet and of LPIPS's linear layer, and their files."""
    generator = torch.Generator().manual_seed(0)
    network, heads = {}, {}
    for k, (number, (out, into, size, *_)) in enumerate(LAYERS.items()):
        shape = (out, into, size, size)
        scale = (into * size * size) ** -0.5
        network[f"features.{number}.weight"] = torch.randn(shape, generator=generator) * scale
        network[f"features.{number}.bias"] = torch.randn(out, generator=generator) * 0.1
        heads[f"lin{k}.model.1.weight"] = torch.rand(1, out, 1, 1, generator=generator)
    folder = tmp_path_factory.mktemp("lpips")
    files = folder / "network.pth", folder / "heads.pth"
    torch.save(network, files[0])
    torch.save(heads, files[1])
    return network, heads, files


def test_lpips_is_its_formula(weights):
    network, heads, files = weights
    a, b = noise(0, (2, 40, 52, 3)), noise(1, (2, 40, 52, 3))
    metric = quality.lpips(*files)
    total = 0.0
    for x, y in zip(a, b, strict=True):
        pair = torch.from_numpy(np.stack([x, y])).double().permute(0, 3, 1, 2) / 127.5 - 1
        shift, scale = (torch.tensor(v).double().view(1, 3, 1, 1)
                        for v in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)))  # fmt: skip
        h = (pair - shift) / scale
        for k, (number, (_, _, _, stride, padding)) in enumerate(LAYERS.items()):
            h = F.max_pool2d(h, 3, 2) if number in (3, 6) else h
            weight, bias = (network[f"features.{number}.{n}"].double() for n in ("weight", "bias"))
            h = F.conv2d(h, weight, bias, stride, padding).clamp_min(0)
            u, v = h / h.square().sum(1, keepdim=True).sqrt()
            head = heads[f"lin{k}.model.1.weight"].double().view(-1, 1, 1)
            total += float(((u - v).square() * head).sum(0).mean())
    assert quality.measure(a, b, [metric]) == {"lpips": pytest.approx(total / 2, rel=1e-4)}
    assert quality.measure(a, a, [metric]) == {"lpips": 0.0}


def test_lpips_without_weights(weights, tmp_path, monkeypatch):
    network, _, (backbone, heads) = weights
    a = noise(0, (1, 40, 40, 3))
    with pytest.raises(quality.CannotMeasure, match=r"alexnet-owt-7be5be79.pth: --lpips-weights"):
        quality.measure(a, a, ["lpips"])
    with pytest.raises(ValueError, match=r"no file .*none.pth"):
        quality.lpips(tmp_path / "none.pth", heads)
    with pytest.raises(ValueError, match=r"heads.pth has no tensor features.0.weight"):
        quality.lpips(heads, heads)
    (tmp_path / "text.pth").write_text("text")
    with pytest.raises(ValueError, match=r"text.pth cannot be read as weights"):
        quality.lpips(tmp_path / "text.pth", heads)
    torch.save(network | {"features.3.weight": torch.zeros(7, 64, 5, 5)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other.pth holds another network's weights"):
        quality.lpips(tmp_path / "other.pth", heads)
    with pytest.raises(quality.CannotMeasure, match="31 x 31 or more, got 24 x 32"):
        quality.measure(noise(0), noise(1), [quality.lpips(backbone, heads)])
    monkeypatch.setattr(lpips_alexnet, "find_spec", lambda name: None)
    with pytest.raises(quality.CannotMeasure, match="pip install 'torchmetrics>="):
        quality.lpips(backbone)


def test_the_command_takes_weights(weights, tmp_path, monkeypatch, capsys):
    _, _, (backbone, heads) = weights
    monkeypatch.setattr(lpips_alexnet, "_linear", lambda given: heads)
    a, b = noise(0, (2, 40, 52, 3)), noise(1, (2, 40, 52, 3))
    files = [str(tmp_path / name) for name in ("a.mkv", "b.mkv")]
    for file, frames in zip(files, (a, b), strict=True):
        write_video(file, frames, fps=16)
    expected = quality.measure(a, b, [quality.lpips(backbone, heads)])["lpips"]
    for names in ("psnr", "psnr,lpips"):
        command = ["compare", *files, "--metrics", names, "--lpips-weights", str(backbone)]
        assert main(command) == 0
        shown = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert [words[0] for words in shown] == ["PSNR", "LPIPS"]
        assert float(shown[1][-1]) == pytest.approx(expected, rel=1e-2)


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
