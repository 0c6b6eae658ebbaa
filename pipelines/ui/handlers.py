"""What the page does when something is pressed.

Handlers get the values of widgets by name, and return new values by widget; a widget that is not
among them stays as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from accel.pipelines.job import Job, JobError
from accel.pipelines.motion.driving import Driving
from accel.pipelines.ui import arguments_form, compare, drawing, forms, inputs, view
from accel.pipelines.ui.dropped_settings import settings_of
from accel.pipelines.ui.finished import Finished
from accel.pipelines.ui.offers import chosen_loras, known_loras
from accel.pipelines.ui.parts import Parts
from accel.pipelines.ui.studio import Studio
from accel.pipelines.ui.tabs import MORE
from accel.pipelines.ui.widgets import gr
from accel.plans import Plan

Changes = dict[Any, Any]  # widget to its new value
NOTHING: Changes = gr.skip()  # Gradio takes no empty dictionary


def told(fn: Callable) -> Callable:
    """Let the visitor read a handler's JobError as a message."""

    @functools.wraps(fn)
    def handler(*arguments: Any, **values: Any) -> Any:
        try:
            return fn(*arguments, **values)
        except JobError as error:
            raise gr.Error(escape(str(error)), print_exception=False) from error

    return handler


def refused(error: JobError, changes: Changes) -> Changes:
    """Let the visitor read why a file is refused, and make room for the next one.

    In one answer: a second one could take away what was given since.
    """
    gr.Warning(escape(str(error)), title="Refused")
    return changes


def by_widget(widgets: Mapping[str, Any], values: Mapping[str, Any]) -> Changes:
    """Return values by widget instead of by name."""
    return {widgets[name]: value for name, value in values.items()}


def driving_of(file: Any, start: Any, end: Any, cuts: bool) -> dict[str, Any]:
    """Return a driving video as a job takes it; without ``end`` it ends where the video does."""
    data = {"file": str(file), "first": start or 0, "cuts": "fresh" if cuts else "error"}
    return data if end is None else {**data, "last": end}


class Handlers:
    """Handlers over one studio.

    ``form`` holds values of ``forms.FIELDS``, ``job`` those and ``moved``, ``drawn`` and
    ``planned``; see ``tabs.py`` for what widgets and states hold.
    """

    def __init__(self, studio: Studio, parts: Parts) -> None:
        self.studio, self.parts = studio, parts

    # -------------------------------------------------------------------------------- generate

    def _filled_in(
        self, moved: bool, drawn: Any, planned: Any, given: Any, loras: Any, lora_weight: float,
        arguments: Any, **form: Any,
    ) -> dict[str, Any]:  # fmt: skip
        chosen = chosen_loras(loras or [], lora_weight, self.studio.models.loras)
        data = forms.from_form(self.studio, form, moved, drawn, planned)
        taken = self.studio.takes(form["model"]) if any(row[-1] for row in arguments) else ""
        more = arguments_form.chosen(arguments, taken)
        return {**data, **given, "loras": chosen, "arguments": more}

    @told
    def generate(self, *, compared: bool, **job: Any) -> None:
        """Enter a job."""
        name = self.studio.submit(self._filled_in(**job), compare=compared)
        gr.Info(f"{escape(name)} is in the queue.", duration=3)

    def suit(self, *, model: str, suited: str) -> Changes:
        """Choose a model, with the sizes that suit it.

        ``suited``: the model of the sizes so far; a dropdown also fires when it loses focus.
        """
        if model == suited:
            return NOTHING
        tab, sizes = self.parts.generate, forms.default_sizes(model, self.studio.models)
        return {tab.suited: model, **by_widget(tab.form, sizes)}

    def random_seed(self) -> Changes:
        """Draw a seed."""
        return {self.parts.generate.form["seed"]: forms.random_seed()}

    def act(self, event: gr.EventData) -> None:
        """Carry out a button inside server-made HTML."""
        message = self.studio.act(str(event.act), str(event.name))
        if message:
            gr.Warning(escape(message))

    def presets(self, **chosen: Any) -> Changes:
        """Put the presets that are saved by now into their menu; ``value``: to choose one."""
        names = list(self.studio.presets.all())
        return {self.parts.generate.preset: gr.Dropdown(choices=names, **chosen)}

    @told
    def save_preset(self, *, saved: str, **job: Any) -> Changes:
        """Keep the form under a name."""
        self.studio.save_preset(saved or "", self._filled_in(**job))
        return self.presets(value=saved)

    @told
    def use_preset(self, *, saved: str) -> Changes:
        """Fill the form with a preset."""
        job = self.studio.presets.all().get(saved)
        if job is None:
            raise JobError("choose a preset that is saved")
        return self.into_form(job)

    def drop_preset(self, *, saved: str) -> Changes:
        """Forget a preset."""
        self.studio.presets.delete(saved or "")
        return self.presets(value=None)

    @told
    def export(self, *, what: str, **job: Any) -> Changes:
        """Make a job file of the form ("job"), the "queue" or the "gallery"."""
        form = self._filled_in(**job) if what == "job" else None
        file = gr.File(forms.exported(self.studio, what, form), visible=True)
        made = self.parts.generate.job_file if what == "job" else self.parts.queue.exported
        return {made: file}

    def into_form(self, job: Job, video: Finished | None = None) -> Changes:
        """Show a job in the form and in the drawing, over the first frame of ``video``."""
        kept, tab, motion = self.parts.kept, self.parts.generate, self.parts.motion
        job = forms.unnamed(job.resolved())
        size = (job.width or 64, job.height or 64, job.frames or 17)
        drawn = None
        if job.motion:
            drawn = {"motion": job.motion, "strength": job.strength, "size": list(size)}
        sketch, form = drawing.sketch_of(job), forms.to_form(job, self.studio.models)
        try:
            canvas = drawing.canvas(size, video, sketch["layers"])
        except JobError as error:  # its settings are there nonetheless
            gr.Warning(escape(str(error)))
            canvas = drawing.canvas(size, None, sketch["layers"])
        driving = (job.movement.video if job.movement else None) or Driving("")
        cuts = driving.cuts == "fresh"
        cut = driving_of(driving.file, driving.first, driving.last, cuts) if driving.file else None
        names, weight, notes = known_loras(job.loras, self.studio.models.loras)
        for note in notes:
            gr.Warning(escape(note))
        return {
            self.parts.tabs: gr.Tabs(selected="generate"),
            tab.moved: drawn is not None,
            kept.drawn: drawn,
            kept.planned: None if job.plan is None else (job.accel_plan() or Plan()).to_dict(),
            kept.sketch: sketch,
            kept.shape: size,
            motion.canvas: canvas,
            motion.strength: job.strength if isinstance(job.strength, float) else 0.1,
            **by_widget(motion.camera, drawing.camera_of(job)),
            motion.driving: cut,
            motion.video["file"]: None,
            motion.video["start"]: driving.first,
            motion.video["end"]: driving.last,
            motion.video["cuts"]: cuts,
            tab.suited: form["model"],
            **by_widget(tab.form, form),
            tab.loras: names,
            tab.lora_weight: weight,
            tab.arguments: self.rows(form["model"], job.arguments) if job.arguments else [],
            **self.into_inputs(inputs.of_job(job)),
        }

    def rows(self, model: str, values: Mapping[str, Any]) -> list[list[str]]:
        """Return the table of what else a model takes, with ``values`` as far as it takes them."""
        taken = self.studio.takes(model)
        if isinstance(taken, str):
            gr.Warning(escape(f"what else this model takes is not known: {taken}"))
            return []
        return arguments_form.rows(taken, values)

    def fill_arguments(self, *, model: str, arguments: list[list[Any]]) -> Changes:
        """Show what else the chosen model takes; values that it takes as well stay."""
        values = {str(row[0]): row[-1] for row in arguments}
        return {self.parts.generate.arguments: self.rows(model, values)}

    def refill_arguments(self, *, model: str, arguments: list[list[Any]]) -> Changes:
        """Do the same for another model, if the table was filled."""
        return self.fill_arguments(model=model, arguments=arguments) if arguments else NOTHING

    def into_inputs(self, given: dict[str, Any]) -> Changes:
        """Show what a job starts from."""
        tab = self.parts.generate
        pictures = {key: inputs.preview(given, key) for key in inputs.PICTURES}
        shown = by_widget(tab.inputs, {**pictures, inputs.VIDEO: None})
        return {self.parts.kept.given: given, tab.given: inputs.listed(given), **shown}

    def filled(self) -> list[Any]:
        """Return the widgets that ``into_form`` sets."""
        kept, tab, motion = self.parts.kept, self.parts.generate, self.parts.motion
        return [
            self.parts.tabs, tab.moved, kept.drawn, kept.planned, kept.sketch, kept.shape,
            motion.canvas, motion.strength, *motion.camera.values(), motion.driving,
            *motion.video.values(), tab.suited, *tab.form.values(), tab.loras, tab.lora_weight,
            tab.arguments, kept.given, tab.given, *tab.inputs.values(),
        ]  # fmt: skip

    # --------------------------------------------------------------------------------- compare

    def names(self, *, menu: Any, more: list[str]) -> Changes:
        """Put the videos that can be played into a menu."""
        return {menu: gr.Dropdown(choices=more + compare.choices(self.studio))}

    @told
    def show_pair(self, *, first: str, second: str) -> Changes:
        """Show two videos beside each other, and the report."""
        found, tab = compare.pair(self.studio, first or "", second or ""), self.parts.compare
        return {tab.players: compare.players(self.studio, found), tab.report: compare.report(found)}

    # --------------------------------------------------------------------------------- gallery

    def take_settings(self, *, path: str | None) -> Changes:
        """Fill the form with the settings of an uploaded video; the next one finds room."""
        if not path:
            return NOTHING
        room: Changes = {self.parts.queue.dropped: None}
        try:
            job, notes = settings_of(Path(path), self.studio.models, self.studio.limits)
            filled = self.into_form(job)
        except JobError as error:
            return refused(error, room)
        for note in notes:
            gr.Warning(escape(note))
        return filled | room

    @told
    def act_gallery(self, event: gr.EventData, *, count: int) -> Changes:
        """Carry out a button on a card."""
        name, queue, compared = str(event.name), self.parts.queue, self.parts.compare
        if event.act == "more":
            shown = view.gallery(self.studio, count + MORE)
            return {queue.count: count + MORE, queue.gallery: shown}
        if event.act == "reuse":
            video = self.studio.find(name)
            return self.into_form(video.job, video) if video else NOTHING
        if event.act == "continue":
            video = self.studio.find(name)
            return self.continue_from(video) if video else NOTHING
        if event.act == "compare":
            pair = {compared.first: name, compared.second: compare.OWN}
            shown = self.show_pair(first=name, second=compare.OWN)
            return {self.parts.tabs: gr.Tabs(selected="compare"), **pair, **shown}
        self.act(event)
        return {queue.gallery: view.gallery(self.studio, count)}

    def continue_from(self, video: Finished) -> Changes:
        """Start the form's job from the last frame of a video."""
        picture = inputs.keep_last_frame(video.video, self.studio.state / "inputs")
        changes = self.into_inputs({"image": str(picture)})
        return {self.parts.tabs: gr.Tabs(selected="generate"), **changes}

    # ---------------------------------------------------------------------------------- state

    def poll(self, *, seen: tuple[int, int], count: int) -> Changes:
        """Show what changed since a tab last asked."""
        current, generate, queue = self.studio.version(), self.parts.generate, self.parts.queue
        news: Changes = {self.parts.kept.seen: current}
        if current != seen:  # the first tab also says what the newest video is
            news[generate.now] = view.now(self.studio)
        if current[0] != seen[0]:
            news[queue.list] = view.queue(self.studio)
        if current[1] != seen[1]:
            latest, cards = view.latest(self.studio), view.gallery(self.studio, count)
            news |= {generate.latest: latest, queue.gallery: cards}
        return news
