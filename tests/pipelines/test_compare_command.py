"""``accel compare``: a table, folders of videos, JSON, a picture, and errors that say why."""

from __future__ import annotations

import json
import math
import re
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from accel.cli import main
from accel.cli.compare import summary
from accel.core.line_chart import line_chart
from accel.core.quality import Metric, Score, psnr, psnr_by_frame, ssim, ssim_by_frame
from accel.pipelines.video import write_video

SVG = "{http://www.w3.org/2000/svg}"


def video(seed: int, frames: int = 4, size: int = 32) -> np.ndarray:
    shape = (frames, size, size, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def near(frames: np.ndarray, amount: int) -> np.ndarray:
    return np.where(frames > 127, frames - amount, frames + amount).astype(np.uint8)


@pytest.fixture
def folders(tmp_path):
    """Two folders: x and y in both, one video alone in each, and what is no video."""
    a, b = tmp_path / "a", tmp_path / "b"
    a.mkdir()
    b.mkdir()
    for name, seed, amount in (("x.mkv", 0, 2), ("y.mkv", 1, 20)):
        write_video(a / name, video(seed), fps=16)
        write_video(b / name, near(video(seed), amount), fps=16)
    write_video(a / "frames", video(2), fps=16, format="png")
    write_video(b / "frames", video(2), fps=16, format="png")
    write_video(a / "only-a.mkv", video(3), fps=16)
    write_video(b / "only-b.mkv", video(4), fps=16)
    (a / "x.json").write_text("{}")
    (b / "x.json").write_text("{}")
    return a, b


def test_two_videos_in_a_table(folders, capsys):
    a, b = (folder / "x.mkv" for folder in folders)
    assert main(["compare", str(a), str(b)]) == 0
    lines = capsys.readouterr().out.splitlines()
    first, second = video(0), near(video(0), 2)
    assert lines[0].split() == ["PSNR", f"{psnr(first, second):.2f}", "dB"]
    assert lines[1].split() == ["SSIM", f"{ssim(first, second):.4f}"]
    (flicker,) = [line for line in lines if line.startswith("temporal flickering")]
    assert re.search(r"0\.\d{4} \(A: 0\.\d{4}\)$", flicker)
    told = "\n".join(line for line in lines if line.startswith("not measured"))
    assert "ms_ssim: MS-SSIM with 5 scales needs" in told and "lpips: LPIPS needs" in told


def test_named_metrics_as_json(folders, capsys):
    a, b = (folder / "x.mkv" for folder in folders)
    command = ["compare", str(a), str(b), "--json", "--metrics", "psnr, temporal_flickering"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    (pair,) = found["pairs"]
    first, second = video(0), near(video(0), 2)
    assert pair["metrics"].keys() == {"psnr", "temporal_flickering"} and not pair["not_measured"]
    assert pair["metrics"]["psnr"] == pytest.approx(psnr(first, second))
    assert pair["of_a"].keys() == {"temporal_flickering"}
    assert (pair["a"], pair["b"]) == (str(a), str(b)) and not found["without_partner"]


def test_folders_are_paired_by_name(folders, capsys):
    a, b = folders
    assert main(["compare", str(a), str(b), "--json", "--metrics", "psnr ssim"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [pair["name"] for pair in found["pairs"]] == ["frames", "x.mkv", "y.mkv"]
    assert found["without_partner"] == [str(a / "only-a.mkv"), str(b / "only-b.mkv")]
    values = [pair["metrics"]["ssim"] for pair in found["pairs"]]
    assert found["pairs"][0]["metrics"]["psnr"] is None  # infinite
    assert found["mean"]["ssim"] == pytest.approx(np.mean(values))
    assert found["worst"]["ssim"] == values[2] < values[1] < values[0] == 1
    assert found["worst"]["psnr"] == pytest.approx(20 * math.log10(255 / 20))
    assert main(["compare", str(a), str(b), "--metrics", "psnr"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "frames" and "3 pairs" in lines[6] and lines[6].endswith("mean, worst")
    assert lines[7].split() == ["PSNR", "inf", "dB,", "22.11", "dB"]
    assert lines[8:] == [f"without a partner: {a / 'only-a.mkv'}",
                         f"without a partner: {b / 'only-b.mkv'}"]  # fmt: skip


def test_the_worst_is_the_metrics_own():
    up, down = Metric("up", psnr), Metric("down", psnr, higher_is_better=False)
    neither, gone = Metric("neither", psnr, higher_is_better=None), Metric("gone", psnr)
    rows = [[Score(m, v) for m, v in zip((up, down, neither, gone), values, strict=True)]
            for values in ((1.0, 1.0, 1.0, 1.0), (3.0, 3.0, 3.0, None))]  # fmt: skip
    assert summary(rows) == {"up": (2.0, 1.0), "down": (2.0, 3.0), "neither": (2.0, None)}


def test_the_picture_has_a_point_for_each_frame(folders, tmp_path, capsys):
    a, b = folders
    file = tmp_path / "p.svg"
    command = ["compare", str(a), str(b), "--metrics", "psnr", "--plot", str(file)]
    assert main(command) == 0
    assert f"wrote {file}" in capsys.readouterr().err
    tree = ET.parse(file).getroot()
    texts = [element.text for element in tree.iter(f"{SVG}text")]
    assert {"PSNR in dB", "SSIM", "x.mkv", "y.mkv", "frames", "frame 3"} <= set(texts)
    # PSNR has points for x and y, equal frames have none; SSIM has all.
    assert len(tree.findall(f"{SVG}circle")) == 4 * (2 + 3)
    assert len(tree.findall(f"{SVG}polyline")) == 2 + 3


def test_points_stand_where_their_values_are():
    first, second = video(5), video(6)
    second[1] = first[1]
    psnrs, ssims = psnr_by_frame(first, second), ssim_by_frame(first, second)
    assert math.isinf(psnrs[1])
    tree = ET.fromstring(line_chart("<t>", [("a", {"x": psnrs}), ("b", {"x": ssims})]))
    circles = [(float(c.get("cx")), float(c.get("cy"))) for c in tree.findall(f"{SVG}circle")]
    top, bottom = circles[:3], circles[3:]
    assert [x for x, _ in bottom] == sorted(x for x, _ in bottom) and top[1][0] == bottom[2][0]
    # Higher values stand higher, and distances are in proportion.
    lower, higher = sorted((0, 2, 3), key=lambda k: ssims[k])[0], 1
    assert bottom[higher][1] < bottom[lower][1]
    share = (bottom[0][1] - bottom[1][1]) / (bottom[2][1] - bottom[1][1])
    expected = (ssims[0] - ssims[1]) / (ssims[2] - ssims[1])
    assert share == pytest.approx(expected, rel=0.02)
    assert len(tree.findall(f"{SVG}polyline")) == 3  # the gap parts the first line
    empty = ET.fromstring(line_chart("t", [("a", {"x": [math.inf, math.inf]})]))
    assert not empty.findall(f"{SVG}circle")
    assert "a: equal frames" in [text.text for text in empty.iter(f"{SVG}text")]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--metrics", "psnrr"], r"metric must be one of .* \(did you mean 'psnr'\?\)"),
        (["--metrics", ","], "--metrics names no metric"),
        (["--metrics", "ms_ssim"], r"x\.mkv: ms_ssim: MS-SSIM with 5 scales needs frames of 176"),
        (["--metrics", "lpips"], "LPIPS needs the weights of AlexNet"),
        (["--lpips-weights", "none.pth"], "LPIPS: no file none.pth"),
    ],
)
def test_what_cannot_be_measured_is_one_error(folders, capsys, more, told):
    a, b = (str(folder / "x.mkv") for folder in folders)
    assert main(["compare", a, b, *more]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(
        f"^accel: error: {told}", error.replace("x.mkv: lpips: ", "")
    )


def test_a_missing_package_is_named(folders, capsys, monkeypatch):
    from accel.core.quality import vmaf_ffmpeg

    a, b = (str(folder / "x.mkv") for folder in folders)
    vmaf_ffmpeg.why_not_vmaf.cache_clear()
    try:
        monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
        assert main(["compare", a, b, "--metrics", "vmaf"]) == 2
    finally:
        vmaf_ffmpeg.why_not_vmaf.cache_clear()
    assert "x.mkv: vmaf: VMAF needs imageio-ffmpeg: pip install" in capsys.readouterr().err


def test_pairs_that_are_none(folders, tmp_path, capsys):
    a, b = folders
    write_video(tmp_path / "short.mkv", video(0, frames=3), fps=16)
    (tmp_path / "empty").mkdir()
    for first, second, told in (
        (
            a / "x.mkv",
            tmp_path / "short.mkv",
            "has 4 frames of 32 x 32, .* has 3 frames of 32 x 32",
        ),
        (a / "x.mkv", b, r"x\.mkv is one video; compare two videos, or two folders"),
        (a, tmp_path / "empty", "no video has the same name"),
        (a / "x.mkv", tmp_path / "gone.mkv", r"no file .*gone\.mkv"),
        (a / "x.json", b / "x.json", "cannot be read as a video"),
    ):
        assert main(["compare", str(first), str(second)]) == 2
        error = capsys.readouterr().err
        assert re.search(told, error) and error.count("\n") == 1
