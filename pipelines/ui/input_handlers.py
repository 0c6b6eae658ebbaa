"""What the form does when a picture or a video is given to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accel.pipelines.ui import inputs
from accel.pipelines.ui.handlers import Changes, told
from accel.pipelines.ui.parts import Parts
from accel.pipelines.ui.studio import Studio


class InputHandlers:
    """Handlers of the pictures and the video of the form over one studio.

    ``given``: what the server keeps of them, by the names of a job.
    """

    def __init__(self, studio: Studio, parts: Parts) -> None:
        self.studio, self.parts = studio, parts

    @told
    def take_picture(self, *, key: str, file: str | None, given: dict[str, Any]) -> Changes:
        """Keep an uploaded picture as the input ``key``, or forget it."""
        if not file:
            return self._changed(given, key, None)
        folder = self.studio.state / "inputs"
        return self._changed(
            given, key, inputs.keep_picture(Path(file), folder, self.studio.limits)
        )

    @told
    def take_video(self, *, file: list[str] | None, given: dict[str, Any]) -> Changes:
        """Keep an uploaded video, or forget it."""
        if not file:
            return self._changed(given, inputs.VIDEO, None)
        files, folder = [Path(name) for name in file], self.studio.state / "inputs"
        kept = inputs.keep_video(files, folder, self.studio.limits)
        return self._changed(given, inputs.VIDEO, kept)

    def drop(self, *, key: str, given: dict[str, Any]) -> Changes:
        """Make room for another file where one was refused."""
        return {**self._changed(given, key, None), self.parts.generate.inputs[key]: None}

    def _changed(self, given: dict[str, Any], key: str, path: Path | None) -> Changes:
        rest = {name: value for name, value in given.items() if name != key}
        new = rest if path is None else {**rest, key: str(path)}
        return {self.parts.kept.given: new, self.parts.generate.given: inputs.listed(new)}
