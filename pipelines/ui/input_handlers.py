"""What the form does when a picture or a video is given to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accel.pipelines.job import JobError
from accel.pipelines.ui import inputs
from accel.pipelines.ui.handlers import Changes, refused
from accel.pipelines.ui.parts import Parts
from accel.pipelines.ui.studio import Studio


class InputHandlers:
    """Handlers of the pictures and the video of the form over one studio.

    ``given``: what the server keeps of them, by the names of a job.
    """

    def __init__(self, studio: Studio, parts: Parts) -> None:
        self.studio, self.parts = studio, parts

    def take_picture(self, *, key: str, file: str | None, given: dict[str, Any]) -> Changes:
        """Keep an uploaded picture as the input ``key``, or forget it."""
        return self._taken(key, [file] if file else [], given)

    def take_video(self, *, file: list[str] | None, given: dict[str, Any]) -> Changes:
        """Keep an uploaded video, or forget it."""
        return self._taken(inputs.VIDEO, file or [], given)

    def _taken(self, key: str, names: list[str], given: dict[str, Any]) -> Changes:
        files, folder = [Path(name) for name in names], self.studio.state / "inputs"
        if not files:
            return self._changed(given, key, None)
        try:
            if key == inputs.VIDEO:
                kept = inputs.keep_video(files, folder, self.studio.limits)
            else:
                kept = inputs.keep_picture(files[0], folder, self.studio.limits)
        except JobError as error:
            room = {self.parts.generate.inputs[key]: None}
            return refused(error, self._changed(given, key, None) | room)
        return self._changed(given, key, kept)

    def _changed(self, given: dict[str, Any], key: str, path: Path | None) -> Changes:
        rest = {name: value for name, value in given.items() if name != key}
        new = rest if path is None else {**rest, key: str(path)}
        return {self.parts.kept.given: new, self.parts.generate.given: inputs.listed(new)}
