"""The canvas in the browser and the motion that is rendered: one pose, one set of limits.

Formulas that stand in JavaScript as well as in Python are run by Node.js and compared.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import Any

import numpy as np
import pytest

from accel.pipelines.motion.camera import Camera
from accel.pipelines.motion.layers import EASINGS, Key, Layer
from accel.pipelines.ui import drawing
from accel.pipelines.ui.drawing import CAMERA, STILL
from accel.pipelines.ui.settings import Limits

gradio = pytest.importorskip(
    "gradio", reason="gradio is not installed (pip install 'gradio>=6.31')"
)
with_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")

ASK = """
const {layers, times, keys, further} = JSON.parse(require('fs').readFileSync(0, 'utf8'));
const outline = (layer, t) =>
  layer.polygon.map(posed(poseAt(layer, t), pivotOf(layer.polygon)));
console.log(JSON.stringify({
  easings: Object.keys(EASE),
  scale: SCALE,
  outlines: layers.map((layer) => times.map((t) => outline(layer, t))),
  keys: further.map((key) => keyed(keys, key)),
}));
"""


def static(name: str) -> str:
    from accel.pipelines.ui.tabs import STATIC

    return (STATIC / name).read_text()


def in_javascript(**data: Any) -> dict[str, Any]:
    data = {"layers": [], "times": [], "keys": [], "further": [], **data}
    done = subprocess.run(
        ["node", "-e", static("canvas-pose.js") + ASK],
        input=json.dumps(data), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def some_layer(rng: np.random.Generator, times: list[float]) -> dict[str, Any]:
    keys = [
        {
            "at": at, "move": rng.uniform(-40, 40, 2).tolist(),
            "scale": float(np.exp(rng.uniform(-3, 3))), "rotate": float(rng.uniform(-500, 500)),
            "easing": str(rng.choice([*EASINGS])),
        }
        for at in times
    ]  # fmt: skip
    return {"polygon": rng.uniform(0, 64, (rng.integers(3, 7), 2)).tolist(), "keys": keys}


@with_node
def test_a_layer_is_drawn_where_it_is_rendered() -> None:
    rng, times = np.random.default_rng(0), [0.0, 1e-3, 0.25, 0.3, 0.5, 0.75, 0.9, 1.0]
    starts = ([1.0], [0.5], [0.0, 1.0], [0.25, 0.75], [0.0, 0.3, 0.5, 0.9], [0.1, 0.2, 1.0])
    layers = [some_layer(rng, start) for start in starts for _ in range(4)]
    drawn = in_javascript(layers=layers, times=times)["outlines"]
    for layer, outlines in zip(layers, drawn, strict=True):
        rendered = Layer(**layer)
        for t, outline in zip(times, outlines, strict=True):
            assert np.allclose(outline, rendered.outline(t), rtol=1e-9, atol=1e-9), (layer, t)


@with_node
def test_the_canvas_sets_only_keyframes_that_a_layer_takes() -> None:
    pose = {"move": [1, 2], "rotate": 725, "easing": "in"}
    keys = [{**pose, "at": 0.25, "scale": 1}, {**pose, "at": 1, "scale": 1}]
    further = [{**pose, "at": at, "scale": s} for at, s in ((0.5, 1e-9), (0.25, 1e9), (0, 1.5))]
    found = in_javascript(keys=keys, further=further)
    low, high = found["scale"]
    assert [[key["at"] for key in some] for some in found["keys"]] == [
        [0.25, 0.5, 1], [0.25, 1], [0, 0.25, 1],
    ]  # fmt: skip
    assert [found["keys"][0][1]["scale"], found["keys"][1][0]["scale"]] == [low, high]
    for some in found["keys"]:
        Layer(((0, 0), (1, 0), (1, 1)), keys=tuple(some))  # takes them all
    for beyond in (0.99 * low, 1.01 * high):
        with pytest.raises(ValueError, match=r"scale must be a number from 0\.01 to 100"):
            Key(1.0, scale=beyond)


@with_node
def test_easings_are_the_same_in_the_menu_the_canvas_and_the_motion() -> None:
    menu = re.search(r'class="easing">(.*?)</select>', static("canvas.html"))
    assert menu is not None
    assert re.findall(r"<option>(.*?)</option>", menu[1]) == list(EASINGS)
    assert in_javascript()["easings"] == list(EASINGS)


def test_the_canvas_knows_the_limits_of_the_server() -> None:
    from accel.pipelines.ui.tabs import CANVAS, custom, gr

    limits = drawing.canvas_limits(Limits(polygons=7))
    with gr.Blocks():
        script = custom("", CANVAS, constants={"LIMITS": limits}).js_on_load
    assert script.startswith('const LIMITS = {"polygons": 7, "cells": 64};\n')
    assert set(re.findall(r"LIMITS\.(\w+)", script)) == set(limits)


@pytest.mark.parametrize("name", CAMERA)
def test_every_slider_stays_within_what_a_camera_takes(name: str) -> None:
    slider = CAMERA[name]
    assert slider.low < slider.still < slider.high
    for end in (slider.low, slider.high):
        motion = drawing._camera({**STILL, name: end})
        assert motion is not None and Camera(**motion) != Camera()
    with pytest.raises(ValueError):
        drawing._camera({**STILL, name: float("nan")})
