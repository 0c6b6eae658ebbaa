"""What a model takes: one record, and dry run, check and run give the same reasons from it."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
from helpers.pipelines import animatediff, cogvideox, hunyuan, images, ltx, mochi, svd, wan

from accel import families
from accel.cli import main
from accel.pipelines.generate import check
from accel.pipelines.job import Job, JobError
from accel.pipelines.limits import StoredLimits, of_model, of_pipe
from accel.pipelines.load import load

BUILDERS = {
    "wan": lambda: wan(16, 8), "hunyuan": hunyuan, "cogvideox": cogvideox, "ltx": ltx,
    "animatediff": animatediff, "images": images, "svd": svd,
}  # fmt: skip
PAN = {"camera": {"pan": [1, 0]}}


def stored(pipe: Any, folder: Path) -> str:
    """A folder with the configurations of a pipeline, and nothing else."""
    parts = {n: p for n, p in pipe.components.items() if n in ("vae", "unet", "transformer") and p}
    for name, part in parts.items():
        part.save_config(folder / name)
    index = {"_class_name": type(pipe).__name__}
    index |= {name: ["diffusers", type(part).__name__] for name, part in parts.items()}
    (folder / "model_index.json").write_text(json.dumps(index))
    return str(folder)


@pytest.mark.parametrize("name", BUILDERS)
def test_the_record_of_a_folder_is_that_of_the_loaded_pipeline(name: str, tmp_path: Path) -> None:
    pipe = BUILDERS[name]()
    assert of_model(stored(pipe, tmp_path)) == of_pipe(pipe)
    assert of_pipe(pipe).unknown == ""


def test_the_embedded_model() -> None:
    limits = of_model("tiny")
    assert limits == of_pipe(load("tiny"))
    size = limits.size
    assert size and (size.space, size.time, size.most_side, size.most_frames) == (16, 4, 512, 253)


@pytest.mark.parametrize("name", families.pipelines())
def test_what_is_known_of_a_pipeline_is_what_it_checks(name: str) -> None:
    cls, known = getattr(diffusers, name), families.pipelines()[name]
    taken = inspect.signature(cls.__call__).parameters
    assert known.images == ("num_frames" not in taken) or {"video", "control"} & {*known.needs}
    if known.needs:
        return
    accepts = {n: accepted(cls, n) for n in range(8, 257, 8)}
    multiples = [n for n, fine in accepts.items() if fine]
    assert multiples == [n for n in accepts if n % known.grid == 0]


def accepted(cls: Any, side: int) -> bool:
    """Whether a pipeline without parts, or its check with a warning, takes a side of 256 x side."""
    pipe = cls.__new__(cls)
    vars(pipe).update(vae_scale_factor=8, patch_size=1, vae_scale_factor_spatial=8)
    part = SimpleNamespace(config=SimpleNamespace(patch_size=(1, 2, 2)))
    vars(pipe).update(transformer=part, transformer_2=None)
    pipe.register_to_config(boundary_ratio=None, is_distilled=False)
    wanted, call = (inspect.signature(f).parameters for f in (cls.check_inputs, cls.__call__))
    usual = {n: p.default for n, p in call.items() if p.default is not p.empty}
    asked = {n: usual.get(n) for n, p in wanted.items() if n in usual or p.default is p.empty}
    asked.pop("self", None)
    log = []
    module = inspect.getmodule(cls)
    warn, module.logger = module.logger, type("", (), {"warning": lambda self, t: log.append(t)})()
    try:
        pipe.check_inputs(**{**asked, "prompt": "x", "height": 256, "width": side})
    except ValueError as error:
        log.append(str(error))
    finally:
        module.logger = warn
    assert all("divisible" in text for text in log), log
    return not log


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"width": 72}, "width must be a multiple of 16 for this model, got 72; the nearest is 80"),
    ({"height": 40}, "height must be a multiple of 16 .* got 40"),
    ({"width": 8}, "the nearest is 16"),
    ({"width": 528}, "width must be at most 512 for this model"),
    ({"frames": 16}, "frames must be a multiple of 4 plus 1 .* got 16; the nearest is 17"),
    ({"frames": 2}, "the nearest is 1"),
    ({"frames": 257, "width": 16, "height": 16}, "frames must be at most 253"),
    ({"format": "gif", "fps": 60}, "fps of a gif must be a number from 0.002 to 50, got 60"),
    ({"format": "gif", "fps": 0.001}, "fps of a gif .* got 0.001"),
    ({"motion": PAN, "frames": 1}, "motion needs 2 frames or more, got frames 1"),
    ({"motion": {"video": "nope.mp4"}}, "driving video nope.mp4 does not exist"),
    ({"motion": {"video": "JOBS"}}, "cannot be read as a video"),
    ({"motion": {"flow": "nope.npy"}}, "flow file nope.npy does not exist"),
    ({"motion": {"flow": "SMALL"}}, "the job needs"),
    ({"motion": {"camera": {"orbit": [1, 0], "depth": "no.png"}}}, "no.png does not exist"),
    ({"motion": {"camera": {"dolly": 0.4}}}, "runs into the scene"),
    ({"motion": PAN, "strength": {"map": "nope.npy"}}, "strength map nope.npy does not exist"),
]


def test_dry_run_and_run_refuse_the_same_for_the_same_reason(tmp_path: Path, capsys: Any) -> None:
    files = {"JOBS": str(tmp_path / "jobs.json"), "SMALL": str(tmp_path / "small.npy")}
    np.save(files["SMALL"], np.zeros((1, 2, 4, 4), np.float32))
    text = json.dumps([{"prompt": "x", "name": str(n), **job} for n, (job, _) in enumerate(WRONG)])
    for name, path in files.items():
        text = text.replace(f'"{name}"', json.dumps(path))
    Path(files["JOBS"]).write_text(json.dumps({"jobs": json.loads(text)}))
    command = ["render", files["JOBS"], "--out", str(tmp_path / "out")]
    assert main([*command, "--dry-run"]) == 1
    dry = capsys.readouterr()
    assert main([*command, "--engine", "inline"]) == 1
    ran = capsys.readouterr()
    reasons = [line for line in ran.err.splitlines() if line.startswith("job '")]
    assert [f"invalid: {reason}" for reason in reasons] == dry.err.splitlines()[: len(WRONG)]
    assert len(reasons) == len(WRONG) and "Traceback" not in ran.err and not dry.out
    for reason, (_, expected) in zip(reasons, WRONG, strict=True):
        assert re.search(expected, reason), reason


def test_a_model_that_is_not_here_is_not_called_green(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "jobs.json"
    path.write_text(json.dumps({"jobs": [{"prompt": "x", "model": "owner/name", "width": 63}]}))
    assert main(["render", str(path), "--out", str(tmp_path), "--dry-run"]) == 0
    assert "limits unknown: config not local" in capsys.readouterr().out
    pipe = animatediff()
    pipe.__class__ = type("NovelPipeline", (type(pipe),), {})
    assert "NovelPipeline is in no family" in of_model(stored(pipe, tmp_path)).unknown


@pytest.mark.parametrize(
    ("build", "job", "message"),
    [
        (images, {"frames": 5}, "StableDiffusionPipeline makes single images"),
        (svd, {"frames": 4}, "StableVideoDiffusionPipeline needs image: a picture to start"),
        (animatediff, {"frames": 64}, "frames must be at most 8 for this model"),
        (mochi, {"width": 40, "height": 48}, "width must be a multiple of 16"),
        (ltx, {"width": 48, "height": 64}, "width must be a multiple of 32"),
        (ltx, {"frames": 12}, "multiple of 8 plus 1 .* got 12"),
    ],
)
def test_jobs_that_a_loaded_pipeline_cannot_take(build: Any, job: Any, message: str) -> None:
    with pytest.raises(JobError, match=message):
        check(build(), Job("x", model="./none", **job))


def test_a_pipeline_of_no_family_is_asked_itself() -> None:
    class Odd(diffusers.StableDiffusionPipeline):
        def check_inputs(self, prompt: str, height: int, width: int) -> None:
            if width != 2 * height:
                raise ValueError(f"width must be twice the height, got {width} and {height}")

    class Hungry(diffusers.StableDiffusionPipeline):
        def __call__(self, sketch: Any, prompt: str, **rest: Any) -> None:
            pass

    pipe = images()
    pipe.__class__ = Odd
    check(pipe, Job("x", width=32, height=16, model="./none"))
    with pytest.raises(JobError, match="Odd refuses the job: width must be twice"):
        check(pipe, Job("x", width=32, height=32, model="./none"))
    pipe.__class__ = Hungry
    with pytest.raises(JobError, match=r"Hungry needs arguments\.sketch; add arguments: "):
        check(pipe, Job("x", model="./none"))


def test_a_motion_is_checked_once_for_many_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    from accel.pipelines import limits

    asked, real = [], limits.prepare
    monkeypatch.setattr(limits, "prepare", lambda *a: asked.append(a) or real(*a))
    stored_limits = StoredLimits()
    for seed in range(3):
        for motion in (PAN, {"video": "nope.mp4"}):
            why = stored_limits.why_not(Job("x", seed=seed, motion=motion).resolved())
            assert ("nope.mp4" in why) == (motion is not PAN)
    assert len(asked) == 2
