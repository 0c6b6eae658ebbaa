"""Pictures, videos and arguments of a job: read, brought to a size, refused, counted in its id."""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny_recipe import write_files
from PIL import Image

from accel.pipelines.batch.identity import job_id
from accel.pipelines.inputs.binding import bind, check_call
from accel.pipelines.inputs.keeping import kept
from accel.pipelines.inputs.listing import as_json, lines
from accel.pipelines.inputs.media import read_frames, read_picture
from accel.pipelines.inputs.resizing import fitted, how_fitted
from accel.pipelines.inputs.taken import takes_of
from accel.pipelines.job import Job, JobError, make_job
from accel.pipelines.job_settings import job_from_settings, settings_text
from accel.pipelines.limits import StoredLimits
from accel.pipelines.video import encode


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_files(tmp_path_factory.mktemp("inputs"))


def saved(image: Image.Image, path: Path, **options: Any) -> str:
    image.save(path, **options)
    return str(path)


def halves(mode: str = "RGB") -> Image.Image:
    """Left black, right white, 8 x 4."""
    image = Image.new(mode, (8, 4))
    image.paste("white" if mode != "L" else 255, (4, 0, 8, 4))
    return image


# ------------------------------------------------------------------------------------------ reading


def test_a_photo_is_turned_as_its_camera_was(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    for name in ("a.jpg", "a.png", "a.webp"):
        image = read_picture("image", saved(halves(), tmp_path / name, exif=exif))
        assert image.size == (4, 8) and image.mode == "RGB"
        assert np.asarray(image)[0, 0, 0] < 9 and np.asarray(image)[-1, 0, 0] > 246


def test_what_is_transparent_becomes_white_and_in_a_mask_black(tmp_path: Path) -> None:
    clear = saved(Image.new("RGBA", (2, 2), (9, 9, 9, 0)), tmp_path / "clear.png")
    assert (np.asarray(read_picture("image", clear)) == 255).all()
    assert (np.asarray(read_picture("mask", clear, mask=True)) == 0).all()
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([1, 2, 3, 200, 100, 50])
    path = saved(palette, tmp_path / "palette.png", transparency=0)
    assert np.asarray(read_picture("image", path))[0, 0].tolist() == [200, 100, 50]


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "I;16", "F", "LA"])
def test_every_mode_has_its_levels(mode: str, tmp_path: Path) -> None:
    levels = {"I;16": (0, 65535, np.uint16), "F": (0, 1, np.float32)}
    if mode in levels:
        low, high, kind = levels[mode]
        array = np.repeat(np.array([[low] * 4 + [high] * 4], kind), 4, 0)
        image = Image.fromarray(array)
    else:
        image = halves("RGB").convert("L" if mode == "LA" else mode).convert(mode)
    found = np.asarray(read_picture("image", saved(image, tmp_path / "x.tif")))
    assert found.shape == (4, 8, 3) and found[0, 0, 0] < 3 and found[0, -1, 0] > 252


def test_sixteen_bits_of_color_are_halved_not_cut_off(tmp_path: Path) -> None:
    rows = b"".join(b"\0" + struct.pack(">6H", *(40000,) * 6) for _ in range(2))

    def chunk(kind: bytes, data: bytes) -> bytes:
        end = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + end

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "deep.png").write_bytes(data)
    assert np.asarray(read_picture("image", str(tmp_path / "deep.png"))).max() == 40000 >> 8


def test_the_three_fits() -> None:
    image = Image.fromarray(np.arange(8, dtype=np.uint8)[None].repeat(4, 0) * 30)
    assert np.asarray(fitted(image, (4, 4), "crop"))[0].tolist() == [60, 90, 120, 150]
    padded = np.asarray(fitted(image, (8, 8), "pad"))
    assert padded[:2].max() == 0 == padded[6:].max() and padded[2, -1] == 210
    assert fitted(image, (3, 9), "stretch").size == (3, 9)
    assert how_fitted((8, 4), (4, 4), "crop") == "cropped from 8 x 4 to 4 x 4"
    assert how_fitted((8, 4), (4, 2), "pad") == "scaled from 8 x 4 to 4 x 2"
    assert how_fitted((8, 4), (8, 4), "pad") == how_fitted((8, 4), None, "crop") == "as it is"


def test_a_video_is_read_as_far_as_it_is_used(tmp_path: Path, monkeypatch: Any) -> None:
    from accel.pipelines import video_reading

    levels = np.linspace(20, 230, 30).astype(np.uint8)[:, None, None, None]
    encode(tmp_path / "a.mkv", np.broadcast_to(levels, (30, 32, 48, 3)).copy(), fps=8, comment="",
           format="lossless")  # fmt: skip
    real, decoded = video_reading.decoding.frames, []

    def counted(*arguments: Any, **more: Any) -> Any:
        for frame in real(*arguments, **more):
            decoded.append(frame.shape)
            yield frame

    monkeypatch.setattr(video_reading.decoding, "frames", counted)
    frames = read_frames("video", str(tmp_path / "a.mkv"), 4, (16, 16), "crop")
    assert [f.size for f in frames] == [(16, 16)] * 4 and decoded == [(16, 24, 3)] * 4
    assert abs(np.asarray(frames[1]).mean() - levels[1].item()) < 2
    padded = read_frames("video", str(tmp_path / "a.mkv"), 1, (16, 16), "pad")[0]
    assert np.asarray(padded)[0].max() == 0 and np.asarray(padded)[8].min() > 10


# ------------------------------------------------------------------------------------------ refused


def bomb(path: Path) -> str:
    """A PNG of a few hundred bytes that says it has 40000 x 40000 pixels."""
    head = struct.pack(">IIBBBBB", 40000, 40000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + head
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
        + b"\0\0\0\0IDAT\x35\xaf\x06\x1e\0\0\0\0IEND\xaeB`\x82"
    )  # fmt: skip
    return str(path)


def hostile(folder: Path) -> dict[str, tuple[str, str]]:
    """Files that no picture can come of, and what is said."""
    good = saved(halves(), folder / "good.png")
    content = Path(good).read_bytes()
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    whole = Path(saved(Image.fromarray(noise), folder / "noise.png")).read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "both.png").write_bytes(content + b"PK\x03\x04" + b"x" * 40 + b"PK\x05\x06")
    jpeg = Path(saved(halves(), folder / "good.jpg")).read_bytes()
    (folder / "archive.jpg").write_bytes(
        jpeg + b"PK\x03\x04" + b"x" * 9 + b"PK\x05\x06" + bytes(18)
    )
    (folder / "phone.jpg").write_bytes(jpeg + b"\0\0\0\x18ftypmp42" + b"x" * 99)
    assert read_picture("image", str(folder / "phone.jpg")).size == (8, 4)
    (folder / "page.png").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (folder / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "gone.png").symlink_to(folder / "nothing")
    os.mkfifo(folder / "pipe.png")
    moving = [halves(), halves().rotate(180)]
    moving[0].save(folder / "two.gif", save_all=True, append_images=moving[1:])
    return {
        "cut.png": ("cut.png", "is damaged or cut off"),
        "empty.png": ("empty.png", "is no picture of a known format"),
        "both.png": ("both.png", "bytes behind the end of the picture"),
        "archive.jpg": ("archive.jpg", "bytes behind the end of the picture"),
        "page.png": ("page.png", "is no picture of a known format"),
        "script.png": ("script.png", "is no picture of a known format"),
        "device.png": ("device.png", "is no regular file"),
        "pipe.png": ("pipe.png", "is no regular file"),
        "gone.png": ("gone.png", "does not exist"),
        "missing.png": ("missing.png", "does not exist"),
        "folder": (".", "is a folder; give one picture"),
        "two.gif": ("two.gif", "holds 2 pictures; give it as video"),
        "bomb": (Path(bomb(folder / "bomb.png")).name, "scale it down"),
    }


def test_files_that_no_picture_can_come_of(tmp_path: Path) -> None:
    for name, (file, message) in hostile(tmp_path).items():
        with pytest.raises(ValueError, match=message) as error:
            read_picture("image", str(tmp_path / file))
        told = str(error.value)
        assert told.startswith("image ") and "\n" not in told, name


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "tif", "bmp", "ppm"])
def test_a_damaged_picture_is_read_or_refused_in_a_line(suffix: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (9, 13, 3), np.uint8))
    content = np.frombuffer(Path(saved(image, tmp_path / f"a.{suffix}")).read_bytes(), np.uint8)
    refused = 0
    for _ in range(40):
        damaged = content.copy()
        damaged[random.integers(0, min(len(damaged), 120), 3)] = random.integers(0, 256, 3)
        (tmp_path / f"b.{suffix}").write_bytes(damaged.tobytes()[: random.integers(9, 900)])
        try:
            assert read_picture("image", str(tmp_path / f"b.{suffix}")).mode == "RGB"
        except ValueError as error:
            refused += 1
            assert str(error).startswith("image ") and "\n" not in str(error)
    assert refused > 0


def test_a_video_that_is_none(tmp_path: Path) -> None:
    hostile(tmp_path)
    for name in ("page.png", "device.png", "pipe.png", "missing.mp4"):
        with pytest.raises(ValueError, match=r"^video "):
            read_frames("video", str(tmp_path / name), 4, None, "crop")
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "0.png").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="is no regular file"):
        read_frames("video", str(tmp_path / "frames"), 4, None, "crop")


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("WanImageToVideoPipeline", {}, "WanImageToVideoPipeline needs image: a picture to start"),
    ("WanAnimatePipeline", {"image": "PICTURE", "control": "POSE"},
     "WanAnimatePipeline needs arguments.face_video"),
    ("StableDiffusionInpaintPipeline", {"image": "PICTURE"},
     "StableDiffusionInpaintPipeline needs mask"),
    ("WanPipeline", {"image": "PICTURE"}, "WanPipeline takes no image or other picture"),
    ("WanVACEPipeline", {"image": "PICTURE"},
     "takes no image (it takes video, mask, references)"),
    ("StableDiffusionControlNetPipeline", {"image": "PICTURE"},
     "takes no image beside what its control follows, which is control: FILE"),
    ("WanImageToVideoPipeline", {"image": "PICTURE", "arguments": {"guidance_scale2": 3}},
     "takes no argument 'guidance_scale2' (did you mean 'guidance_scale_2'?)"),
    ("WanImageToVideoPipeline", {"image": "PICTURE", "arguments": {"num_frames": 3}},
     "num_frames is the job's own 'frames'"),
    ("WanImageToVideoPipeline", {"image": "PICTURE", "arguments": {"image": "PICTURE"}},
     "image is the job's own 'image'"),
    ("WanImageToVideoPipeline", {"image": "PICTURE", "arguments": {"generator": 3}},
     "generator is said by 'seed' of the job"),
    ("WanImageToVideoPipeline", {"image": "PICTURE", "arguments": {"num_videos_per_prompt": 3}},
     "num_videos_per_prompt is said by 'count' of the job"),
    ("WanImageToVideoPipeline", {"image": "PICTURE", "arguments": {"output_type": "pt"}},
     "output_type is set by accel itself"),
    ("WanImageToVideoPipeline", {"image": "PICTURE", "arguments": {"prompt_embeds": 3}},
     "prompt_embeds takes a tensor, which a job cannot hold"),
    ("WanVideoToVideoPipeline", {"video": "CLIP", "arguments": {"strength": "strong"}},
     "strength must be number, got 'strong'"),
    ("WanVideoToVideoPipeline", {"video": "CLIP", "strength": 0.6},
     "is arguments: {strength: 0.6}"),
    ("WanVideoToVideoPipeline", {"video": "CLIP", "motion": {"camera": {"pan": [1, 0]}}},
     "a motion would be lost"),
    ("WanVideoToVideoPipeline", {"video": "CLIP", "frames": 21},
     "has 12 frames, the job asks for 21; ask for frames: 9"),
    ("WanAnimatePipeline",
     {"image": "PICTURE", "control": "POSE", "arguments": {"face_video": 3}},
     "face_video must name a file, such as {video: FILE}, got 3"),
    ("WanAnimatePipeline",
     {"image": "PICTURE", "control": "POSE", "arguments": {"face_video": "no.mp4"}},
     "arguments.face_video no.mp4 does not exist"),
    ("HunyuanVideoFramepackPipeline",
     {"image": "PICTURE", "arguments": {"sampling_type": "vanila"}}, "did you mean 'vanilla'"),
    ("StableDiffusionImg2ImgPipeline", {"image": "PICTURE", "guidance": 3, "frames": 1,
                                        "negative_prompt": "x", "video": "CLIP"},
     "takes no video (it takes image)"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "job", "message"), WRONG, ids=range(len(WRONG)))
def test_what_a_call_does_not_take_is_said_in_a_line(
    name: str, job: dict[str, Any], message: str, paths: dict[str, str]
) -> None:
    from helpers.tiny_recipe import with_files

    taken = takes_of(name)
    assert not isinstance(taken, str)
    with pytest.raises(ValueError) as error:
        made = make_job({"prompt": "x", "model": "./none", **with_files(job, paths)})
        check_call(taken, made)
        bind(taken, made, time=4, stand_in=True)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ({"mask": "m.png"}, "mask needs an image or a video"),
        ({"image": 3}, "image must be text, got 3"),
        ({"image": ""}, "image must be the path of a file"),
        ({"image": "a\0b"}, "without NUL"),
        ({"references": "x.png"}, "references must be a list of files"),
        ({"references": [3]}, "references 0 must be text"),
        ({"arguments": [1]}, "arguments must be a mapping"),
        ({"image": "x.png", "fit": "corp"}, "did you mean 'crop'"),
        ({"image": "x.png", "prompt": None, "sead": 3}, "did you mean 'seed'"),
    ],
)
def test_jobs_that_cannot_be(job: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError, match=message):
        make_job({"prompt": "x", **job})


def test_a_video_decides_the_frames_where_the_job_leaves_them_open(paths: dict[str, str]) -> None:
    job = make_job({"model": "./none", "prompt": "x", "video": paths["CLIP"], "width": 16,
                    "height": 16})  # fmt: skip
    for name, count in (("WanVideoToVideoPipeline", None), ("WanVACEPipeline", 9)):
        taken = takes_of(name)
        assert not isinstance(taken, str)
        got = bind(taken, job, time=4)
        assert len(got.arguments["video"]) == 9 and got.inputs[0].frames == 9
        assert got.arguments.get("num_frames") == count


# --------------------------------------------------------------------------------------------- jobs


def test_content_counts_and_not_the_path(tmp_path: Path) -> None:
    first, second = (saved(halves(), tmp_path / f"{n}.png") for n in "ab")
    other = saved(halves().rotate(180), tmp_path / "c.png")
    ids = [job_id(Job("x", image=path)) for path in (first, second, other)]
    assert ids[0] == ids[1] != ids[2] and job_id(Job("x")) not in ids
    assert job_id(Job("x", fit="pad")) == job_id(Job("x"))
    assert job_id(Job("x", image=first, fit="pad")) != ids[0]
    for key, change in (("references", [first]), ("control", first), ("video", first)):
        assert job_id(Job("x", **{key: change})) not in ids
    argument = [job_id(Job("x", arguments={"a": {"image": p}})) for p in (first, second, other)]
    assert argument[0] == argument[1] != argument[2]
    long = Job("x", arguments={"prompt_2": "word " * 700})
    assert job_id(long) == job_id(Job(**long.to_dict()))


def test_settings_hold_the_inputs_and_are_read_back(tmp_path: Path) -> None:
    path = saved(halves(), tmp_path / "a.png")
    job = Job("", image=path, references=[path], fit="pad", arguments={"eta": 0.5})
    assert job_from_settings(settings_text(job, "k"), "here") == (job, "k")
    assert "image" not in settings_text(Job("x")) and "arguments" not in settings_text(Job("x"))


def test_a_job_without_a_prompt_is_named_by_its_picture_and_home_is_expanded() -> None:
    job = Job(image="~/my boat.png", references=["~/a.png"], seed=3, arguments=None)
    assert job.file_name == "my-boat-3" and job.arguments == {}
    assert str(job.image).startswith("/") and job.references[0].startswith("/")


def test_inputs_are_kept_under_their_content(tmp_path: Path, paths: dict[str, str]) -> None:
    path = saved(halves(), tmp_path / "my photo.png")
    job = Job("x", image=path, video=paths["CLIP"], references=[path],
              arguments={"face_video": {"video": paths["FACE"]}, "mode": "animate"})  # fmt: skip
    again = kept(kept(job, tmp_path / "out"), tmp_path / "out")
    copies = sorted(p.name for p in (tmp_path / "out" / "inputs").iterdir())
    assert len(copies) == 3 and again.image == again.references[0] != path
    assert Path(str(again.image)).name.endswith("-my-photo.png")
    assert again.arguments["mode"] == "animate" and job_id(again) == job_id(job)
    with pytest.raises(ValueError, match="does not exist"):
        kept(Job("x", image="no.png"), tmp_path / "out")


def test_a_dry_run_looks_at_the_files_of_a_model_that_is_not_here(tmp_path: Path) -> None:
    limits = StoredLimits()
    here = saved(halves(), tmp_path / "a.png")
    assert not limits.why_not(Job("x", model="owner/name", image=here))
    for key in ("image", "video", "control", "references"):
        value = ["no.png"] if key == "references" else "no.png"
        job = Job("x", model="owner/name", **{key: value})
        assert "no.png does not exist" in limits.why_not(job)
    job = Job("x", model="owner/name", load={"pipeline": "WanImageToVideoPipeline"})
    assert "WanImageToVideoPipeline needs image" in limits.why_not(job)
    limits.close()


def test_what_a_job_may_say_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    from accel.cli import main

    assert main(["render", "--list-arguments", "WanAnimatePipeline"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"control +-> pose_video .* needed", out)
    assert re.search(r"face_video +video file +needed", out)
    assert re.search(r"segment_frame_length +whole number +default 77", out)
    assert "latents" not in out and "generator" not in out
    assert main(["render", "--list-arguments", "tiny", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["pipeline"] == "WanPipeline" and listed["keys"]["frames"] == "num_frames"
    assert listed["arguments"]["max_sequence_length"]["default"] == 512
    for model, message in (
        ("WanImageToVideoPipelin", "did you mean 'WanImageToVideoPipeline'"),
        ("owner/name", "give the class"), ("./no", "no model './no'"),
    ):  # fmt: skip
        assert main(["render", "--list-arguments", model]) == 2
        assert message in capsys.readouterr().err
    for words, missing in (([], "JOBFILE"), (["a.yaml"], "--out DIR")):
        with pytest.raises(SystemExit):
            main(["render", *words])
        assert f"required: {missing}" in capsys.readouterr().err


@pytest.mark.proof
def test_every_pipeline_of_diffusers_can_be_asked() -> None:
    import diffusers

    names = [n for n in dir(diffusers) if n.endswith("Pipeline")]
    found = {name: takes_of(name) for name in names}
    known = [taken for taken in found.values() if not isinstance(taken, str)]
    assert len(known) > 150
    for taken in known:
        assert taken == pickle.loads(pickle.dumps(taken))
        assert not {"generator", "latents", "return_dict"} & set(taken.arguments)
        json.dumps(as_json(taken), allow_nan=False)
        assert lines(taken)
