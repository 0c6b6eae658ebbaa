"""What runs behind the page, owned by the server: the queue, its thread, the finished videos.

Closing a tab stops nothing and reopening it shows what is going on, since nothing here belongs to a
tab. After a crash the next start goes on where the manifest says, from the last saved step.

    out/NAME.mp4, NAME.json    as accel render writes them
    out/differences/           see pipelines/batch/comparison.py
    out/.accel/                manifest-ui.sqlite, saved steps, ui/ (presets, order, driving videos)
"""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from accel.pipelines.batch.comparison import difference_path
from accel.pipelines.batch.engines import Engine, LocalEngine
from accel.pipelines.batch.events import Emit
from accel.pipelines.batch.lease import lease
from accel.pipelines.batch.manifest import Manifest
from accel.pipelines.batch.output import Output, prepare_folder
from accel.pipelines.batch.queue import Options
from accel.pipelines.inputs.taken import Takes
from accel.pipelines.job import JobError
from accel.pipelines.limits import StoredLimits
from accel.pipelines.ui.finished import Finished, FinishedVideos, changed_at
from accel.pipelines.ui.live import LiveQueue
from accel.pipelines.ui.predicted import Simulations
from accel.pipelines.ui.settings import Limits, Models, Presets, job_from_form, write_json
from accel.pipelines.ui.uploads import keep_driving
from accel.pipelines.video import remove


class Studio:
    """Owns the output folder ``out`` while it is open.

    ``start`` and ``close`` frame its life.

    ``temporary``: a folder for uploads and exports that goes with it; ``root``: the path under
    which a proxy serves the page, without a slash at its end.

    Raises JobError for a folder that cannot be written or that another page already owns.
    """

    def __init__(
        self,
        out: Path,
        models: Models | None = None,
        limits: Limits | None = None,
        make_engine: Callable[[Path, Emit], Engine] = LocalEngine,
        root: str = "",
    ) -> None:
        self.root = root
        self.out = out.resolve()
        self.models, self.limits = models or Models(), limits or Limits()
        prepare_folder(self.out)
        self._held = ExitStack()
        folder = tempfile.TemporaryDirectory(prefix="accel-ui-")
        self.temporary = Path(self._held.enter_context(folder))
        if not self._held.enter_context(lease(self.out / ".accel" / "ui.lock")):
            self._held.close()
            raise JobError(f"another page already works in {self.out}; choose another --out")
        self.state = self.out / ".accel" / "ui"
        self.presets = Presets(self.state / "presets.json", self.limits)
        self._manifest = Manifest(self.out / ".accel" / "manifest-ui.sqlite")
        options = Options(self.out)
        self.queue = LiveQueue(options, lambda emit: make_engine(self.out, emit), self._manifest)
        self._thread = threading.Thread(target=self.queue.serve, name="queue", daemon=True)
        self._videos = FinishedVideos(self.out)
        self.simulations = Simulations()
        self.stored = StoredLimits()

    def start(self) -> None:
        """Take over what was left, and begin to render."""
        data = _read_json(self.state / "queue.json")
        taken = {video.name: video.sidecar["id"] for video in self.finished()}
        with self.queue.lock:
            self.queue.restore(set(_names(data.get("compare"))), _names(data.get("order")), taken)
        self._thread.start()

    def close(self) -> None:
        """Save the running steps and end."""
        self.simulations.close()
        self.stored.close()
        self.queue.close()
        if self._thread.is_alive():
            self._thread.join(60)
        self._manifest.close()
        self._held.close()

    # --------------------------------------------------------------------------------------- jobs

    def submit(self, form: Mapping[str, Any], *, compare: bool = False) -> str:
        """Enter a job from the form's values; its name.

        Raises JobError.
        """
        if len(self.queue.entries) >= self.limits.waiting:
            raise JobError(f"{self.limits.waiting} jobs are waiting already; remove some")
        job = job_from_form(form, self.models, self.limits)
        if why := self.stored.why_not(job.resolved()):
            raise JobError(why)
        if compare and job.accel_plan() is None:
            raise JobError("preset none is the reference itself; choose another one to compare")
        name = self.queue.add(job, compare=compare).item.name
        self.remember()
        return name

    def takes(self, label: str) -> Takes | str:
        """Return what the call of a model that is offered takes, or why that is not known."""
        model, load = self.models.by_label.get(label), self.models.loads.get(label) or {}
        return "no such model" if model is None else self.stored.takes(model, load.get("pipeline"))

    def act(self, what: str, name: str) -> str:
        """Carry out a button of the queue or the gallery; returns what to tell.

        A name that is not there does nothing.
        """
        queue = self.queue
        if what == "stop":
            queue.stop_job(name)
        elif what == "retry":
            queue.retry(name)
        elif what == "dismiss":
            queue.dismiss(name)
        elif what in ("up", "down", "first"):
            queue.move(name, {"up": -1, "down": 1, "first": -(10**6)}[what])
        elif what == "remove":
            if name in queue.entries and not queue.remove(name):
                return f"{name} is running; stop it first"
        elif what == "delete":
            self._delete(name)
        elif what == "pause":
            queue.pause()
        self.remember()
        return ""

    def remember(self) -> None:
        """Keep the order of the queue for the next start."""
        entries = self.queue.order()
        data = {
            "order": [entry.item.name for entry in entries],
            "compare": [entry.item.name for entry in entries if entry.compare],
        }
        write_json(self.state / "queue.json", data)

    def save_preset(self, name: str, form: Mapping[str, Any]) -> None:
        """Keep the form's values under a name.

        Raises JobError.
        """
        self.presets.save(name, job_from_form(form, self.models, self.limits))

    def version(self) -> tuple[int, int]:
        """Return two counts that change when the queue and when the finished videos change."""
        return self.queue.version, changed_at(self.out)

    # ------------------------------------------------------------------------------------- videos

    def finished(self) -> list[Finished]:
        """Return finished videos, the newest first."""
        return self._videos.read()

    @property
    def left_out(self) -> list[str]:
        """Which files of the output folder are no finished videos, and why."""
        return self._videos.notes

    def find(self, name: str) -> Finished | None:
        """Return a finished video by its exact name."""
        return next((video for video in self.finished() if video.name == name), None)

    def _delete(self, name: str) -> None:
        """Delete a finished video, found by name among those that are there."""
        video = self.find(name)
        if video is None:
            return
        Output(self.out, video.name, video.job.format).remove()
        remove(difference_path(self.out, video.name))
        self.queue.remove(name)

    # ------------------------------------------------------------------------------------ driving

    def keep_driving(self, uploaded: Sequence[Path]) -> Path:
        """Keep an uploaded driving video, as a job may run long after; its path.

        Raises JobError for what is no video.
        """
        return keep_driving(uploaded, self.state / "driving", self.limits.upload)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _names(value: Any) -> list[str]:
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []
