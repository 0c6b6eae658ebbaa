"""The widgets of the page, tab by tab, by name.

What they are wired to is in ``page.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accel.pipelines.job import FORMATS
from accel.pipelines.ui import (
    arguments_form,
    compare,
    drawing,
    forecast,
    forms,
    inputs,
    plan_tab,
    view,
)
from accel.pipelines.ui.parts import (
    CompareTab,
    GenerateTab,
    Kept,
    MotionTab,
    Parts,
    PlanTab,
    QueueTab,
)
from accel.pipelines.ui.studio import Studio
from accel.pipelines.ui.widgets import Field, Limit, Picture, gr

STATIC = Path(view.__file__).parent / "static"
MORE = 24  # cards of the gallery at first, and that "more" adds
CANVAS = "canvas-pose.js canvas.js canvas-keys.js"
VIDEOS = [".mp4", ".webm", ".gif", ".png", ".mkv"]
DRIVING = ["video", ".gif", ".mkv", ".png"]


def build(studio: Studio) -> Parts:
    """Make all widgets, inside a ``gr.Blocks``."""
    drawn, sketch, planned = (gr.State(None) for _ in range(3))
    shape, seen = gr.State(drawing.FIRST), gr.State((-1, -1))
    kept = Kept(drawn, sketch, planned, gr.State({}), shape, seen)
    with gr.Tabs() as tabs:
        with gr.Tab("Generate", id="generate"):
            generate = _generate(studio)
        with gr.Tab("Motion", id="motion"):
            motion = _motion(studio)
        with gr.Tab("Compare", id="compare"):
            compared = _compare()
        with gr.Tab("Queue and gallery", id="queue"):
            queue = _queue(studio)
        with gr.Tab("Plan", id="plan") as last:
            plan = _plan(studio)
    return Parts(tabs, kept, generate, motion, compared, queue, last, plan)


FOLLOW = [
    ("Warped noise", "noise"), ("Dragged picture", "dual-clock"), ("Both", "both"),
    ("Control video", "control"),
]  # fmt: skip


def custom(
    value: Any, script: str = "", template: str = "", constants: Mapping[str, Any] | None = None,
    **options: Any,
) -> gr.HTML:  # fmt: skip
    """Make HTML of the server's, with scripts of ours; several names with a space make one.

    ``constants``: what the script knows from the server.
    """
    if script:
        given = (f"const {name} = {json.dumps(v)};\n" for name, v in (constants or {}).items())
        files = ((STATIC / name).read_text() for name in script.split())
        options["js_on_load"] = "".join([*given, *files])
    if template:
        options["html_template"] = (STATIC / template).read_text()
    return gr.HTML(value, elem_classes="ui-html", apply_default_css=False, **options)


def _generate(studio: Studio) -> GenerateTab:
    """Make the form on the left; what runs and the newest video on the right."""
    with gr.Row():
        with gr.Column(scale=5, min_width=300):
            fields = _fields(studio)
            with gr.Row(equal_height=True):
                go = gr.Button("Generate", variant="primary", elem_id="go", scale=3)
                both = gr.Button("Generate with reference", elem_id="go-both", scale=4)
            ahead = custom(forecast.WAIT, elem_id="forecast")
            with gr.Accordion("Presets and job file", open=False):
                preset = gr.Dropdown(list(studio.presets.all()), value=None, label="Preset",
                                     elem_id="preset", allow_custom_value=True)  # fmt: skip
                with gr.Row():
                    save, use, drop = (
                        gr.Button(text, min_width=80) for text in ("Save", "Use", "Delete")
                    )
                make = gr.Button("Job file for accel render")
                job_file = gr.File(label="Job file", interactive=False, visible=False)
        with gr.Column(scale=6, min_width=300):
            now = custom(view.now(studio), "actions.js", elem_id="now")
            latest = custom(view.latest(studio), elem_id="latest")
    return GenerateTab(
        **fields, go=go, both=both, forecast=ahead, preset=preset, save=save, use=use, drop=drop,
        make=make, job_file=job_file, now=now, latest=latest,
    )  # fmt: skip


def _fields(studio: Studio) -> dict[str, Any]:
    """Make the form: ``form``, ``suited``, ``moved`` and ``dice`` of the tab."""
    first, form = forms.to_form(forms.FIRST, studio.models), dict[str, Any]()
    form["prompt"] = gr.Textbox(first["prompt"], label="Prompt", lines=2, max_lines=8,
                                max_length=studio.limits.prompt, elem_id="prompt")  # fmt: skip
    with gr.Row():
        models = list(studio.models.by_label)
        form["model"] = gr.Dropdown(models, value=models[0], label="Model", scale=2)
        suited = gr.State(models[0])
        choices = studio.models.accelerations
        form["preset"] = gr.Dropdown(choices, value=first["preset"], label="Acceleration")
    with gr.Row():
        for key in ("width", "height", "frames", "steps"):
            label = key.capitalize()
            form[key] = Field(first[key], label=label, precision=0, min_width=70)
    with gr.Row():
        form["seed"] = Field(first["seed"], label="Seed", precision=0, min_width=120)
        dice = gr.Button("Random seed", min_width=120, elem_classes="middle")
    with gr.Row():
        moved = gr.Checkbox(False, label="Follow the motion drawn in the tab Motion")
        form["follow"] = gr.Dropdown(FOLLOW, value=first["follow"], label="How", min_width=120)
    given = custom("", elem_id="given")
    with gr.Accordion("Start from a picture or a video", open=False):
        places = _inputs()
    with gr.Accordion("More", open=False):
        form["negative_prompt"] = gr.Textbox("", label="Negative prompt", lines=1)
        form["guidance"] = Field(first["guidance"], label="Guidance")
        with gr.Row():
            form["fps"] = Field(first["fps"], label="Frames per second", min_width=120)
            form["format"] = gr.Dropdown(list(FORMATS), value=first["format"], label="Format",
                                         min_width=120)  # fmt: skip
        form["name"] = gr.Textbox("", label="Name of the file (else words of the prompt)")
        names = list(studio.models.loras)
        with gr.Row(visible=bool(names)):
            loras = gr.Dropdown(names, value=[], multiselect=True, label="LoRAs", scale=2)
            weight = gr.Slider(0, 2, 1.0, step=0.05, label="Their weight", buttons=[])
    with gr.Accordion("What else this model takes", open=False, elem_id="further") as further:
        arguments = gr.Dataframe(
            [], headers=arguments_form.HEADERS, static_columns=[0, 1, 2], type="array", wrap=True,
            column_count=len(arguments_form.HEADERS), row_count=0,
            interactive=True, show_label=False, buttons=[], elem_id="arguments",
        )  # fmt: skip
    return {
        "form": form, "suited": suited, "further": further, "arguments": arguments,
        "moved": moved, "dice": dice, "inputs": places, "given": given, "loras": loras,
        "lora_weight": weight,
    }  # fmt: skip


def _inputs() -> dict[str, Any]:
    """Make places to drop or paste pictures, and to drop a video."""
    places: dict[str, Any] = {}
    how: dict[str, Any] = {"sources": ["upload", "clipboard"], "type": "filepath"}
    with gr.Row():
        for key in ("image", "last_image"):
            places[key] = Picture(label=inputs.PICTURES[key], height=200, min_width=140,
                                  elem_id=f"input-{key}", **how)  # fmt: skip
    with gr.Row():
        places["mask"] = Picture(label=inputs.PICTURES["mask"], height=200, min_width=140,
                                 elem_id="input-mask", **how)  # fmt: skip
        places[inputs.VIDEO] = gr.File(label="Video, or PNG frames", height=200,
                                       file_types=DRIVING, file_count="multiple", min_width=140,
                                       elem_id="input-video")  # fmt: skip
    return places


def _motion(studio: Studio) -> MotionTab:
    """Make the canvas on the left; camera, driving video, strength and the flow on the right."""
    with gr.Row():
        with gr.Column(scale=6, min_width=300):
            first = drawing.canvas(drawing.FIRST)
            canvas = custom(
                first, CANVAS, "canvas.html", {"LIMITS": drawing.canvas_limits(studio.limits)},
                elem_id="canvas",
            )  # fmt: skip
            behind = gr.Dropdown([], label="Draw on the first frame of", allow_custom_value=True)
        with gr.Column(scale=5, min_width=300):
            flow = custom(drawing.NO_FLOW, elem_id="flow")
            text = "Strength: 0 follows the motion, 1 is free"
            strength = gr.Slider(0, 1, 0.1, step=0.05, label=text, buttons=[])
            with gr.Accordion("Camera, per frame"):
                camera = {
                    name: gr.Slider(s.low, s.high, s.still, step=s.step, label=s.label, buttons=[])
                    for name, s in drawing.CAMERA.items()
                }
            with gr.Accordion("Driving video", open=False):
                video: dict[str, Any] = {
                    "file": gr.File(label="Video, or all PNG frames of one", height=110,
                                    file_types=DRIVING, file_count="multiple")
                }  # fmt: skip
                with gr.Row():
                    for key, value, label in (
                        ("start", 0, "First frame"), ("end", None, "Last frame (empty: the end)"),
                    ):  # fmt: skip
                        video[key] = Field(value, label=label, precision=0, min_width=120)
                video["cuts"] = gr.Checkbox(False, label="New noise at a scene cut")
                driving = gr.State(None)
    return MotionTab(canvas, behind, flow, strength, camera, video, driving)


def _compare() -> CompareTab:
    """Make two players in step, and what was measured."""
    with gr.Row():
        first = gr.Dropdown([], label="Video", allow_custom_value=True, scale=3, min_width=240)
        second = gr.Dropdown([compare.OWN], value=compare.OWN, label="Beside", scale=3,
                             allow_custom_value=True, min_width=240)  # fmt: skip
        show = gr.Button("Compare", variant="primary", elem_id="show", scale=2,
                         elem_classes="middle")  # fmt: skip
    players = custom("", "players.js", elem_id="players")
    return CompareTab(first, second, show, players, report=custom("", elem_id="report"))


def _queue(studio: Studio) -> QueueTab:
    """Make the queue, a place to drop a video, and the gallery."""
    listed = custom(view.queue(studio), "actions.js", elem_id="queue")
    with gr.Row():
        exports = {what: gr.Button(f"Job file of the {what}") for what in ("queue", "gallery")}
    exported = gr.File(label="Job file", interactive=False, visible=False)
    text = "Drop a video made here, or one of its PNG frames, to get its settings back"
    dropped = gr.File(label=text, file_types=VIDEOS, height=150, elem_id="drop")
    count = gr.State(MORE)
    gallery = custom(view.gallery(studio), "actions.js", elem_id="gallery")
    return QueueTab(listed, exports, exported, dropped, count, gallery)


def _plan(studio: Studio) -> PlanTab:
    """Make what is predicted for the form's job, then runs that were measured."""
    with gr.Row():
        memory = Limit(0, 16, 16, step=0.001, label="Memory, at most GiB", buttons=[],
                       min_width=250)  # fmt: skip
        quality = Limit(0, 100, plan_tab.least(studio), step=0.5, min_width=250,
                        label="Quality, at least dB PSNR", buttons=[])  # fmt: skip
    predicted = custom(plan_tab.WAIT, elem_id="predicted")
    use = gr.Button("Use this plan", elem_id="use-plan")
    table = custom("", elem_id="runs")
    return PlanTab(
        memory, quality, predicted, use, table, asked=gr.State(None), picked=gr.State(None)
    )
