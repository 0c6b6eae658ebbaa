"""Metrics of ``accel.quality`` that programs, packages or weights of others compute."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.made_videos import distorted, moving, noise

import accel
from accel.cli import main
from accel.core.quality import color_video_vdp, lpips_alexnet, vmaf_ffmpeg
from accel.pipelines.video import write_video

quality = accel.quality
VDP = pytest.mark.skipif(find_spec("pycvvdp") is None, reason="the package cvvdp is not installed")


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
