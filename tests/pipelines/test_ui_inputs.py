"""Pictures and videos that are given to the page, models of an allow-list, and LoRAs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.studio import SIDECAR
from PIL import Image

from accel.pipelines.batch.output import Output
from accel.pipelines.job import Job, JobError
from accel.pipelines.job_settings import settings_text
from accel.pipelines.load import TINY
from accel.pipelines.ui import inputs
from accel.pipelines.ui.arguments_form import chosen
from accel.pipelines.ui.dropped_settings import settings_of
from accel.pipelines.ui.offers import chosen_loras, known_loras, read_offers
from accel.pipelines.ui.settings import Limits, Models, job_from_form
from accel.pipelines.ui.studio import Studio
from accel.pipelines.video import write_video

gradio = pytest.importorskip(
    "gradio", reason="gradio is not installed (pip install 'gradio>=6.31')"
)
RNG = np.random.default_rng(0)


def picture(path: Path, width: int = 12, height: int = 8, **options: Any) -> Path:
    Image.fromarray(RNG.integers(0, 256, (height, width, 3), np.uint8)).save(path, **options)
    return path


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Any]:
    from accel.pipelines.ui.page import Page

    file = tmp_path / "style.safetensors"
    file.write_bytes(b"")
    studio = Studio(tmp_path / "out", Models(loras={"style": file}))
    yield Page(studio)
    studio.close()


# ------------------------------------------------------------------------------------ pictures


def test_only_the_pixels_of_a_picture_are_kept(tmp_path: Path) -> None:
    clean = picture(tmp_path / "a.png")
    polyglot = tmp_path / "b.png"
    polyglot.write_bytes(clean.read_bytes() + b"PK\x03\x04<script>alert(1)</script>")
    kept = inputs.keep_picture(polyglot, tmp_path / "kept", Limits())
    assert b"script" not in kept.read_bytes()
    assert kept == inputs.keep_picture(clean, tmp_path / "kept", Limits())
    assert np.array_equal(np.asarray(Image.open(kept)), np.asarray(Image.open(clean)))


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tiff", "gif"])
def test_every_format_is_kept_as_png(tmp_path: Path, suffix: str) -> None:
    kept = inputs.keep_picture(picture(tmp_path / f"a.{suffix}"), tmp_path / "kept", Limits())
    with Image.open(kept) as image:
        assert (image.format, image.size, image.mode) == ("PNG", (12, 8), "RGB")


def test_a_photo_is_turned_as_a_viewer_turns_it_and_alpha_stays(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    kept = inputs.keep_picture(picture(tmp_path / "a.jpg", exif=exif), tmp_path, Limits())
    assert Image.open(kept).size == (8, 12)
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "mask.png")
    kept = inputs.keep_picture(tmp_path / "mask.png", tmp_path / "kept", Limits())
    assert Image.open(kept).mode == "RGBA"


def test_what_is_no_picture_or_too_large_is_told_without_a_path(tmp_path: Path) -> None:
    files = {"text.png": b"hello", "cut.png": picture(tmp_path / "x.png").read_bytes()[:60],
             "page.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>"}  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(JobError, match="cannot be read as a picture") as error:
            inputs.keep_picture(tmp_path / name, tmp_path / "kept", Limits())
        assert str(tmp_path) not in str(error.value)
    bomb = tmp_path / "bomb.png"
    Image.new("1", (20000, 20000)).save(bomb)
    long = tmp_path / "long.png"
    Image.new("1", (17000, 2)).save(long)
    for file, limits, why in (
        (bomb, Limits(), "exceeds limit"), (long, Limits(), "17000 x 2"),
        (long, Limits(upload=10), "larger than 0 MiB"),
    ):  # fmt: skip
        with pytest.raises(JobError, match=why):
            inputs.keep_picture(file, tmp_path / "kept", limits)
    assert not (tmp_path / "kept").exists()


def test_a_video_goes_on_from_its_last_frame(tmp_path: Path) -> None:
    frames = RNG.integers(0, 256, (3, 16, 16, 3), np.uint8)
    write_video(tmp_path / "a.png", frames, format="png", fps=8.0, comment="")
    kept = inputs.keep_last_frame(tmp_path / "a.png", tmp_path / "kept")
    assert np.array_equal(np.asarray(Image.open(kept)), frames[-1])
    with pytest.raises(JobError, match="cannot be read"):
        inputs.keep_last_frame(kept.with_name("none.mp4"), tmp_path)


def test_the_form_says_what_a_job_starts_from(tmp_path: Path) -> None:
    file = str(picture(tmp_path / "a.png"))
    job = Job("x", image=file, references=[file, file], control=str(tmp_path / "<no>.mp4"))
    given = inputs.of_job(job)
    assert set(given) == {"image", "references", "control"} and inputs.of_job(Job("x")) == {}
    text = inputs.listed(given)
    assert "picture;" in text and "2 reference pictures" in text
    assert "control: missing" in text and "<no>" not in text
    assert inputs.listed({}) == "" and inputs.preview(given, "mask") is None
    assert inputs.preview(given, "image").size == (12, 8)
    assert inputs.preview({"image": str(tmp_path)}, "image") is None


# ---------------------------------------------------------------------------------------- page


def test_a_picture_goes_into_the_job_and_out_again(page: Any, tmp_path: Path) -> None:
    from accel.pipelines.ui.input_handlers import InputHandlers

    on, kept, tab = InputHandlers(page.studio, page.parts), page.parts.kept, page.parts.generate
    taken = on.take_picture(key="image", file=str(picture(tmp_path / "a.png")), given={})
    given = taken[kept.given]
    assert Path(given["image"]).parent == page.studio.state / "inputs"
    values = {"prompt": "x", "preset": "none", "model": "tiny (embedded)", "seed": 1}
    form = page.on._filled_in(False, None, None, given, ["style"], 0.5, [], **values)
    job = job_from_form(form, page.studio.models, page.studio.limits)
    lora = {"file": str(page.studio.models.loras["style"]), "weight": 0.5}
    assert job.image == given["image"] and job.loras == [lora]
    filled = page.on.into_form(job)
    assert set(page.on.filled()) == set(filled)
    assert filled[kept.given] == given and filled[tab.inputs["image"]].size == (12, 8)
    assert (filled[tab.loras], filled[tab.lora_weight]) == (["style"], 0.5)
    assert on.take_picture(key="image", file=None, given=given)[kept.given] == {}
    with pytest.warns(UserWarning, match="cannot be read as a picture"):
        refused = on.take_picture(key="mask", file=str(tmp_path / "style.safetensors"), given=given)
    assert refused[kept.given] == given and refused[tab.inputs["mask"]] is None


def test_a_card_gives_its_last_frame(page: Any) -> None:
    frames, job = RNG.integers(0, 256, (3, 16, 16, 3), np.uint8), Job("x", format="png")
    Output(page.studio.out, "done", "png").write(frames, job, "1", {**SIDECAR, "frames": 3})
    changes = page.on.act_gallery(SimpleNamespace(act="continue", name="done"), count=24)
    assert Path(changes[page.parts.kept.given]["image"]).is_file()
    assert page.on.act_gallery(SimpleNamespace(act="continue", name="?"), count=24) == gradio.skip()


def test_what_names_a_file_is_left_out_of_a_dropped_video(tmp_path: Path) -> None:
    files = {key: "/etc/passwd" for key in ("image", "last_image", "video", "mask", "control")}
    lists = {"references": ["/etc/passwd"], "loras": [{"file": "/etc/passwd"}]}
    job = Job("x", **files, **lists, arguments={"face_video": "/etc/passwd", "eta": 0.5})
    path = tmp_path / "x.png"
    frames = np.zeros((1, 8, 8, 3), np.uint8)
    write_video(path, frames, format="png", fps=8.0, comment=settings_text(job))
    found, notes = settings_of(path, Models(), Limits())
    assert found == Job("x", arguments={"eta": 0.5}) and len(notes) == len(files) + len(lists) + 1
    assert "passwd" not in json.dumps(found.to_dict())


# ----------------------------------------------------------------------------------- arguments


def test_the_form_offers_what_else_a_pipeline_takes(page: Any) -> None:
    tab, tiny = page.parts.generate, "tiny (embedded)"
    filled = page.on.fill_arguments(model=tiny, arguments=[["guidance_scale_2", "", "", 3]])
    table = {row[0]: row[1:] for row in filled[tab.arguments]}
    assert table["guidance_scale_2"] == ["number", "", "3"]
    assert table["max_sequence_length"][1:] == ["512", ""]
    assert not {"prompt", "latents", "generator", "attention_kwargs"} & set(table)
    assert page.on.refill_arguments(model=tiny, arguments=[]) == gradio.skip()
    values = {"prompt": "x", "preset": "none", "model": tiny, "seed": 1}
    form = page.on._filled_in(False, None, None, {}, [], 1.0, filled[tab.arguments], **values)
    job = job_from_form(form, page.studio.models, page.studio.limits)
    assert job.arguments == {"guidance_scale_2": 3}
    assert page.on.into_form(job)[tab.arguments] == filled[tab.arguments]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["face_video", "", "", "/etc/passwd"], "'face_video' is not offered"),
        (["attention_kwargs", "", "", "{a: 1}"], "'attention_kwargs' is not offered"),
        (["eta", "", "", "x" * 3000], "at most 2000"),
        (["guidance_scale_2", "", "", "[1, 2]"], "one number or text"),
    ],
)
def test_no_argument_names_a_file(page: Any, row: list[Any], message: str) -> None:
    with pytest.raises(JobError, match=message):
        chosen([row], page.studio.takes("tiny (embedded)"))


# -------------------------------------------------------------------------------------- offers


def test_models_of_an_allow_list_bring_their_way_of_loading(tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    path.write_text("Wan in 8 bits: {model: a/wan, load: {weights: int8}}\nWan: a/wan\n")
    models = Models.of([], allowed=path)
    assert list(models.by_label) == ["tiny (embedded)", "Wan in 8 bits", "Wan"]
    form = {"prompt": "x", "preset": "none", "model": "Wan in 8 bits", "seed": 1}
    job = job_from_form({**form, "load": {"weights": "nf4"}}, models, Limits())
    assert (job.model, job.load) == ("a/wan", {"weights": "int8"})
    assert models.label(job.model, job.load) == "Wan in 8 bits"
    assert models.label("a/wan") == "Wan" and models.label(TINY) == "tiny (embedded)"
    assert models.label("a/wan", {"weights": "nf4"}) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2]", "needs LABEL: MODEL"),
        ("Wan: {modle: a/b}", "did you mean 'model'"),
        ("Wan: {model: a/b, load: {weights: int3}}", "weights must be one of"),
        ("Wan: {load: {}}", "model must be text"),
        ("Wan: [a", "line"),
        (f"{'x' * 81}: a/b", "1 to 80 characters"),
        ("", "offers nothing"),
    ],
)
def test_a_wrong_allow_list_names_its_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(content)
    with pytest.raises(JobError, match=message):
        read_offers(path)


def test_loras_are_those_of_the_folder_alone(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / f"{name}.safetensors").write_bytes(b"")
    known = Models.of([], loras=tmp_path).loras
    assert list(known) == ["a", "b"]
    chosen = chosen_loras(["b"], 0.5, known)
    assert known_loras(chosen, known) == (["b"], 0.5, [])
    with pytest.raises(JobError, match="not offered here"):
        chosen_loras(["../c"], 1.0, known)
    names, weight, notes = known_loras([*chosen, {"file": "/x/y.safetensors"}], known)
    assert (names, weight, len(notes)) == (["b"], 0.5, 1)
    with pytest.raises(JobError, match="no folder with"):
        Models.of([], loras=tmp_path / "none")
