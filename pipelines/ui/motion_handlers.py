"""What the tab Motion does: the drawing, the camera, a driving video, and the flow of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accel.pipelines.job import Job, JobError
from accel.pipelines.ui import drawing, forms, view
from accel.pipelines.ui.handlers import NOTHING, Changes, driving_of, refused, told
from accel.pipelines.ui.parts import Parts
from accel.pipelines.ui.studio import Studio
from accel.pipelines.ui.widgets import gr


class MotionHandlers:
    """Handlers of the tab Motion over one studio."""

    def __init__(self, studio: Studio, parts: Parts) -> None:
        self.studio, self.parts = studio, parts

    def keep_sketch(self, event: gr.EventData) -> Changes:
        """Keep what the canvas sent."""
        return {self.parts.kept.sketch: event.drawing}

    def take_driving(self, *, file: list[str] | None, start: Any, end: Any, cuts: bool) -> Changes:
        """Make the driving video of a job of an upload."""
        tab = self.parts.motion
        if not file:
            return {tab.driving: None}
        try:
            kept = self.studio.keep_driving([Path(name) for name in file])
        except JobError as error:
            return refused(error, {tab.driving: None, tab.video["file"]: None})
        return {tab.driving: driving_of(kept, start, end, cuts)}

    def cut_driving(
        self, *, driving: Any, start: Any, end: Any, cuts: bool, **motion: Any
    ) -> Changes:
        """Use other frames of the driving video that is there; ``motion``: as ``read_motion``."""
        cut = driving_of(driving["file"], start, end, cuts) if driving else None
        if cut == driving:
            return NOTHING
        return {self.parts.motion.driving: cut, **self.read_motion(driving=cut, **motion)}

    def read_motion(self, *, sketch: Any, driving: Any, strength: float, **values: Any) -> Changes:
        """Read the motion of all widgets; ``values``: of the camera and of the form.

        What is wrong with it is told where it would be shown, and no job gets an older one.
        """
        camera = {name: values.pop(name) for name in drawing.CAMERA}
        drawn = None
        try:
            size, fps = forms.size_of(values, self.studio)
            found = drawing.read_motion(self.studio, sketch, camera, driving, strength, size)
            shown = drawing.flow_preview(found["motion"], size, fps) if found else drawing.NO_FLOW
            drawn = found
        except JobError as error:
            shown = view.problem(str(error))
        return {
            self.parts.kept.drawn: drawn,
            self.parts.generate.moved: drawn is not None,
            self.parts.motion.flow: shown,
        }

    def fit(self, *, shape: tuple[int, int, int], **form: Any) -> Changes:
        """Bring the canvas to the form's size, if that is another one."""
        try:
            size, _ = forms.size_of(form, self.studio)
        except JobError:
            return NOTHING  # told when something is made of the form
        if tuple(shape) == size:
            return NOTHING
        return self._canvas(size, drawing.canvas(size, keep=True))

    @told
    def show_behind(self, *, behind: str | None, **form: Any) -> Changes:
        """Show the canvas at the form's size over the first frame of a video."""
        size, _ = forms.size_of(form, self.studio)
        video = self.studio.find(behind) if behind else None
        return self._canvas(size, drawing.canvas(size, video))

    @told
    def show_given(self, *, given: dict[str, Any], **form: Any) -> Changes:
        """Show the canvas at the form's size over the picture that a job starts from."""
        try:
            size, _ = forms.size_of(form, self.studio)
        except JobError:
            return NOTHING  # told when something is made of the form
        file, fit = given.get("image"), given.get("fit") or Job.fit
        picture = Path(file) if file else None
        return self._canvas(size, drawing.canvas(size, picture, fit=fit))

    def _canvas(self, size: tuple[int, int, int], shown: dict[str, Any]) -> Changes:
        return {self.parts.kept.shape: size, self.parts.motion.canvas: shown}
