"""The web page: its widgets, and what they are wired to. The logic is in the files beside it."""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

from accel.pipelines.ui import compare, drawing, forms, plan_tab, safety, view
from accel.pipelines.ui.handlers import MORE, Handlers
from accel.pipelines.ui.settings import Models
from accel.pipelines.ui.studio import Studio
from accel.pipelines.ui.widgets import Limit, gr

STATIC = Path(view.__file__).parent / "static"
TOLD: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
# One at a time: what is read last is what was drawn last, and a job takes it.
IN_ORDER = {**TOLD, "concurrency_id": "motion", "concurrency_limit": 1}
QUIET = {**TOLD, "queue": False}  # without the queue of events nothing can be told, but it is quick
FONTS = ["system-ui", "sans-serif"]  # of the machine; nothing is fetched
# Text on it, or it on the page, at 4.5 : 1 or more in both schemes (test_contrast).
CONTRAST: dict[str, Any] = {
    "color_accent": "*primary_600", "body_text_color_subdued": "*neutral_500",
    "button_primary_background_fill": "*primary_600",
    "button_primary_background_fill_hover": "*primary_700",
}  # fmt: skip
VIDEOS = [".mp4", ".webm", ".gif", ".png", ".mkv"]


def custom(value: Any, script: str = "", template: str = "", **options: Any) -> gr.HTML:
    """HTML made by the server, with a script of ours; names of several files with a space make
    one.
    """
    if script:
        options["js_on_load"] = "".join((STATIC / name).read_text() for name in script.split())
    if template:
        options["html_template"] = (STATIC / template).read_text()
    return gr.HTML(value, elem_classes="ui-html", apply_default_css=False, **options)


class Page:
    """The tabs of one page over one studio."""

    def __init__(self, studio: Studio) -> None:
        self.studio, self.on = studio, Handlers(studio)
        forget = (3600, 86400)  # seconds: look for old uploads, their age
        with gr.Blocks(title="accel", analytics_enabled=False, delete_cache=forget) as self.blocks:
            self.drawn, self.sketch, self.planned = (gr.State(None) for _ in range(3))
            self.shape = gr.State(drawing.FIRST)
            with gr.Tabs() as self.tabs:
                with gr.Tab("Generate", id="generate"):
                    self.generate()
                with gr.Tab("Motion", id="motion"):
                    self.motion()
                with gr.Tab("Compare", id="compare"):
                    self.compare()
                with gr.Tab("Queue and gallery", id="queue"):
                    self.queue()
                with gr.Tab("Plan", id="plan") as self.plan_tab:
                    self.plan()
            self.wire()

    # -------------------------------------------------------------------------------- widgets

    def generate(self) -> None:
        """Form on the left; what runs and the newest video on the right."""
        with gr.Row():
            with gr.Column(scale=5, min_width=300):
                self.form = self.fields()
                with gr.Row(equal_height=True):
                    self.go = gr.Button("Generate", variant="primary", elem_id="go", scale=3)
                    self.both = gr.Button("Generate with reference", elem_id="go-both", scale=4)
                with gr.Accordion("Presets and job file", open=False):
                    names = self.on.preset_names()
                    self.preset = gr.Dropdown(names, value=None, label="Preset", elem_id="preset",
                                              allow_custom_value=True)  # fmt: skip
                    with gr.Row():
                        self.save, self.use, self.drop = (
                            gr.Button(text, min_width=80) for text in ("Save", "Use", "Delete")
                        )
                    self.make = gr.Button("Job file for accel render")
                    self.job_file = gr.File(label="Job file", interactive=False, visible=False)
            with gr.Column(scale=6, min_width=300):
                self.now = custom(view.now(self.studio), "actions.js", elem_id="now")
                self.latest = custom(view.latest(self.studio), elem_id="latest")

    def fields(self) -> list[Any]:
        """The widgets of ``forms.FIELDS``, in its order."""
        first = dict(zip(forms.FIELDS, forms.to_form(forms.FIRST, self.studio.models), strict=True))
        prompt = gr.Textbox(first["prompt"], label="Prompt", lines=2, max_lines=8,
                            max_length=self.studio.limits.prompt, elem_id="prompt")  # fmt: skip
        with gr.Row():
            models = list(self.studio.models.by_label)
            model = gr.Dropdown(models, value=models[0], label="Model", scale=2)
            self.suited = gr.State(models[0])
            choices = self.studio.models.accelerations
            preset = gr.Dropdown(choices, value=first["preset"], label="Acceleration")
        with gr.Row():
            sizes = [
                gr.Number(first[key], label=key.capitalize(), precision=0, min_width=70)
                for key in forms.SIZES[:4]
            ]
        with gr.Row():
            seed = gr.Number(first["seed"], label="Seed", precision=0, min_width=120)
            dice = gr.Button("Random seed", min_width=120, elem_classes="middle")
        self.moved = gr.Checkbox(False, label="Follow the motion drawn in the tab Motion")
        with gr.Accordion("More", open=False):
            negative = gr.Textbox("", label="Negative prompt", lines=1)
            guidance = gr.Number(first["guidance"], label="Guidance")
            name = gr.Textbox("", label="Name of the file (else words of the prompt)")
        dice.click(forms.random_seed, None, seed, **QUIET)
        sizes = [*sizes, guidance]
        into = [self.suited, *sizes]
        self.resized = model.input(self.on.suit, [model, self.suited], into, **QUIET)
        return [prompt, negative, model, *sizes, seed, preset, name]

    def motion(self) -> None:
        """Canvas on the left; camera, driving video, strength and the flow on the right."""
        with gr.Row():
            with gr.Column(scale=6, min_width=300):
                first = drawing.canvas(drawing.FIRST)
                self.canvas = custom(
                    first, "canvas.js canvas-keys.js", "canvas.html", elem_id="canvas"
                )
                self.behind = gr.Dropdown([], label="Draw on the first frame of",
                                          allow_custom_value=True)  # fmt: skip
            with gr.Column(scale=5, min_width=300):
                self.flow = custom(drawing.NO_FLOW, elem_id="flow")
                text = "Strength: 0 follows the motion, 1 is free"
                self.strength = gr.Slider(0, 1, 0.1, step=0.05, label=text, buttons=[])
                with gr.Accordion("Camera, per frame"):
                    self.camera = [
                        gr.Slider(low, high, still, step=step, label=label, buttons=[])
                        for label, low, high, step, still in drawing.CAMERA
                    ]
                with gr.Accordion("Driving video", open=False):
                    file = gr.File(label="Video", file_types=["video"], height=110)
                    with gr.Row():
                        start = gr.Number(0, label="First frame", precision=0, min_width=120)
                        end = gr.Number(None, label="Last frame", precision=0, min_width=120)
                    cuts = gr.Checkbox(False, label="New noise at a scene cut")
                    self.driving = gr.State(None)
        self.video: list[Any] = [file, start, end, cuts]

    def compare(self) -> None:
        """Two players in step, and what was measured."""
        with gr.Row():
            self.first = gr.Dropdown([], label="Video", allow_custom_value=True, scale=3,
                                     min_width=240)  # fmt: skip
            self.second = gr.Dropdown([compare.OWN], value=compare.OWN, label="Beside", scale=3,
                                      allow_custom_value=True, min_width=240)  # fmt: skip
            self.show = gr.Button("Compare", variant="primary", elem_id="show", scale=2,
                                  elem_classes="middle")  # fmt: skip
        self.players = custom("", "players.js", elem_id="players")
        self.report = custom("", elem_id="report")

    def queue(self) -> None:
        """The queue, a place to drop a video, the gallery."""
        self.list = custom(view.queue(self.studio), "actions.js", elem_id="queue")
        with gr.Row():
            self.exports = [gr.Button(f"Job file of the {what}") for what in ("queue", "gallery")]
        self.exported = gr.File(label="Job file", interactive=False, visible=False)
        text = "Drop a video made here to get its settings back"
        self.dropped = gr.File(label=text, file_types=VIDEOS, height=150, elem_id="drop")
        self.count = gr.State(MORE)
        self.gallery = custom(view.gallery(self.studio), "actions.js", elem_id="gallery")

    def plan(self) -> None:
        """What is predicted for the form's job, then runs that were measured."""
        with gr.Row():
            self.limits = [
                Limit(0, 16, 16, step=0.001, label="Memory, at most GiB", buttons=[],
                      min_width=250),
                Limit(0, 100, plan_tab.least(self.studio), step=0.5, min_width=250,
                      label="Quality, at least dB PSNR", buttons=[]),
            ]  # fmt: skip
        self.predicted = custom(plan_tab.WAIT, elem_id="predicted")
        self.use_plan = gr.Button("Use this plan", elem_id="use-plan")
        self.table = custom("", elem_id="runs")
        self.asked, self.picked = gr.State(None), gr.State(None)

    # --------------------------------------------------------------------------------- wiring

    def wire(self) -> None:
        """What leads to what."""
        on, job = self.on, [self.moved, self.drawn, self.planned, *self.form]
        into = [self.tabs, self.moved, self.drawn, self.planned, self.sketch, self.shape]
        into += [self.canvas, self.strength, *self.camera, self.suited, *self.form]
        for event, compared in (
            (self.go.click, False), (self.form[0].submit, False), (self.both.click, True),
        ):  # fmt: skip
            event(partial(on.generate, compared), job, **IN_ORDER)
        self.save.click(on.save_preset, [self.preset, *job], self.preset, **TOLD)
        self.use.click(on.use_preset, self.preset, into, **TOLD)
        self.drop.click(on.drop_preset, self.preset, self.preset, **TOLD)
        self.make.click(partial(on.export, "job"), job, self.job_file, **TOLD)
        for button, what in zip(self.exports, ("queue", "gallery"), strict=True):
            button.click(partial(on.export, what), job, self.exported, **TOLD)
        taken = self.dropped.upload(on.take_settings, self.dropped, into, **TOLD)
        taken.then(lambda: None, None, self.dropped, **QUIET)  # there is room for the next
        for part in (self.now, self.list):
            part.act(on.act, None, None, **TOLD)
        pair = [self.first, self.second, self.players, self.report]
        self.gallery.act(
            on.act_gallery, self.count, [self.count, self.gallery, *pair, *into], **TOLD
        )
        self.show.click(on.show_pair, pair[:2], pair[2:], **TOLD)
        for menu, more in ((self.first, []), (self.second, [compare.OWN]), (self.behind, [])):
            menu.focus(partial(on.names, more), None, menu, **QUIET)
        self.preset.focus(on.presets, None, self.preset, **QUIET)
        self.wire_motion()
        self.wire_state()

    def wire_motion(self) -> None:
        """Every change of the motion is read, checked and shown."""
        inputs = [self.sketch, self.driving, self.strength, *self.camera, *self.form]
        how = {"fn": self.on.read_motion, "inputs": inputs, **IN_ORDER}
        how["outputs"] = [self.drawn, self.moved, self.flow]
        self.canvas.draw(self.on.keep_sketch, None, self.sketch, **QUIET).then(**how)
        for slider in (*self.camera, self.strength):
            slider.input(trigger_mode="always_last", **how)
        file, start, end, cuts = self.video
        for event in (file.upload, file.clear, start.submit, end.submit, cuts.input):
            event(self.on.take_driving, self.video, self.driving, **TOLD).then(**how)
        shown = [self.shape, self.canvas]
        self.behind.input(self.on.show_behind, [self.behind, *self.form], shown, **TOLD)
        fit = {"fn": self.on.fit, "inputs": [self.shape, *self.form], "outputs": shown, **QUIET}
        for size in self.form[3:6]:
            size.blur(**fit)
            size.submit(**fit)
        self.resized.then(**fit)

    def wire_state(self) -> None:
        """Every tab asks the server once a second what is new."""
        seen = gr.State((-1, -1))
        outputs = [seen, self.now, self.list, self.latest, self.gallery]
        for event in (gr.Timer(1.0).tick, self.blocks.load):
            event(self.on.poll, [seen, self.count], outputs, **QUIET)
        shown = partial(plan_tab.table, self.studio)
        for event in (self.latest.change, self.blocks.load):
            event(shown, self.limits, self.table, **QUIET)
        inputs = [self.asked, *self.limits, *self.form]
        outputs = [self.asked, self.limits[0], self.picked, self.predicted]
        # A simulation may take a minute, so only few wait for one at a time. One event for all
        # causes: a page has at most one under way, and the newest limits have the last word.
        few = {"concurrency_id": "plan", "concurrency_limit": 2}
        asking = [self.plan_tab.select, *(limit.input for limit in self.limits)]
        last = {"triggers": asking, "trigger_mode": "always_last"}
        gr.on(fn=self.on.predict, inputs=inputs, outputs=outputs, **last, **few, **TOLD)
        gr.on(fn=shown, inputs=self.limits, outputs=self.table, **last, **QUIET)
        into = [self.tabs, self.planned, self.form[-2]]
        self.use_plan.click(self.on.use_plan, self.picked, into, **TOLD)


def launch(page: Page, host: str, port: int | None, auth: tuple[str, str] | None) -> str:
    """Serve the page from a thread of its own; its address."""
    studio = page.studio
    options = safety.launch_options(studio.out, host, port, auth, studio.limits)
    css = (STATIC / "style.css").read_text()
    theme = gr.themes.Default(primary_hue="blue", font=FONTS, font_mono=["monospace"])
    theme.set(**CONTRAST)
    page.blocks.queue(max_size=64, default_concurrency_limit=4)
    return page.blocks.launch(css=css, theme=theme, **options)[1]


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C. Raises ValueError or OSError if that cannot be."""
    auth = safety.read_auth(args.auth_file)
    safety.check_access(args.host, auth)
    studio = Studio(args.out, Models.of(args.model, args.plan))
    try:
        safety.be_silent(studio.temporary)
        page = Page(studio)
        url = launch(page, args.host, args.port, auth)
        studio.start()
        print(f"accel ui: {url} (videos in {studio.out}, Ctrl-C ends it)", flush=True)
        while True:
            time.sleep(3600)
    finally:
        studio.close()
