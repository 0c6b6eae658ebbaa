"""Reading videos: only what is used, as a player shows it, within limits of memory."""

from __future__ import annotations

import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from accel.pipelines import video_decoding as decoding
from accel.pipelines import video_reading as reading
from accel.pipelines.motion import driving
from accel.pipelines.motion.driving import Driving
from accel.pipelines.video import write_video
from accel.pipelines.video_reading import look, read_spread, read_video


def clip(frames=12, height=48, width=64):
    """Frame k is 10 k bright, with a red corner above on the left."""
    out = np.full((frames, height, width, 3), 10, np.uint8)
    out *= np.arange(frames, dtype=np.uint8)[:, None, None, None] + 3
    out[:, : height // 3, : width // 3] = (220, 20, 20)
    return out


def encode(path, frames, *, times=None, matrix=None, codec="libx264", pixels="yuv420p", **options):
    """A video with a time (in ms) for each frame and a display matrix (a, b, c, d)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if matrix is not None:
        data = bytearray(path.read_bytes())
        start = data.index(b"tkhd") + 44  # of the matrix in the header of the track
        a, b, c, d = (int(v * 65536) for v in matrix)
        data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
        path.write_bytes(data)


# ------------------------------------------------------------------------------------------ chosen


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.mkv", "a.gif", "folder"])
def test_only_frames_first_to_last_are_read(name, tmp_path):
    path, frames = tmp_path / name, clip()
    write_video(path, frames, fps=8, format="png" if name == "folder" else "")
    for first, last in ((0, None), (0, 0), (5, 8), (11, None), (11, 11)):
        found = read_video(path, first, last)
        assert found.shape == frames[first : 12 if last is None else last + 1].shape
        assert np.abs(found.astype(int) - frames[first:][: len(found)]).mean() < 6
    for first, last in ((12, None), (5, 12), (0, 10**12)):
        with pytest.raises(ValueError, match=f"{name} .* it has 12 frames, numbered from 0; there"):
            read_video(path, first, last)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.mkv", "a.gif", "folder"])
@pytest.mark.parametrize("chosen", [(0, None), (2, 9), (7, None), (3, 4), (11, None)])
def test_frames_are_spread_from_first_to_last(name, chosen, tmp_path):
    path, frames, (first, last) = tmp_path / name, clip(), chosen
    write_video(path, frames, fps=8, format="png" if name == "folder" else "")
    part = frames[first : 12 if last is None else last + 1]
    for count in (5, 30):
        found, head = read_spread(path, count, (24, 32), *chosen)
        assert found.shape == (count, 24, 32, 3) and head.frames == len(part)
        index = np.rint(np.linspace(0, len(part) - 1, count)).astype(int)
        assert np.abs(found[:, -4:].mean((1, 2, 3)) - part[index, -4:].mean((1, 2, 3))).max() < 5


@pytest.mark.parametrize("size", [(16, 16), (48, 64), (96, 70), (20, 200), (13, 17)])
@pytest.mark.parametrize("name", ["a.mkv", "folder"])
def test_frames_cover_the_size_about_their_middle(name, size, tmp_path):
    y, x = np.mgrid[0:48, 0:64]
    picture = np.stack([x * 4, y * 5, 0 * x], -1).astype(np.uint8)
    write_video(
        tmp_path / name, np.stack([picture] * 2), fps=8, format="png" if name == "folder" else ""
    )
    found, _ = read_spread(tmp_path / name, 2, size)
    scale = max(size[0] / 48, size[1] / 64)
    x = ((np.arange(size[1]) - (size[1] - 1) / 2) / scale + 31.5) * 4
    y = ((np.arange(size[0]) - (size[0] - 1) / 2) / scale + 23.5) * 5
    inner = (slice(None), *(slice(n // 5 + 1, -n // 5 - 1) for n in size))
    apart = np.abs(found[0].astype(float) - np.stack(np.broadcast_arrays(x, y[:, None], 0), -1))
    assert apart[inner[1:]].max() < 10


@pytest.mark.slow
@pytest.mark.proof
def test_as_many_frames_as_there_are_though_not_as_packets(tmp_path, monkeypatch):
    """Packets may hold several frames or none."""
    write_video(tmp_path / "a.mkv", clip(), fps=8)
    count = decoding._count
    for off in (-4, 1, 5):
        monkeypatch.setattr(decoding, "_count", lambda path, off=off: (count(path)[0] + off, False))
        assert len(read_video(tmp_path / "a.mkv")) == 12
        found, head = read_spread(tmp_path / "a.mkv", 12, (48, 64))
        assert head.frames == 12 and np.abs(found.astype(int) - clip()).max() < 8
        with pytest.raises(ValueError, match="there is no 3 to 14"):
            read_spread(tmp_path / "a.mkv", 5, (48, 64), 3, 14)


def test_a_file_that_is_cut_off_is_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (12, 48, 64, 3), np.uint8)
    write_video(tmp_path / "a.mp4", noise, fps=8)
    whole = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    for read in (look, read_video, lambda path: read_spread(path, 3, (16, 16))):
        with pytest.raises(ValueError, match=r"cut off: \d of 12 frames are there; copy it again"):
            read(tmp_path / "a.mp4")


@pytest.mark.slow
def test_frames_far_apart_and_unequal_are_told(tmp_path, caplog, monkeypatch):
    write_video(tmp_path / "a.mkv", clip(), fps=8)
    Driving(str(tmp_path / "a.mkv")).flows(3, 32, 32)
    assert not caplog.text  # what lies between is looked at too
    monkeypatch.setattr(driving, "MOST_BETWEEN", 1)
    Driving(str(tmp_path / "a.mkv")).flows(3, 32, 32)
    assert "every 5.5th of 12 frames is used" in caplog.text
    caplog.clear()
    times = np.cumsum([0] + [40] * 6 + [200] * 5).tolist()
    encode(tmp_path / "v.mp4", clip(), times=times)
    assert look(tmp_path / "v.mp4").variable
    Driving(str(tmp_path / "v.mp4"), cuts="fresh").flows(12, 48, 64)
    assert "v.mp4: its frames last unequally long, but each counts as one" in caplog.text
    found, _ = read_spread(tmp_path / "v.mp4", 12, (48, 64))
    assert (np.diff(found[:, -4:].mean((1, 2, 3))) > 5).all()
    encode(tmp_path / "c.mp4", clip(), times=list(range(0, 480, 40)))
    assert not look(tmp_path / "c.mp4").variable


# ------------------------------------------------------------------------------------------ turned

TURNS = {
    "as it is": ((1, 0, 0, 1), lambda f: f),
    "clockwise": ((0, 1, -1, 0), lambda f: np.rot90(f, -1, (1, 2))),
    "counterclockwise": ((0, -1, 1, 0), lambda f: np.rot90(f, 1, (1, 2))),
    "upside down": ((-1, 0, 0, -1), lambda f: np.rot90(f, 2, (1, 2))),
    "mirrored": ((-1, 0, 0, 1), lambda f: f[:, :, ::-1]),
    "flipped": ((1, 0, 0, -1), lambda f: f[:, ::-1]),
    "transposed": ((0, 1, 1, 0), lambda f: f.transpose(0, 2, 1, 3)),
    "transposed back": ((0, -1, -1, 0), lambda f: np.rot90(f, 2, (1, 2)).transpose(0, 2, 1, 3)),
}


@pytest.mark.slow
@pytest.mark.parametrize("turn", TURNS)
def test_frames_are_turned_as_a_player_turns_them(turn, tmp_path):
    matrix, turned = TURNS[turn]
    path, frames = tmp_path / "phone.mov", clip(height=50, width=64)
    encode(path, frames, matrix=matrix, crf="10")
    shown = turned(frames)
    assert (look(path).height, look(path).width) == shown.shape[1:3]
    found = read_video(path)
    assert found.shape == shown.shape and np.abs(found.astype(int) - shown).mean() < 4
    spread, _ = read_spread(path, len(frames), shown.shape[1:3])
    assert np.abs(spread.astype(int) - shown).mean() < 4


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.parametrize("turn", TURNS)
def test_ffmpeg_turns_them_alike(turn, tmp_path):
    encode(tmp_path / "a.mp4", clip(4, 50, 64), matrix=TURNS[turn][0], crf="10")
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", tmp_path / "a.mp4"]
    subprocess.run([*command, "-c:v", "ffv1", tmp_path / "b.mkv"], check=True, timeout=60)
    shown, found = read_video(tmp_path / "b.mkv"), read_video(tmp_path / "a.mp4")
    assert shown.shape == found.shape and np.abs(shown.astype(int) - found).mean() < 3


def test_the_motion_of_an_upright_clip_is_the_one_that_is_seen(tmp_path):
    rng = np.random.default_rng(0)
    picture = np.asarray(
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).resize((300, 200))
    )
    right = np.stack([np.roll(picture, 3 * k, 1)[40:136, 60:188] for k in range(5)])
    encode(tmp_path / "phone.mp4", right, matrix=(0, 1, -1, 0), crf="10")
    forward, _ = Driving(str(tmp_path / "phone.mp4")).flows(5, 128, 96)
    assert abs(np.median(forward[..., 0])) < 0.2 and abs(np.median(forward[..., 1]) - 3) < 0.2


def test_what_is_shown_askew_is_named(tmp_path):
    encode(tmp_path / "a.mp4", clip(2), matrix=(0.8, 0.6, -0.6, 0.8))
    with pytest.raises(ValueError, match=r"a\.mp4 .* shown askew; encode it upright"):
        read_video(tmp_path / "a.mp4")


# ------------------------------------------------------------------------------------------ limits


@pytest.mark.parametrize("name", ["a.mkv", "a.gif", "folder"])
def test_limits_are_named(name, tmp_path, monkeypatch):
    path = tmp_path / name
    write_video(path, clip(), fps=8, format="png" if name == "folder" else "")
    for module, limit, value, message in (
        (decoding, "MOST_FRAMES", 11, "more than 11 frames; cut it"),
        (decoding, "MOST_PIXELS", 48 * 64 - 1, "64 x 48 are larger than the limit of 3071 pixels"),
        (reading, "MOST_BYTES", 12 * 48 * 64 * 3 - 1, "12 frames of 64 x 48 take .* GiB, more"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, limit, value)
            with pytest.raises(ValueError, match=f"{name} cannot be read as a video: .*{message}"):
                read_video(path)
    assert len(read_video(path)) == 12


def test_a_strip_that_would_be_scaled_to_a_giant_is_named(tmp_path):
    write_video(tmp_path / "a.mkv", np.zeros((2, 2, 2000, 3), np.uint8), fps=8)
    with pytest.raises(ValueError, match="2000 x 2 cannot cover 832 x 480; crop it"):
        Driving(str(tmp_path / "a.mkv")).flows(2, 480, 832)


def test_frames_of_unlike_size_are_named(tmp_path):
    for number, width in enumerate((64, 64, 62)):
        Image.new("RGB", (width, 48)).save(tmp_path / f"{number}.png")
    for read in (read_video, lambda path: read_spread(path, 3, (16, 16))):
        with pytest.raises(ValueError, match=r"2\.png is 62 x 48, the first frame 64 x 48"):
            read(tmp_path)


def test_deep_frames_keep_their_levels(tmp_path):
    level = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)
    Image.fromarray(level).save(tmp_path / "0.png")
    assert np.array_equal(read_video(tmp_path)[0, ..., 1], level >> 8)


def test_animated_webp_and_png(tmp_path):
    images = [Image.fromarray(frame) for frame in clip(5)]
    for name in ("a.webp", "a.png"):
        how = {"save_all": True, "append_images": images[1:], "lossless": True}
        images[0].save(tmp_path / name, **how)
        assert np.array_equal(read_video(tmp_path / name), clip(5))


def test_a_file_that_names_other_files_opens_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video(Path("b.mp4"), clip(3), fps=8)
    lists = ("ffconcat version 1.0\nfile b.mp4\n", "#EXTM3U\n#EXTINF:1,\nb.mp4\n#EXT-X-ENDLIST\n")
    for text in lists:
        Path("a.mp4").write_text(text)
        for read in (look, read_video, reading.read_comment):
            with pytest.raises(ValueError, match=r"a\.mp4 cannot be read as a video"):
                read("a.mp4")


PEAK = """
import re, sys
from accel.pipelines.motion.driving import Driving
from accel.pipelines.video_reading import look, read_spread, read_video
def peak():
    return int(re.search("VmHWM:(.*)kB", open("/proc/self/status").read())[1]) // 1024
read_spread(sys.argv[1], 2, (16, 16))
read_video(sys.argv[1], 0, 1)
before = peak()
{}
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.proof
def test_memory_follows_the_frames_that_are_used(tmp_path):
    """All of the clip takes 1,068 MiB."""
    path = tmp_path / "long.mp4"
    picture = np.zeros((1080, 1920, 3), np.uint8)
    picture[:, ::64] = 255
    frames = np.lib.stride_tricks.as_strided(picture, (180, *picture.shape), (0, *picture.strides))
    encode(path, frames, preset="ultrafast")
    assert path.stat().st_size < 2**21

    def peak(code):
        command = [sys.executable, "-c", PEAK.format(code), path]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    assert peak("read_video(sys.argv[1])") > 900  # the measure sees memory that is used
    assert peak("Driving(sys.argv[1]).flows(5, 240, 416)") < 150
    assert peak("Driving(sys.argv[1], 100, 140).flows(5, 240, 416)") < 150
    assert peak("read_video(sys.argv[1], 20, 29)") < 150
    assert peak("look(sys.argv[1])") < 50
