"""What the page does when something is pressed: from the values of widgets to new values."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import Any

from accel.pipelines.job import Job, JobError
from accel.pipelines.ui import compare, drawing, forms, plan_tab, predicted, view
from accel.pipelines.ui.settings import PLANNED, UNACCELERATED, settings_of
from accel.pipelines.ui.studio import Finished, Studio
from accel.pipelines.ui.widgets import Limit, gr
from accel.plans import Plan

MORE = 24  # cards that "more" adds to the gallery
REUSED = 9 + len(drawing.CAMERA) + len(forms.FIELDS)  # values that ``into_form`` returns


def told(fn: Callable) -> Callable:
    """A handler whose JobError the visitor reads as a message."""

    @functools.wraps(fn)
    def handler(*values: Any) -> Any:
        try:
            return fn(*values)
        except JobError as error:
            raise gr.Error(escape(str(error)), print_exception=False) from error

    return handler


class Handlers:
    """Handlers over one studio. ``moved``: whether the drawn motion counts; ``drawn``: that motion,
    and ``plan``: the one picked in the tab Plan, both kept on the server; ``form``: values of
    ``forms.FIELDS``.
    """

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    # -------------------------------------------------------------------------------- generate

    @told
    def generate(self, compared: bool, moved: bool, drawn: Any, plan: Any, *form: Any) -> None:
        """Enter a job."""
        values = forms.from_form(self.studio, form, moved, drawn, plan)
        name = self.studio.submit(values, compare=compared)
        gr.Info(f"{escape(name)} is in the queue.", duration=3)

    def suit(self, label: str, suited: str) -> list[Any]:
        """The chosen model and the sizes that suit it. ``suited``: the model of the sizes so far.
        A menu tells its value also when it is only left; what was typed since then stays.
        """
        if label == suited:
            return [gr.skip()] * (1 + len(forms.SIZES))
        return [label, *forms.default_sizes(label, self.studio.models)]

    def act(self, event: gr.EventData) -> None:
        """A button inside server-made HTML."""
        message = self.studio.act(str(event.act), str(event.name))
        if message:
            gr.Warning(escape(message))

    def preset_names(self) -> list[str]:
        """For the menu of presets."""
        return list(self.studio.presets.all())

    def presets(self) -> Any:
        """The menu of presets with those that are saved by now."""
        return gr.Dropdown(choices=self.preset_names())

    @told
    def save_preset(self, name: str, moved: bool, drawn: Any, plan: Any, *form: Any) -> Any:
        """Keep the form; the menu with its name."""
        values = forms.from_form(self.studio, form, moved, drawn, plan)
        self.studio.save_preset(name or "", values)
        return gr.Dropdown(choices=self.preset_names(), value=name)

    @told
    def use_preset(self, name: str) -> list[Any]:
        """The form with a preset; see ``into_form``."""
        job = self.studio.presets.all().get(name)
        if job is None:
            raise JobError("choose a preset that is saved")
        return self.into_form(job)

    def drop_preset(self, name: str) -> Any:
        """Forget a preset."""
        self.studio.presets.delete(name or "")
        return gr.Dropdown(choices=self.preset_names(), value=None)

    @told
    def export(self, what: str, moved: bool, drawn: Any, plan: Any, *form: Any) -> Any:
        """A job file of the form ("job"), the "queue" or the "gallery"."""
        job = what == "job"
        values = forms.from_form(self.studio, form, moved, drawn, plan) if job else None
        return gr.File(forms.exported(self.studio, what, values), visible=True)

    def into_form(self, job: Job, video: Finished | None = None) -> list[Any]:
        """The form and the drawing, over the first frame of ``video``, filled with a job, and
        shown: tab, moved, drawn, plan, sketch, shape, canvas, strength, camera, model, form.
        """
        job = forms.unnamed(job.resolved())
        size = (job.width or 64, job.height or 64, job.frames or 17)
        drawn = None
        if job.motion:
            drawn = {"motion": job.motion, "strength": job.strength, "size": list(size)}
        sketch = drawing.sketch_of(job)
        canvas = drawing.canvas(size, video, sketch["layers"])
        strength = job.strength if isinstance(job.strength, float) else 0.1
        plan = None if job.plan is None else (job.accel_plan() or Plan()).to_dict()
        shown = [gr.Tabs(selected="generate"), drawn is not None, drawn, plan, sketch, size]
        camera, form = drawing.camera_of(job), forms.to_form(job, self.studio.models)
        return [*shown, canvas, strength, *camera, form[forms.FIELDS.index("model")], *form]

    # ---------------------------------------------------------------------------------- motion

    def keep_sketch(self, event: gr.EventData) -> Any:
        """What the canvas sent."""
        return event.drawing

    @told
    def take_driving(self, path: str | None, first: Any, last: Any, cuts: bool) -> Any:
        """The driving video of a job from an upload."""
        if not path:
            return None
        kept, _ = self.studio.keep_driving(Path(path))
        data = {"file": str(kept), "first": first or 0, "cuts": "fresh" if cuts else "error"}
        return data | ({} if last is None else {"last": last})

    @told
    def read_motion(self, sketch: Any, driving: Any, strength: float, *values: Any) -> list[Any]:
        """The motion of all widgets: drawn, moved, picture of the flow."""
        camera, form = values[: len(drawing.CAMERA)], values[len(drawing.CAMERA) :]
        size, fps = forms.size_of(form, self.studio)
        drawn = drawing.read_motion(self.studio, sketch, camera, driving, strength, size)
        shown = drawing.flow_preview(drawn["motion"], size, fps) if drawn else drawing.NO_FLOW
        return [drawn, drawn is not None, shown]

    def fit(self, shape: tuple[int, int, int], *form: Any) -> list[Any]:
        """Shape and canvas at the form's size, if that is another one."""
        try:
            size, _ = forms.size_of(form, self.studio)
        except JobError:
            return [gr.skip(), gr.skip()]  # told when something is made of the form
        same = tuple(shape) == size
        return [gr.skip(), gr.skip()] if same else [size, drawing.canvas(size, keep=True)]

    @told
    def show_behind(self, name: str | None, *form: Any) -> list[Any]:
        """Shape and canvas at the form's size over the first frame of a video."""
        size, _ = forms.size_of(form, self.studio)
        return [size, drawing.canvas(size, self.studio.find(name) if name else None)]

    # --------------------------------------------------------------------------------- compare

    def names(self, more: list[str]) -> Any:
        """A menu of videos."""
        return gr.Dropdown(choices=more + compare.choices(self.studio))

    @told
    def show_pair(self, first: str, second: str) -> list[str]:
        """Players and report."""
        found = compare.pair(self.studio, first or "", second or "")
        return [compare.players(found), compare.report(found)]

    # --------------------------------------------------------------------------------- gallery

    @told
    def take_settings(self, path: str | None) -> list[Any]:
        """The form with the settings of an uploaded video; see ``into_form``."""
        if not path:
            return [gr.skip()] * REUSED
        job, notes = settings_of(Path(path), self.studio.models, self.studio.limits)
        for note in notes:
            gr.Warning(escape(note))
        return self.into_form(job)

    @told
    def act_gallery(self, count: int, event: gr.EventData) -> list[Any]:
        """A button on a card: count, gallery, first, second, players, report, then as
        ``into_form``.
        """
        name, shown, form = str(event.name), [gr.skip()] * 6, [gr.skip()] * REUSED
        if event.act == "more":
            shown[:2] = count + MORE, view.gallery(self.studio, count + MORE)
        elif event.act == "reuse":
            video = self.studio.find(name)
            form = self.into_form(video.job, video) if video else form
        elif event.act == "compare":
            shown[2:] = [name, compare.OWN, *self.show_pair(name, compare.OWN)]
            form[0] = gr.Tabs(selected="compare")
        else:
            self.act(event)
            shown[1] = view.gallery(self.studio, count)
        return [*shown, *form]

    # ------------------------------------------------------------------------------------ plan

    def predict(
        self, asked: tuple[str, float] | None, memory: float, quality: float, *form: Any
    ) -> Iterator[list[Any]]:
        """The plan for the form's job: what it was asked for, memory slider, picked, HTML.

        ``asked``: shape of the job and top of the slider so far. For a new size a limit stays, and
        a slider at its top goes to the new one. While a size is simulated, that is said, and the
        slider rests, as its top is not known yet.
        """
        slider = gr.skip()
        try:
            job = forms.job_of(form, self.studio)
            if self.studio.simulations.known(job) is None:
                yield [gr.skip(), Limit(interactive=False), None, plan_tab.WAIT]
                slider = Limit(interactive=True)
            needs = self.studio.simulations.needs(job)
            shape, top = predicted.shape(job), plan_tab.top(self.studio, needs)
            if asked is None or asked[0] != shape:
                limited = asked is not None and memory < asked[1]
                memory, asked = min(memory, top) if limited else top, (shape, top)
                slider = Limit(maximum=top, value=memory, interactive=True)
            plan = plan_tab.predict(self.studio, job, needs, memory, quality)
            yield [asked, slider, plan.settings(), plan_tab.shown(plan, job, memory)]
        except JobError as error:
            yield [gr.skip(), slider, None, view.problem(str(error))]

    @told
    def use_plan(self, picked: Any) -> list[Any]:
        """Tab, plan and the form's acceleration with what is picked."""
        if not picked:
            raise JobError("no plan is shown; choose a memory and a quality that can be had")
        preset = PLANNED if picked["plan"] else picked["preset"] or UNACCELERATED
        return [gr.Tabs(selected="generate"), picked["plan"], preset]

    def poll(self, seen: tuple[int, int], count: int) -> list[Any]:
        """What changed since a tab last asked: seen, now, queue, latest, gallery."""
        current = self.studio.version()
        news: list[Any] = [current, *[gr.skip()] * 4]
        if current[0] != seen[0]:
            news[1:3] = view.now(self.studio), view.queue(self.studio)
        if current[1] != seen[1]:
            news[3:] = view.latest(self.studio), view.gallery(self.studio, count)
        return news
