"""The video writer: pixels, metadata, equal bytes, and no half-written file."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from accel.pipelines import video
from accel.pipelines.video import read_comment, read_video, write_video


def clip(frames=6, height=64, width=96):
    """A smooth picture that moves: 4:2:0 and quantization may only change it a little."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [
        np.sin((x + 2 * k) / 9 + c) + np.cos(y / 7 - c) for k in range(frames) for c in range(3)
    ]
    stacked = np.stack(waves).reshape(frames, 3, height, width).transpose(0, 2, 3, 1)
    return np.clip(127 + 50 * stacked, 0, 255).astype(np.uint8)


@pytest.mark.slow
def test_pixels_survive(tmp_path):
    frames = clip()
    write_video(tmp_path / "a.mp4", frames, fps=8)
    back = read_video(tmp_path / "a.mp4")
    assert back.shape == frames.shape
    assert np.abs(back.astype(int) - frames).mean() < 2.5


def test_color_is_tagged_bt709_and_rate_is_kept(tmp_path):
    write_video(tmp_path / "a.mp4", clip(), fps=23.976)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.colorspace, context.color_primaries, context.color_trc) == (1, 1, 1)
        assert float(stream.average_rate) == pytest.approx(23.976, rel=1e-3)


def test_comment_survives_byte_for_byte(tmp_path):
    text = json.dumps({"prompt": 'quotes " and \n newlines, ünïcode', "pad": "x" * 60_000})
    write_video(tmp_path / "a.mp4", clip(), fps=8, comment=text)
    assert read_comment(tmp_path / "a.mp4") == text


FILES = ["a.mp4", "a.webm", "a.gif", "a.mkv"]


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_equal_input_gives_equal_bytes(name, tmp_path):
    """Small frames and unlike memory: x264's macroblock tree failed this in 1 of 3 files."""
    frames, kept, seen = clip(5, 64, 64), [], set()
    frames[1:] += np.random.default_rng(0).integers(0, 20, frames[1:].shape, np.uint8)
    for number in range(8 if name == "a.mp4" else 3):
        kept.append(np.ones(number * 7919, np.uint8))
        write_video(tmp_path / name, frames.copy(), fps=8, comment="same")
        seen.add((tmp_path / name).read_bytes())
    assert len(seen) == 1


@pytest.mark.parametrize("name", FILES)
def test_settings_survive_a_stream_copy(name, tmp_path):
    """With the ffmpeg program, as users cut and join their clips."""
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    text = json.dumps({"prompt": 'quotes " and \n newlines', "pad": "x" * 60_000})
    write_video(tmp_path / name, clip(), fps=8, comment=text)
    copy = tmp_path / f"copy{name[1:]}"
    command = [ffmpeg, "-v", "error", "-i", tmp_path / name, "-c", "copy", copy]
    subprocess.run(command, check=True, timeout=60)
    assert read_comment(tmp_path / name) == read_comment(copy) == text


@pytest.mark.slow
@pytest.mark.parametrize(("name", "format"), [("a.mkv", ""), ("a", "png")])
def test_exact_formats_are_exact(name, format, tmp_path):
    frames = clip(height=33, width=47)
    write_video(tmp_path / name, frames, fps=8, comment="c", format=format)
    assert np.array_equal(read_video(tmp_path / name), frames)
    assert read_comment(tmp_path / name) == "c"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.webm", "a.gif"])
def test_other_formats_keep_size_and_frames(name, tmp_path):
    write_video(tmp_path / name, clip(), fps=8)
    back = read_video(tmp_path / name)
    assert back.shape == clip().shape
    assert np.abs(back.astype(int) - clip()).mean() < 4


def test_an_unknown_suffix_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"a\.avi.*\.mp4"):
        write_video(tmp_path / "a.avi", clip(), fps=8)


@pytest.mark.slow
def test_odd_sizes_repeat_the_edge(tmp_path):
    frames = clip(height=33, width=47)
    write_video(tmp_path / "a.mp4", frames, fps=8)
    assert read_video(tmp_path / "a.mp4").shape == (6, 34, 48, 3)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_video(tmp_path / "a.mp4", clip(), fps=8)
    before = (tmp_path / "a.mp4").read_bytes()

    def broken(path, *args):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(video, "_encode", broken)
    with pytest.raises(OSError, match="disk full"):
        write_video(tmp_path / "a.mp4", clip(), fps=8)
    assert (tmp_path / "a.mp4").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize(
    "frames",
    [np.zeros((2, 8, 8, 3)), np.zeros((2, 8, 8), np.uint8), np.zeros((0, 8, 8, 3), np.uint8)],
)
def test_bad_frames_are_named(frames, tmp_path):
    with pytest.raises(ValueError, match="uint8"):
        write_video(tmp_path / "a.mp4", frames, fps=8)


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.png", "folder", "frames"])
def test_what_is_no_video(name, tmp_path):
    path = tmp_path / name
    if path.suffix:
        path.write_bytes(b"\x89PNG\r\n\x1a\n no video" if name == "a.png" else b"no video")
    else:
        path.mkdir()
        (path / ("a.txt" if name == "folder" else "00000.png")).write_text("no video")
    for read in (read_comment, read_video):
        with pytest.raises(ValueError, match=f"{name} cannot be read as a video"):
            read(path)


NAMES = ["run:1", "-i", "%05d", "[a]*?", "two\nlines", "concat:a|b", "~", "shots.zip", "file:"]


@pytest.mark.parametrize("folder", NAMES)
@pytest.mark.slow
@pytest.mark.parametrize("format", video.SUFFIX)
def test_a_path_is_a_path_to_every_program(folder, format, tmp_path, monkeypatch):
    """Names that FFmpeg or a shell would take for something else, relative as users give them."""
    monkeypatch.chdir(tmp_path)
    path, frames = Path(folder) / f"{folder}{video.SUFFIX[format]}", clip(2, 32, 32)
    path.parent.mkdir()
    write_video(path, frames, fps=8, comment="c", format=format)
    assert read_video(path).shape == frames.shape and read_comment(path) == "c"
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_gray_and_transparent_frames_are_read_as_rgb(tmp_path):
    for number, mode in enumerate(("L", "RGBA", "P", "RGB")):
        Image.new(mode, (8, 6)).save(tmp_path / f"shot {number}.png")
    assert read_video(tmp_path).shape == (4, 6, 8, 3)


def test_frames_are_read_in_their_order_beyond_five_digits(tmp_path):
    for number in (99999, 100000):
        Image.new("RGB", (8, 8), (number % 256, 0, 0)).save(tmp_path / f"{number}.png")
    assert read_video(tmp_path)[:, 0, 0, 0].tolist() == [99999 % 256, 100000 % 256]


def test_of_a_folder_only_our_frames_are_replaced_or_removed(tmp_path):
    path = tmp_path / "b.mp4"
    write_video(path, clip(3, 8, 8), fps=8, format="png")
    write_video(path, clip(2, 8, 8), fps=8, format="png")
    assert len(read_video(path)) == 2
    with pytest.raises(OSError, match="directory"):
        write_video(path, clip(2, 8, 8), fps=8)  # a file in place of a folder
    (path / "notes.txt").write_text("mine")
    with pytest.raises(OSError, match=r"also holds notes\.txt"):
        write_video(path, clip(4, 8, 8), fps=8, format="png")
    assert len(read_video(path)) == 2 and [p.name for p in tmp_path.iterdir()] == ["b.mp4"]
    video.remove(path)
    assert [p.name for p in path.iterdir()] == ["notes.txt"]


def test_an_unfinished_file_of_somebody_else_stays(tmp_path):
    (tmp_path / "a.mp4.part").mkdir()
    (tmp_path / "a.part").write_text("mine")
    write_video(tmp_path / "a.mp4", clip(2, 8, 8), fps=8)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "a.mp4.part", "a.part"]
