"""A path is what the next program takes it for: pipes, folders of frames, ``~``, odd characters."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from helpers.house import ROOT, sources

from accel.cli import COMMANDS, main
from accel.pipelines.batch import bounds
from accel.pipelines.batch.identity import job_id
from accel.pipelines.batch.items import Item, changed_since, items
from accel.pipelines.batch.jobfile import Invalid, read, read_jobs
from accel.pipelines.batch.output import Output
from accel.pipelines.job import Job, JobError
from accel.pipelines.load import TINY, tiny_folder
from accel.pipelines.motion.driving import Driving
from accel.pipelines.paths import user_path, with_home
from accel.plans import Plan

SIDECAR = {"peak_bytes": 1, "seconds": 1.0, "frames": 3, "memory": [], "comparison": None}
KINDS = {
    "yaml": "defaults: {steps: 3}\njobs:\n- prompt: a\n- {prompt: b, seed: 1}\n",
    "flow yaml": "{defaults: {steps: 3}, jobs: [{prompt: a}, {prompt: b, seed: 1}]}",
    "json": '{"defaults": {"steps": 3},\n "jobs": [{"prompt": "a"}, {"prompt": "b", "seed": 1}]}',
    "lines": '{"defaults": {"steps": 3}}\n\n{"prompt": "a"}\n{"prompt": "b", "seed": 1}\n',
    "csv": "prompt,seed,steps\na,,3\nb,1,3\n",
}
EXPECTED = [("a", 0, 3), ("b", 1, 3)]


def found(path: str | Path) -> list[tuple[str, int, int | None]]:
    jobs = list(read(path))
    assert not any(isinstance(job, Invalid) for job in jobs), jobs
    return [(job.prompt, job.seed, job.steps) for job in jobs if isinstance(job, Job)]


@contextmanager
def piped(text: str) -> Iterator[str]:
    """The path that a shell gives for ``<(…)``."""
    reader, writer = os.pipe()
    thread = threading.Thread(target=lambda: (os.write(writer, text.encode()), os.close(writer)))
    thread.start()
    try:
        yield f"/dev/fd/{reader}"
    finally:
        thread.join()
        os.close(reader)


@pytest.mark.parametrize("text", KINDS.values(), ids=KINDS)
def test_pipes_and_standard_input_are_read_once(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with piped(text) as path:
        assert found(path) == EXPECTED
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=fifo.write_text, args=(text,))
    writer.start()
    assert found(fifo) == EXPECTED
    writer.join()
    stdin = io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbf" + text.encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert [item.name for item in items(["-"]) if isinstance(item, Item)] == ["a-0", "b-1"]


def test_a_pipe_that_cannot_be_read_is_an_error_of_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with piped("\n") as path, pytest.raises(JobError):
        found(path)
    monkeypatch.setattr(bounds, "BOUNDS", bounds.Bounds(size=4))
    with piped(KINDS["csv"]) as path, pytest.raises(JobError, match="larger than"):
        found(path)
    with pytest.raises(JobError, match=r"cannot read job file .*: No such file"):
        found("/dev/fd/987")


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """A folder of PNG frames that ``accel render`` could have written."""
    job = Job("p", format="png", name="shot.mp4").resolved()
    pictures = np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3), np.uint8)
    output = Output(tmp_path, "shot.mp4", "png")
    output.write(pictures, job, job_id(job), SIDECAR)
    return output.video


def test_a_folder_of_frames_is_a_video(
    frames: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert frames.is_dir()
    assert main(["info", str(frames)]) == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == "p"
    assert main(["compare", str(frames), str(frames)]) == 0
    assert "inf dB" in capsys.readouterr().out
    assert main(["render", str(frames), "--out", str(tmp_path), "--dry-run"]) == 0
    assert f"skip  {frames}" in capsys.readouterr().out and not changed_since(frames)
    assert main(["render", str(tmp_path), "--out", str(tmp_path), "--dry-run"]) == 2
    assert "Is a directory" in capsys.readouterr().err


def test_a_folder_of_frames_drives_a_motion(frames: Path) -> None:
    pytest.importorskip("cv2", reason="motion from a video needs OpenCV")
    forward, backward = Driving(str(frames), cuts="fresh").flows(2, 64, 64)
    assert forward.shape == backward.shape == (1, 64, 64, 2)
    with pytest.raises(ValueError, match=r"holds no \.png frame"):
        Driving(str(frames.parent / ".")).flows(2, 64, 64)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    "key", ["plan", "model", "motion.flow", "motion.video", "motion.video.file",
            "motion.camera.depth", "strength.map"],
)  # fmt: skip
def test_home_is_expanded_in_every_path_of_a_job(key: str, home: Path) -> None:
    Plan.preset("fast").save(home / "plan")
    (home / "model").symlink_to(tiny_folder())
    (home / "file").write_text("content")
    path = {"plan": "plan", "model": "model"}.get(key, "file")
    (home / "jobs.yaml").write_text(
        "jobs: [{prompt: p, motion: {camera: {}}}]" if key == "strength.map"
        else "jobs: [{prompt: p}]"
    )  # fmt: skip
    (short,) = read("~/jobs.yaml", [(key, f"~/{path}")])
    (long,) = read(home / "jobs.yaml", [(key, str(home / path))])
    assert isinstance(short, Job) and short == long and job_id(short) == job_id(long)
    assert str(home / path) in json.dumps(short.to_dict())


def test_home_stays_what_it_is_in_words(home: Path) -> None:
    job = Job("~ a tilde", negative_prompt="~/x", name="~/y")
    assert (job.prompt, job.negative_prompt, job.name) == ("~ a tilde", "~/x", "~/y")
    motion = {"camera": {"pan": [1, 0]}}
    assert with_home(motion) is motion and user_path("a~/b") == Path("a~/b")
    deep: dict[str, object] = {}
    deep["motion"] = deep
    assert with_home(deep)  # no end, and no error


OPTIONS = {
    "render": ["x.yaml", "--out"], "motion": ["x.yaml", "--out"], "calibrate": ["x.yaml", "--out"],
    "ui": ["--out"],
}  # fmt: skip


@pytest.mark.parametrize("command", OPTIONS)
def test_home_is_expanded_in_options(command: str, home: Path) -> None:
    parser = argparse.ArgumentParser()
    import_module(f"accel.cli.{command}").add_arguments(parser)
    assert parser.parse_args([*OPTIONS[command], "~/a"]).out == home / "a"
    plain = [a for a in parser._actions if a.type is Path]
    assert not plain, "a path that a person types goes through user_path"


def test_home_is_expanded_where_a_command_takes_a_video_or_a_pattern(
    home: Path, frames: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", f"~/{frames.name}"]) == 0
    assert main(["compare", f"~/{frames.name}", str(frames)]) == 0
    assert main(["render", "~/sh*.mp4", "--out", "~/o", "--dry-run"]) == 0
    assert str(home / "o") in capsys.readouterr().out
    (home / "a.npy").write_text("")
    (home / "j.yaml").write_text("{defaults: {prompt: p}, glob: {motion.flow: ~/*.npy}}")
    (job,) = read("~/j.yaml")
    assert isinstance(job, Job) and job.motion == {"flow": str(home / "a.npy")}
    assert set(COMMANDS) >= set(OPTIONS) and job.model == TINY


JSON_ELSEWHERE = {
    "accel/core/strict_json.py": "the one place",
    "accel/calibration/table.py": "keeps numbers that are not finite",
    "accel/calibration/step_measurement.py": "keeps numbers that are not finite",
    "pipelines/inputs/hashes.py": "bytes that are hashed and never read",
    "pipelines/load_options.py": "a key, which nobody reads",
    "pipelines/placing.py": "an index that was read as JSON",
    "pipelines/loading/encoding_store.py": "names and numbers of a cache",
    "pipelines/ui/dropped_settings.py": "what was read as JSON",
    "pipelines/job_settings.py": "bytes that never change: they are inside rendered videos",
    "pipelines/batch/simulated.py": "a file that the project is built with",
    "pipelines/ui/settings.py": "values of jobs, which are finite",
    "pipelines/ui/tabs.py": "constants of a script",
    "kernels/measured.py": "times, which are finite; kernels import nothing of accel",
}


def test_json_is_printed_and_stored_strictly() -> None:
    pattern = re.compile(r"\bjson\.dumps?\(")
    names = {str(p.relative_to(ROOT)) for p in sources() if pattern.search(p.read_text("utf-8"))}
    assert names <= set(JSON_ELSEWHERE)


def test_paths_in_a_job_file_are_found_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The working directory comes first, as it always did."""
    folder, here = tmp_path / "jobs", tmp_path / "here"
    (folder / "flows").mkdir(parents=True)
    here.mkdir()
    for n in (1, 2):
        np.save(folder / "flows" / f"{n}.npy", np.zeros((4, 2, 64, 64), np.float32))
    (folder / "p.png").write_bytes(b"x")
    (folder / "jobs.yaml").write_text(
        "defaults: {prompt: see p.png, frames: 5}\n"
        "jobs:\n"
        "  - {image: p.png, motion: {camera: {depth: {file: flows/1.npy}}}}\n"
        "  - glob: {motion.flow: 'flows/*.npy'}\n"
    )
    monkeypatch.chdir(here)
    first, *others = read_jobs("../jobs/jobs.yaml")
    assert first.image == "../jobs/p.png" and first.prompt == "see p.png"
    assert first.motion == {"camera": {"depth": {"file": "../jobs/flows/1.npy"}}}
    assert [job.motion["flow"] for job in others] == [f"../jobs/flows/{n}.npy" for n in (1, 2)]
    (here / "p.png").write_bytes(b"y")
    assert read_jobs("../jobs/jobs.yaml")[0].image == "p.png"
