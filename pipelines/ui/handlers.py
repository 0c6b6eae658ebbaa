"""What the page does when something is pressed: from the values of widgets to new values."""

from __future__ import annotations

import functools
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from accel.pipelines.job import Job, JobError
from accel.pipelines.ui import compare, drawing, forms, view
from accel.pipelines.ui.settings import settings_of
from accel.pipelines.ui.studio import Studio

MORE = 24  # cards that "more" adds to the gallery
REUSED = 6 + len(drawing.CAMERA) + len(forms.FIELDS)  # values that ``into_form`` returns


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
    kept on the server; ``form``: values of ``forms.FIELDS``.
    """

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    # -------------------------------------------------------------------------------- generate

    @told
    def generate(self, compared: bool, moved: bool, drawn: Any, *form: Any) -> None:
        """Enter a job."""
        name = self.studio.submit(forms.from_form(form, moved, drawn), compare=compared)
        gr.Info(f"{escape(name)} is in the queue.", duration=3)

    def act(self, event: gr.EventData) -> None:
        """A button inside server-made HTML."""
        message = self.studio.act(str(event.act), str(event.name))
        if message:
            gr.Warning(escape(message))

    def preset_names(self) -> list[str]:
        """For the menu of presets."""
        return list(self.studio.presets.all())

    @told
    def save_preset(self, name: str, moved: bool, drawn: Any, *form: Any) -> Any:
        """Keep the form; the menu with its name."""
        self.studio.save_preset(name or "", forms.from_form(form, moved, drawn))
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
    def export(self, what: str, moved: bool, drawn: Any, *form: Any) -> Any:
        """A job file of the form ("job"), the "queue" or the "gallery"."""
        values = forms.from_form(form, moved, drawn) if what == "job" else None
        return gr.File(forms.exported(self.studio, what, values), visible=True)

    def into_form(self, job: Job) -> list[Any]:
        """The form and the drawing filled with a job, and shown: tab, moved, drawn, sketch, canvas,
        strength, camera, form.
        """
        job = forms.unnamed(job.resolved())
        drawn = {"motion": job.motion, "strength": job.strength} if job.motion else None
        sketch = drawing.sketch_of(job)
        size = (job.width or 64, job.height or 64, job.frames or 17)
        canvas = drawing.canvas(size, None, sketch["layers"])
        strength = job.strength if isinstance(job.strength, float) else 0.1
        shown = [gr.Tabs(selected="generate"), drawn is not None, drawn, sketch, canvas, strength]
        return [*shown, *drawing.camera_of(job), *forms.to_form(job, self.studio.models)]

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
        shown = drawing.flow_preview(drawn["motion"], size, fps) if drawn else ""
        return [drawn, drawn is not None, shown]

    @told
    def show_behind(self, name: str | None, *form: Any) -> Any:
        """The canvas at the form's size over the first frame of a video."""
        size, _ = forms.size_of(form, self.studio)
        return drawing.canvas(size, self.studio.find(name) if name else None)

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
            form = self.into_form(video.job) if video else form
        elif event.act == "compare":
            shown[2:] = [name, compare.OWN, *self.show_pair(name, compare.OWN)]
            form[0] = gr.Tabs(selected="compare")
        else:
            self.act(event)
            shown[1] = view.gallery(self.studio, count)
        return [*shown, *form]

    def poll(self, seen: tuple[int, int], count: int) -> list[Any]:
        """What changed since a tab last asked: seen, now, queue, latest, gallery."""
        current = self.studio.version()
        news: list[Any] = [current, *[gr.skip()] * 4]
        if current[0] != seen[0]:
            news[1:3] = view.now(self.studio), view.queue(self.studio)
        if current[1] != seen[1]:
            news[3:] = view.latest(self.studio), view.gallery(self.studio, count)
        return news
