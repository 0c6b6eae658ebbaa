"""What a browser may send: allow-lists, limits, metadata from anywhere, and drawings."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from accel.config import AttentionConfig
from accel.core.quality import psnr
from accel.pipelines.batch.comparison import frame_psnr
from accel.pipelines.batch.jobfile import read_jobs
from accel.pipelines.job import Job, JobError
from accel.pipelines.job_settings import settings_text
from accel.pipelines.motion.flows import make_flow
from accel.pipelines.pictures import difference
from accel.pipelines.preview import decode, denoised
from accel.pipelines.ui import charts, compare, drawing
from accel.pipelines.ui.dropped_settings import settings_of
from accel.pipelines.ui.settings import (
    Limits,
    Models,
    Presets,
    job_file,
    job_from_form,
)
from accel.pipelines.video import write_video
from accel.plans import Plan

FORM = {"prompt": "a red circle", "model": "tiny (embedded)", "preset": "balanced", "seed": 1}
SIZE = (64, 48, 9)
STUDIO: Any = SimpleNamespace(limits=Limits())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "tiny"}, "not offered here"),
        ({"model": "/etc"}, "not offered here"),
        ({"model": "owner/name"}, "not offered here"),
        ({"prompt": "  "}, "prompt is empty"),
        ({"prompt": "x" * 2001}, "prompt length is 2001, at most 2000"),
        ({"name": "é" * 41}, "name length in bytes is 82"),
        ({"width": 100_000}, "width is 100000, at most 4096"),
        ({"width": 4096, "height": 4096, "frames": 1025}, "width x height x frames"),
        ({"steps": 10**6}, "steps is 1000000, at most 200"),
        ({"steps": 2.5}, "steps must be a whole number"),
        ({"seed": None}, "seed is empty"),
        ({"seed": -1}, "seed must be"),
        ({"guidance": "much"}, "guidance must be a number"),
        ({"preset": "warp"}, "preset must be one of"),
    ],
)
def test_bad_forms_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError, match=message):
        job_from_form({**FORM, **change}, Models(), Limits())


def test_a_form_is_a_job() -> None:
    form = {**FORM, "preset": "none", "frames": 5.0, "width": None, "unknown": "dropped"}
    assert job_from_form(form, Models(), Limits()) == Job(
        "a red circle", seed=1, preset=None, frames=5
    )


def test_models_are_named_on_the_command_line(tmp_path: Path) -> None:
    for name in ("a", "b"):
        folder = tmp_path / name / "wan"
        folder.mkdir(parents=True)
        (folder / "model_index.json").write_text("{}")
    models = Models.of([str(tmp_path / "a" / "wan"), str(tmp_path / "b" / "wan"), "owner/name"])
    assert list(models.by_label) == ["tiny (embedded)", "wan", "wan'", "owner/name"]
    with pytest.raises(FileNotFoundError, match="no model"):
        Models.of(["/nowhere"])


def test_plans_are_named_on_the_command_line(tmp_path: Path) -> None:
    plan = Plan("fast", AttentionConfig("int6"))
    for name in ("a.json", "b.json"):
        plan.save(tmp_path / name)
    models = Models.of([], [tmp_path / "a.json", tmp_path / "b.json"])
    assert models.accelerations[-2:] == ["fast'", "fast''"] and "fast" in models.accelerations
    job = job_from_form({**FORM, "preset": "fast'"}, models, Limits())
    assert job.preset is None and job.accel_plan() == plan
    assert models.acceleration(job) == "fast'" and Models().acceleration(job) == "planned"
    assert models.acceleration(Job("x", preset=None)) == "none"
    (tmp_path / "a.json").write_text('{"attenton": {}}')
    with pytest.raises(ValueError, match="did you mean 'attention'"):
        Models.of([], [tmp_path / "a.json"])


# ------------------------------------------------------------------------------ settings of a file


def video(path: Path, comment: str) -> Path:
    write_video(path, np.zeros((2, 16, 16, 3), np.uint8), fps=8, comment=comment)
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif", ".mkv"])
def test_settings_come_back(tmp_path: Path, suffix: str) -> None:
    keys = [{"at": 1, "move": [9, 0], "scale": 1.5}]
    motion = {"version": 2, "drag": [{"polygon": [[1, 1], [9, 1], [9, 9]], "keys": keys}]}
    job = Job("a <b>red</b> circle", seed=7, steps=9, motion=motion, strength=0.3)
    found, notes = settings_of(
        video(tmp_path / f"x{suffix}", settings_text(job)), Models(), Limits()
    )
    assert found == job and not notes
    sketch = drawing.sketch_of(found)
    assert sketch["layers"][0]["keys"] == [{**keys[0], "rotate": 0, "easing": "linear"}]


def test_files_and_paths_in_settings_are_left_out(tmp_path: Path) -> None:
    motion = {"camera": {"pan": [1, 0], "depth": "/etc/passwd"}, "video": {"file": "/etc/passwd"}}
    settings = json.loads(settings_text(Job("x"))) | {"motion": motion}
    settings |= {"strength": {"map": "/etc/passwd"}}
    settings |= {"plan": "/etc/passwd", "model": "/root/secret"}
    settings |= {"image": "/etc/passwd", "references": ["/etc/passwd"], "fit": "pad"}
    settings |= {"arguments": {"face_video": {"video": "/etc/passwd"}}, "loras": [{"id": "a/b"}]}
    found, notes = settings_of(video(tmp_path / "x.mp4", json.dumps(settings)), Models(), Limits())
    assert "/etc" not in json.dumps(found.to_dict() | {"model": ""}) and len(notes) == 9
    assert Models().label(found.model) is None


@pytest.mark.parametrize(
    "comment",
    [
        "", "null", "[1]", "{}", "{" * 5000, "[" * 100_000, '{"accel_job": 1}', "\x00\ufffe",
        '{"accel_job": 1, "prompt": "x", "steps": 1e999}',
        '{"accel_job": 1, "prompt": {"a": 1}}', '{"accel_job": 1, "prompt": "x", "seed": -1}',
        '{"accel_job": 99, "prompt": "x"}', '{"accel_job": 1, "prompt": "x", "__class__": 1}',
        '{"accel_job": 1, "prompt": "x", "width": 999999}',
        '{"accel_job": 1, "prompt": "x", "motion": ["camera"]}',
        '{"accel_job": 1, "prompt": "' + "x" * 300_000 + '"}',
    ],
)  # fmt: skip
def test_hostile_comments_are_refused(tmp_path: Path, comment: str) -> None:
    with pytest.raises(JobError):
        settings_of(video(tmp_path / "x.gif", comment), Models(), Limits())


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    for name in ("x.mp4", "x.gif", "x.txt"):
        (tmp_path / name).write_bytes(b"\x00\x00\x00\x18ftypmp42" + b"A" * 100)
        with pytest.raises(JobError):
            settings_of(tmp_path / name, Models(), Limits())


def test_presets_and_job_files(tmp_path: Path) -> None:
    presets, job = Presets(tmp_path / "ui" / "presets.json", Limits(presets=2)), Job("x: y", seed=2)
    presets.save("one", job)
    presets.save("two", Job("z", motion={"camera": {"pan": (1.0, 0.0)}}))
    with pytest.raises(JobError, match="number of presets is 3"):
        presets.save("three", job)
    with pytest.raises(JobError, match="needs a name"):
        presets.save("\n", job)
    presets.delete("two")
    assert presets.all() == {"one": job}
    odd = {"bad": {"prompt": 1}, "worse": [], "huge": {"prompt": "x", "guidance": 10**400},
           "\ud800": {"prompt": "x"}, "half": {"prompt": "\udfff"}}  # fmt: skip
    (tmp_path / "ui" / "presets.json").write_text(json.dumps(odd))
    assert presets.all() == {}
    presets.save("one", job)  # what cannot be read now is not lost by that
    assert presets.all() == {"one": job}
    presets.delete("worse")
    kept = json.loads((tmp_path / "ui" / "presets.json").read_text())
    assert set(kept) == {*odd, "one"} - {"worse"} and kept["bad"] == odd["bad"]
    for content in ("{", "[]", "[" * 100_000):
        (tmp_path / "ui" / "presets.json").write_text(content)
        assert presets.all() == {}
        presets.save("one", job)
        assert presets.all() == {"one": job}
        assert (tmp_path / "ui" / "presets.json.damaged").read_text() == content
    (tmp_path / "jobs.yaml").write_text(job_file([job, Job("b", preset=None)]))
    assert read_jobs(tmp_path / "jobs.yaml") == [job, Job("b", preset=None)]
    assert yaml.safe_load(job_file([job]))["jobs"] == [{"prompt": "x: y", "seed": 2}]


# ---------------------------------------------------------------------------------------- drawings

BOX = [[10, 10], [30, 10], [30, 30], [10, 30]]
KEY = {"at": 1.0, "move": [16.0, 8.0], "scale": 1.0, "rotate": 0.0, "easing": "linear"}
LAYER = {"polygon": BOX, "keys": [KEY]}


def test_a_drawing_is_a_motion() -> None:
    sketch = {"layers": [{"polygon": BOX, "keys": [KEY], "z": 0}], "brush": None}
    drawn = drawing.read_motion(STUDIO, sketch, drawing.STILL, None, 0.1, SIZE)
    assert drawn is not None and drawn["strength"] == 0.1 and "camera" not in drawn["motion"]
    flow, _ = make_flow(drawn["motion"], frames=9, height=48, width=64)
    assert torch.allclose(flow[0, :, 20, 20], torch.tensor([2.0, 1.0]))
    assert flow[0, :, 40, 50].abs().max() == 0
    assert 'src="data:image/webp;base64,' in drawing.flow_preview(drawn["motion"], SIZE, 8.0)
    camera = {**drawing.STILL, "pan_x": 1.0, "zoom": 1.02}
    both = drawing.read_motion(STUDIO, sketch, camera, None, 0.1, SIZE)
    assert both is not None and both["motion"]["camera"] == {"pan": [1.0, 0.0], "zoom": 1.02}
    shown = drawing.flow_preview(both["motion"], SIZE, 8.0)
    assert 'alt="the motion, frame by frame: 1 polygon, 1 keyframe, camera"' in shown
    assert drawing.camera_of(Job("x", motion=both["motion"])) == camera
    assert drawing.read_motion(STUDIO, None, drawing.STILL, None, 0.1, SIZE) is None


def test_a_preview_is_the_motion_made_small() -> None:
    motion = {"camera": {"pan": [4.0, 0.0]}, "drag": [{"polygon": BOX, "by": [8.0, 0.0]}]}
    small = drawing._scaled(motion, (0.5, 0.5))
    assert small["camera"]["pan"] == [2.0, 0.0] and small["drag"][0]["by"] == [4.0, 0.0]
    assert small["drag"][0]["polygon"][1] == [15.0, 5.0]


def test_a_drawing_is_stretched_with_the_picture(tmp_path: Path) -> None:
    studio: Any = SimpleNamespace(limits=Limits(), state=tmp_path)
    brush = {"columns": 8, "rows": 4, "cells": [1.0] + [None] * 31}
    sketch = {"layers": [LAYER], "brush": brush}
    drawn = drawing.read_motion(studio, sketch, drawing.STILL, None, 0.25, SIZE)
    assert drawn is not None and drawing.fitted(studio, drawn, SIZE) is drawn
    wide = drawing.fitted(studio, drawn, (128, 48, 17))
    (layer,) = wide["motion"]["drag"]
    assert layer["polygon"][1] == [60.0, 10.0] and layer["keys"][0]["move"] == [32.0, 8.0]
    gamma = np.load(wide["strength"]["map"])
    assert gamma.shape == (1, 48, 128) and gamma[0, :12, :16].min() == 1
    assert gamma[0, :, 16:].max() == 0.25 and wide["size"] == [128, 48, 17]
    pan = {"motion": {"camera": {"pan": [1.0, 1.0]}}, "strength": 0.5, "size": [64, 64, 17]}
    fitted = drawing.fitted(studio, pan, (32, 64, 17))
    assert fitted["motion"] == {"camera": {"pan": [0.5, 1.0]}} and fitted["strength"] == 0.5


def test_painted_strength_is_a_map(tmp_path: Path) -> None:
    studio: Any = SimpleNamespace(limits=Limits(), state=tmp_path)
    cells = [None] * 32
    cells[0] = 1.0
    sketch = {"layers": [], "brush": {"columns": 8, "rows": 4, "cells": cells}}
    camera = {**drawing.STILL, "pan_x": 1.0}
    drawn = drawing.read_motion(studio, sketch, camera, None, 0.25, SIZE)
    assert drawn is not None
    gamma = np.load(drawn["strength"]["map"])
    assert gamma.shape == (1, 48, 64)
    assert gamma[0, :12, :8].min() == 1 and gamma[0, 12:].max() == 0.25


@pytest.mark.parametrize(
    "sketch",
    [
        {"layers": [{}]}, {"layers": "abc"}, {"layers": [{"polygon": BOX, "keys": [{}]}]},
        {"layers": [{"polygon": [[0, 0], [1, 1]], "keys": [KEY]}]},
        {"layers": [{"polygon": [[0, "x"]] * 3, "keys": [KEY]}]},
        {"layers": [{"polygon": BOX, "keys": [{**KEY, "scale": 1e9}]}]},
        {"layers": [{"polygon": BOX, "keys": [{**KEY, "move": [float("nan"), 0]}]}]},
        {"layers": [{"polygon": BOX, "keys": [{**KEY, "easing": "x"}]}]},
        {"layers": [{"polygon": BOX, "keys": [KEY]}] * 33},
        {"layers": [{"polygon": BOX * 100, "keys": [KEY]}]},
        {"layers": [LAYER], "brush": {"columns": 9999, "rows": 1, "cells": [1]}},
        {"layers": [LAYER], "brush": {"cells": ["x"]}},
    ],
)  # fmt: skip
def test_bad_drawings_are_refused(sketch: dict[str, Any]) -> None:
    with pytest.raises(JobError):
        drawing.read_motion(STUDIO, sketch, drawing.STILL, None, 0.1, SIZE)


# ------------------------------------------------------------------------------------ measurements


def test_preview_estimates_the_clean_latents() -> None:
    """Exact for two points of one straight path from noise to data."""
    clean, noise = torch.randn(1, 4, 2, 3, 3), torch.randn(1, 4, 2, 3, 3)

    def at(sigma: float) -> torch.Tensor:
        return (1 - sigma) * clean + sigma * noise

    assert torch.allclose(denoised(at(0.6), 0.6, (at(0.9), 0.9)), clean, atol=1e-5)
    assert denoised(at(0.6), 0.6, None) is not None
    with pytest.raises(ValueError, match="not a picture"):
        decode(SimpleNamespace(vae=SimpleNamespace(config=SimpleNamespace(z_dim=4))), clean[0, 0])


def test_numbers_per_frame() -> None:
    a = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    b = a.copy()
    b[1, 0, 0] ^= 16
    assert frame_psnr(a, b) == [100.0, psnr(a[1:2], b[1:2]), 100.0]
    assert difference(a, b)[0].max() == 0 and difference(a, b)[1, 0, 0].tolist() == [128] * 3


def test_heat_map_shows_what_ran() -> None:
    sites = [
        {"name": "a", "ran": {"int4 by cpu": 8}, "kept": {}, "recomputed": {"not finite": 1},
         "steps": [[2, "int8"], [1, "full+int4"], [6, "int4"]]},
        {"name": "b", "ran": {}, "kept": {"too <short>": 10}, "steps": [[10, "full"]]},
    ]  # fmt: skip
    rows = charts.precision_rows({"sites": sites})
    assert rows[0][1] == ["int8"] * 2 + ["mixed"] + ["int4"] * 6 + ["not called"]
    assert rows[1][1] == ["full"] * 10 and "computed again in full: 1" in rows[0][2]
    picture = charts.heat_map(rows)
    assert picture.count("<rect") == 5 and "too &lt;short&gt;" in picture
    reused = {"sites": sites, "rehash": {"keys": [0, 1, 5], "steps": 10}}
    steps, first, _ = charts.precision_rows(reused)
    assert steps[1] == ["computed"] * 2 + ["reused"] * 3 + ["computed"] + ["reused"] * 4
    assert first[1] == ["int8"] * 2 + ["reused"] * 3 + ["int4"] + ["reused"] * 4
    assert "does not say" in charts.heat_map(charts.precision_rows({"sites": [{"name": "old"}]}))
    few = {
        "name": "blocks.0.attn2.to_k",
        "ran": {},
        "kept": {"fewer than 128 rows": 9},
        "steps": [],
    }
    shown = compare._ran({"sites": sites, "layers": [{**sites[0], "name": "blocks.0.ff"}, few]})
    assert "linear layers" in shown and "blocks.0.ff" in shown and "to_k" not in shown
    assert "linear layers" not in compare._ran({"sites": sites, "layers": [few]})
    assert charts.psnr_plot([30.0]).count("<circle") == 1
    assert charts.psnr_plot([30.0, 31.0, 32.0]).count('class="curve"') == 2
    assert charts.memory_bars([]).startswith("<p")
