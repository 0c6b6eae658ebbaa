"""Jobs with pictures and videos through ``accel render``, from folders of tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.killing import hashes, survive
from helpers.tiny_pipelines import RECIPES
from helpers.tiny_recipe import job_with, write_files

from accel.cli import main

pytestmark = pytest.mark.proof


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_files(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function that gives the folder of a tiny model."""
    folders: dict[str, str] = {}

    def folder(name: str) -> str:
        if name not in folders:
            path = tmp_path_factory.mktemp("model")
            RECIPES[name]().save_pretrained(path)
            folders[name] = str(path)
        return folders[name]

    return folder


def write(path: Path, *jobs: dict[str, Any], **more: Any) -> str:
    path.write_text(json.dumps({"jobs": list(jobs), **more}))
    return str(path)


def test_dry_run_and_run_refuse_the_same_before_anything_is_loaded(
    saved: Any, paths: dict[str, str], tmp_path: Path, capsys: Any
) -> None:
    job = {"prompt": "x", "model": saved("wan 2.1 i2v"), "width": 32, "height": 32, "frames": 5}
    wrong = [
        ({}, "WanImageToVideoPipeline needs image"),
        ({"image": "nothing.png"}, "image nothing.png does not exist"),
        ({"image": paths["CLIP"]}, "is a folder; give one picture"),
        ({"image": paths["PICTURE"], "control": paths["EDGES"]}, "takes no control"),
        ({"image": paths["PICTURE"], "arguments": {"shift": 3}}, "takes no argument 'shift'"),
    ]
    jobs = [{**job, **more, "name": f"job{n}"} for n, (more, _) in enumerate(wrong)]
    command = ["render", write(tmp_path / "jobs.json", *jobs), "--out", str(tmp_path / "out")]
    assert main([*command, "--dry-run"]) == 1
    dry = [line for line in capsys.readouterr().err.splitlines() if line.startswith("invalid")]
    assert main([*command, "--engine", "inline"]) == 1
    ran = [line for line in capsys.readouterr().err.splitlines() if line.startswith("job '")]
    assert [f"invalid: {line}" for line in ran] == dry and len(ran) == len(wrong)
    for line, (_, message) in zip(ran, wrong, strict=True):
        assert message in line


def test_count_makes_jobs_with_seeds_that_follow(
    saved: Any, paths: dict[str, str], tmp_path: Path, capsys: Any
) -> None:
    job = {"model": saved("wan 2.1 i2v"), "image": paths["PICTURE"], "count": 3, "seed": 7}
    path = write(tmp_path / "jobs.json", job)
    command = ["render", path, "--out", str(tmp_path), "--dry-run", "--progress", "json"]
    assert main(command) == 0
    planned = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [p["settings"]["seed"] for p in planned] == [7, 8, 9]
    assert main([*command, "--set", "count=2", "--set", "seed=1"]) == 0
    planned = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [p["settings"]["seed"] for p in planned] == [1, 2]


@pytest.mark.proof
def test_kill_9_and_resume_give_the_same_bytes_for_a_picture_that_moves(
    saved: Any, paths: dict[str, str], tmp_path: Path
) -> None:
    job = job_with(RECIPES["wan 2.1 i2v"], paths, model=saved("wan 2.1 i2v"))
    jobs = [{**job, "steps": 4, "seed": n, "name": f"job{n}", "format": "lossless",
             "preset": ["lossless", "fast"][n % 2]} for n in range(4)]  # fmt: skip
    queue = Path(write(tmp_path / "jobs.json", *jobs))
    undisturbed = tmp_path / "undisturbed"
    assert main(["render", str(queue), "--out", str(undisturbed), "--engine", "inline"]) == 0
    counts = survive(queue, tmp_path / "out", 4, 3, "--checkpoint-steps", "1", "--engine", "local")
    assert hashes(tmp_path / "out") == hashes(undisturbed) and counts["killed in a run"] > 0
