"""The web page: what its widgets are wired to.

They are made in ``tabs.py``, and what happens is in ``handlers.py``: handlers get the values of
widgets by name and return new values by widget.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from typing import Any

from accel.pipelines.job import JobError
from accel.pipelines.ui import compare, forms, inputs, safety
from accel.pipelines.ui.handlers import Handlers
from accel.pipelines.ui.input_handlers import InputHandlers
from accel.pipelines.ui.motion_handlers import MotionHandlers
from accel.pipelines.ui.plan_handlers import PlanHandlers
from accel.pipelines.ui.settings import Models
from accel.pipelines.ui.studio import Studio
from accel.pipelines.ui.tabs import STATIC, build
from accel.pipelines.ui.widgets import gr

TOLD: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
# One at a time: what is read last is what was drawn last, and a job takes it.
IN_ORDER = {**TOLD, "concurrency_id": "motion", "concurrency_limit": 1}
# Without the queue of events nothing can be told and answers may come in any order, but it is
# quick. Gradio knows no trigger mode there.
QUIET = {**TOLD, "queue": False}
# At most one under way; what happens meanwhile is answered once more, by the newest values.
# Gradio leaves out events of "once", its default, while one is under way.
NEWEST: dict[str, Any] = {"trigger_mode": "always_last"}
EACH: dict[str, Any] = {"trigger_mode": "multiple"}
FONTS = ["system-ui", "sans-serif"]  # of the machine; nothing is fetched
# Text on it, or it on the page, at 4.5 : 1 or more in both schemes (test_contrast).
CONTRAST: dict[str, Any] = {
    "color_accent": "*primary_600", "body_text_color_subdued": "*neutral_500",
    "button_primary_background_fill": "*primary_600",
    "button_primary_background_fill_hover": "*primary_700",
}  # fmt: skip


class Page:
    """The tabs of one page over one studio."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        forget = (3600, 86400)  # seconds: look for old uploads, their age
        with gr.Blocks(title="accel", analytics_enabled=False, delete_cache=forget) as self.blocks:
            self.parts = build(studio)
            self.on = Handlers(studio, self.parts)
            self.motion = MotionHandlers(studio, self.parts)
            generate, kept = self.parts.generate, self.parts.kept
            self.job = {  # what a job is made of
                "moved": generate.moved, "drawn": kept.drawn, "planned": kept.planned,
                "given": kept.given, "loras": generate.loras,
                "lora_weight": generate.lora_weight, "arguments": generate.arguments,
                **generate.form,
            }  # fmt: skip
            self.wire_form()
            self.wire_inputs()
            self.wire_gallery()
            self.wire_motion()
            self.wire_state()
            self.wire_plan()

    def wire_form(self) -> None:
        """Wire the form: what makes a job, a preset or a job file of it, and what fills it."""
        on, tab = self.on, self.parts.generate
        tab.dice.click(on.random_seed, outputs=tab.form["seed"], **QUIET)
        for event, compared in (
            (tab.go.click, False), (tab.form["prompt"].submit, False), (tab.both.click, True),
        ):  # fmt: skip
            event(partial(on.generate, compared=compared), inputs_kwargs=self.job, **IN_ORDER)
        saved: dict[str, Any] = {"saved": tab.preset}
        tab.save.click(on.save_preset, inputs_kwargs={**saved, **self.job}, outputs=tab.preset,
                       **TOLD)  # fmt: skip
        tab.use.click(on.use_preset, inputs_kwargs=saved, outputs=on.filled(), **TOLD)
        tab.drop.click(on.drop_preset, inputs_kwargs=saved, outputs=tab.preset, **TOLD)
        tab.preset.focus(on.presets, outputs=tab.preset, **QUIET)
        tab.make.click(partial(on.export, what="job"), inputs_kwargs=self.job,
                       outputs=tab.job_file, **TOLD)  # fmt: skip

    def wire_inputs(self) -> None:
        """Keep pictures and a video that are given, and forget those that are taken away."""
        on, kept, tab = InputHandlers(self.studio, self.parts), self.parts.kept, self.parts.generate
        shown = [kept.given, tab.given]
        behind = {
            "inputs_kwargs": {"given": kept.given, **tab.form},
            "outputs": [kept.shape, self.parts.motion.canvas],
        }
        for key, place in tab.inputs.items():
            take = on.take_video if key == inputs.VIDEO else partial(on.take_picture, key=key)
            asked = {"file": place, "given": kept.given}
            for event in (place.upload, place.clear):
                taken = event(take, inputs_kwargs=asked, outputs=[*shown, place], **IN_ORDER,
                              **EACH)  # fmt: skip
                if key == "image":
                    taken.then(self.motion.show_given, **behind, **TOLD, **NEWEST)

        table: dict[str, Any] = {
            "inputs_kwargs": {"model": tab.form["model"], "arguments": tab.arguments},
            "outputs": tab.arguments,
        }
        tab.further.expand(self.on.fill_arguments, **table, **TOLD)
        tab.form["model"].change(self.on.refill_arguments, **table, **TOLD)

    def wire_gallery(self) -> None:
        """Queue, gallery and comparison."""
        on, queue, compared = self.on, self.parts.queue, self.parts.compare
        for what, button in queue.exports.items():
            button.click(partial(on.export, what=what), inputs_kwargs=self.job,
                         outputs=queue.exported, **TOLD)  # fmt: skip
        queue.dropped.upload(
            on.take_settings, inputs_kwargs={"path": queue.dropped},
            outputs=[*on.filled(), queue.dropped], **IN_ORDER, **EACH,
        )  # fmt: skip
        for part in (self.parts.generate.now, queue.list):
            part.act(on.act, **TOLD, **EACH)
        pair, shown = [compared.first, compared.second], [compared.players, compared.report]
        changed = [queue.count, queue.gallery, *pair, *shown, *on.filled()]
        queue.gallery.act(
            on.act_gallery, inputs_kwargs={"count": queue.count}, outputs=changed, **TOLD, **EACH
        )
        inputs: dict[str, Any] = {"first": compared.first, "second": compared.second}
        compared.show.click(on.show_pair, inputs_kwargs=inputs, outputs=shown, **TOLD)
        behind = self.parts.motion.behind
        for menu, more in ((compared.first, []), (compared.second, [compare.OWN]), (behind, [])):
            menu.focus(partial(on.names, menu=menu, more=more), outputs=menu, **QUIET)

    def wire_motion(self) -> None:
        """Read, check and show every change of the motion."""
        on, tab, kept = self.motion, self.parts.motion, self.parts.kept
        form = self.parts.generate.form
        how: dict[str, Any] = {"fn": on.read_motion, **IN_ORDER, **NEWEST}
        how["inputs_kwargs"] = {
            "sketch": kept.sketch, "driving": tab.driving, "strength": tab.strength,
            **tab.camera, **form,
        }  # fmt: skip
        how["outputs"] = [kept.drawn, self.parts.generate.moved, tab.flow]
        each = {**TOLD, **EACH, "concurrency_id": "sketch", "concurrency_limit": 1}
        tab.canvas.draw(on.keep_sketch, outputs=kept.sketch, **each).then(**how)
        for slider in (*tab.camera.values(), tab.strength):
            slider.input(**how)
        file, start, end, cuts = (tab.video[key] for key in ("file", "start", "end", "cuts"))
        for event in (file.upload, file.clear, file.delete):
            taken = event(on.take_driving, inputs_kwargs=tab.video, outputs=[tab.driving, file],
                          **IN_ORDER, **EACH)  # fmt: skip
            taken.then(**how)
        cut = {"start": start, "end": end, "cuts": cuts, **how["inputs_kwargs"]}
        new = {**how, "fn": on.cut_driving, "inputs_kwargs": cut}
        new["outputs"] = [tab.driving, *how["outputs"]]
        for event in (start.submit, end.submit, start.blur, end.blur, cuts.input):
            event(**new)
        shown = [kept.shape, tab.canvas]
        inputs = {"behind": tab.behind, **form}
        tab.behind.input(on.show_behind, inputs_kwargs=inputs, outputs=shown, **TOLD, **NEWEST)
        self.wire_sizes(shown)

    def wire_sizes(self, canvas: list[Any]) -> None:
        """Bring another model's sizes, which the canvas follows."""
        tab, form = self.parts.generate, self.parts.generate.form
        inputs = {"shape": self.parts.kept.shape, **form}
        fit: dict[str, Any] = {
            "fn": self.motion.fit, "inputs_kwargs": inputs, "outputs": canvas, **TOLD, **NEWEST,
        }  # fmt: skip
        fields = [form[key] for key in ("width", "height", "frames")]
        gr.on([event for field in fields for event in (field.blur, field.submit)], **fit)
        resized = form["model"].input(
            self.on.suit, inputs_kwargs={"model": form["model"], "suited": tab.suited},
            outputs=[tab.suited, *(form[key] for key in forms.SIZES)], **TOLD, **NEWEST,
        )  # fmt: skip
        resized.then(**fit)

    def wire_state(self) -> None:
        """Ask the server once a second what is new, from every tab."""
        kept, generate, queue = self.parts.kept, self.parts.generate, self.parts.queue
        inputs: dict[str, Any] = {"seen": kept.seen, "count": queue.count}
        outputs = [kept.seen, generate.now, queue.list, generate.latest, queue.gallery]
        for event in (gr.Timer(1.0).tick, self.blocks.load):
            event(self.on.poll, inputs_kwargs=inputs, outputs=outputs, **QUIET)

    def wire_plan(self) -> None:
        """Let the tab Plan follow the form when it is shown, and its limits at once."""
        on, plan = PlanHandlers(self.studio, self.parts), self.parts.plan
        form = self.parts.generate.form
        limits = {"memory": plan.memory, "quality": plan.quality}
        table: dict[str, Any] = {"fn": on.table, "inputs_kwargs": limits, "outputs": plan.table}
        for event in (self.parts.generate.latest.change, self.blocks.load):
            event(**table, **TOLD, **NEWEST)
        inputs = {"asked": plan.asked, **limits, **form}
        outputs = [plan.asked, plan.memory, plan.picked, plan.predicted]
        # A simulation may take a minute, so only few wait for one at a time. One event for all
        # causes: a page has at most one under way, and the newest limits have the last word.
        few = {"concurrency_id": "plan", "concurrency_limit": 2}
        asking = [self.parts.plan_tab.select, *(limit.input for limit in limits.values())]
        last: dict[str, Any] = {"triggers": asking, **NEWEST, **TOLD}
        gr.on(fn=on.predict, inputs_kwargs=inputs, outputs=outputs, **last, **few)
        gr.on(**table, **last)
        asking = [
            part.change if isinstance(part, gr.Dropdown) else part.blur
            for key, part in form.items()
            if key in ("model", "preset", "width", "height", "frames", "steps")
        ]
        tab, planned = self.parts.generate, self.parts.kept.planned
        again: list[Any] = [*asking, tab.latest.change, self.blocks.load]
        gr.on(again, on.forecast, inputs_kwargs={"planned": planned, **form},
              outputs=tab.forecast, **NEWEST, **TOLD)  # fmt: skip
        into = [self.parts.tabs, self.parts.kept.planned, form["preset"]]
        plan.use.click(on.use_plan, inputs_kwargs={"picked": plan.picked}, outputs=into, **TOLD)


def launch(
    page: Page,
    host: str,
    port: int | None,
    auth: tuple[str, str] | None,
    public: safety.Public | None = None,
) -> str:
    """Serve the page from a thread of its own; its address on this machine.

    ``public``: where a proxy serves it, the studio's ``root`` with a host.

    Raises JobError for a port that cannot be had.
    """
    studio = page.studio
    public = public or safety.Public(studio.root)
    options = safety.launch_options(studio.out, host, port, auth, studio.limits, public)
    css = (STATIC / "style.css").read_text()
    theme = gr.themes.Default(primary_hue="blue", font=FONTS, font_mono=["monospace"])
    theme.set(**CONTRAST)
    page.blocks.queue(max_size=64, default_concurrency_limit=4)
    try:
        return page.blocks.launch(css=css, theme=theme, **options)[1]
    except OSError as error:  # somebody was faster, or all ports that Gradio tries are taken
        raise JobError(f"no free port on {host}; choose one with accel ui --port N") from error


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C.

    Raises ValueError or OSError if that cannot be.
    """
    auth = safety.read_auth(args.auth_file)
    safety.check_access(args.host, auth)
    safety.check_port(args.host, args.port)
    public = safety.Public.parse(args.root_path)
    studio = Studio(
        args.out, Models.of(args.model, args.plan, args.models, args.loras), root=public.path
    )
    try:
        safety.be_silent(studio.temporary)
        page = Page(studio)
        url = launch(page, args.host, args.port, auth, public)
        studio.start()
        print(f"accel ui: {url} (videos in {studio.out}, Ctrl-C ends it)", flush=True)
        while True:
            time.sleep(3600)
    finally:
        studio.close()
