"""Two videos side by side, with what was measured about them.

A job rendered with its reference brings exact numbers, taken from the frames before they were
encoded. For any other pair the files are compared, and the page says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from accel.core.quality import psnr
from accel.pipelines.batch.comparison import CEILING, difference_path, frame_psnr
from accel.pipelines.batch.identity import digest
from accel.pipelines.job import JobError
from accel.pipelines.pictures import GAIN, difference
from accel.pipelines.ui import charts
from accel.pipelines.ui.finished import Finished, changed_at
from accel.pipelines.ui.studio import Studio
from accel.pipelines.ui.view import PLAYABLE, each, file_url, settings_line
from accel.pipelines.video import read_video, write_video

OWN = "its own reference"
_KEPT = 20  # differences of files, and copies that browsers play: both can be made again


@dataclass(frozen=True)
class Pair:
    """Two videos beside each other: ``first`` and ``second``.

    ``frames``: dB of each frame; ``apart``: the difference as a video; ``exact``: measured on
    frames, not on files; ``shown``: what a browser plays of both.
    """

    first: Finished
    second: Finished
    db: float
    frames: list[float]
    apart: Path
    exact: bool
    shown: tuple[Path, Path]


def choices(studio: Studio) -> list[str]:
    """Return names of videos, those with a reference first."""
    videos = studio.finished()
    compared = [v.name for v in videos if v.reference]
    rest = [v.name for v in videos if v.name not in compared]
    return compared + rest


def pair(studio: Studio, first: str, second: str) -> Pair:
    """Return the pair to show.

    ``second``: a name, or ``OWN``. Raises JobError saying what is missing.
    """
    a = studio.find(first)
    if a is None:
        raise JobError("choose a video that is in the gallery")
    own = a.reference
    wanted = own if second in (OWN, "", None) else second
    b = studio.find(wanted) if wanted else None
    if b is None:
        raise JobError(f"{first} has no reference; generate it with reference, or choose another")
    apart = difference_path(studio.out, a.name)
    shown = (_playable(studio, a), _playable(studio, b))
    if wanted == own and apart.is_file() and a.db is not None and a.frames_db:
        return Pair(a, b, a.db, a.frames_db, apart, True, shown)
    return _of_files(studio, a, b, shown)


def _frames(studio: Studio, video: Finished) -> np.ndarray:
    """Return the frames of a video that is not too large for that.

    Raises JobError for one that is, or that cannot be read.
    """
    volume = (video.job.width or 0) * (video.job.height or 0) * (video.job.frames or 0)
    if volume > studio.limits.volume // 4:
        raise JobError(f"{video.name} is too large to be compared here; use accel compare")
    try:
        return read_video(video.video)
    except ValueError as error:
        raise JobError(str(error)) from error


def _playable(studio: Studio, video: Finished) -> Path:
    """Return a file with a video that browsers play: its own, or a copy in another format."""
    if video.job.format in PLAYABLE:
        return video.video
    copy = _made(studio, "copy", [str(video.video), video.sidecar["video"]["sha256"]])
    if not copy.is_file():
        _write(studio, copy, _frames(studio, video), video)
    return copy


def _of_files(studio: Studio, a: Finished, b: Finished, shown: tuple[Path, Path]) -> Pair:
    x, y = _frames(studio, a), _frames(studio, b)
    if x.shape != y.shape:
        raise JobError(f"{a.name} is {_size(x)}, {b.name} is {_size(y)}; choose two of one size")
    names = [str(a.video), str(b.video), a.sidecar["id"], b.sidecar["id"]]
    apart = _made(studio, "files", names)
    if not apart.is_file():
        _write(studio, apart, difference(x, y), a)
    frames = frame_psnr(x, y)
    return Pair(a, b, min(CEILING, psnr(x, y)), frames, apart, False, shown)


def _made(studio: Studio, kind: str, of: list[str]) -> Path:
    """Return where a video that is made of others lies."""
    return studio.out / "differences" / f"{kind}-{digest(of)[:24]}.mp4"


def _write(studio: Studio, path: Path, frames: np.ndarray, of: Finished) -> None:
    """Write a video that can be made again, and delete the oldest of its kind."""
    path.parent.mkdir(exist_ok=True)
    write_video(path, frames, fps=of.job.fps or 16.0)
    kind = path.name.partition("-")[0]
    made = sorted(path.parent.glob(f"{kind}-{'[0-9a-f]' * 24}.mp4"), key=changed_at)
    for file in made[:-_KEPT]:
        file.unlink(missing_ok=True)


def _size(video: Any) -> str:
    return f"{video.shape[2]}×{video.shape[1]}, {len(video)} frames"


def players(studio: Studio, found: Pair) -> str:
    """Return the two players, their controls and the numbers under each, for ``players.js``."""
    a, b, fps = found.first, found.second, found.first.job.fps or 16.0
    video = (
        '<video class="{0}" aria-label="{0}" src="{1}" muted playsinline preload="auto" '
        'tabindex="-1"></video>'
    )
    files = {"reference": found.shown[1], "accelerated": found.shown[0], "difference": found.apart}
    urls = {kind: escape(file_url(studio, path)) for kind, path in files.items()}
    stage = "".join(video.format(kind, url) for kind, url in urls.items())
    ratio = f"{a.job.width or 1} / {a.job.height or 1}"
    source = "measured on the frames" if found.exact else "measured on the files, coding included"
    return (
        f'<div class="compare" data-fps="{fps}" data-frames="{a.sidecar.get("frames", 1)}">'
        f'<div class="stage slider" style="--ratio: {ratio}">{stage}<div class="edge"></div></div>'
        f"{_CONTROLS}"
        f'<div class="under"><div><b>Reference</b>{_numbers(b)}</div>'
        f"<div><b>Accelerated</b>{_numbers(a, f'{found.db:.2f} dB PSNR', _speed(a, b))}"
        "</div></div>"
        f"<h3>PSNR per frame, {source}</h3>{charts.psnr_plot(found.frames)}</div>"
    )


_CONTROLS = f"""
<div class="controls">
 <button type="button" data-do="play" title="space">Play</button>
 <button type="button" data-do="back" aria-label="one frame back (left arrow)">◀|</button>
 <button type="button" data-do="ahead" aria-label="one frame ahead (right arrow)">|▶</button>
 <label>frame <input type="range" class="seek" min="0" value="0" step="1"></label>
 <output class="frame">0</output>
 <label>edge <input type="range" class="split" min="0" max="100" value="50"></label>
 <select aria-label="how to compare">
  <option value="slider">slider</option><option value="beside">side by side</option>
  <option value="apart">difference × {GAIN}</option>
 </select>
</div>"""


def _numbers(video: Finished, *more: str) -> str:
    """Return seconds, GiB and ``more`` of a video, then what it is."""
    parts = [f"{video.seconds:.2f} s" if video.seconds else ""]
    parts += [f"{video.gib:.3f} GiB" if video.gib else ""]
    shown = "".join(f"<span>{part}</span>" for part in (*parts, *more) if part)
    about = (escape(video.name), settings_line(video.job))
    return shown + "".join(f'<span class="quiet">{text}</span>' for text in about)


def _speed(a: Finished, b: Finished) -> str:
    """Return how much faster ``a`` was.

    Runs that took steps over from a stopped one do not count.
    """
    fast, slow = a.seconds, b.seconds
    if not fast or not slow or a.sidecar.get("resumed_from_step"):
        return ""
    how = "" if slow >= fast else ", slower than the reference"
    return f"speed {slow / fast:.2f}× (one run each{how})"


def report(found: Pair) -> str:
    """Draw the report: precision over layers and steps, memory by phase, and the notes."""
    video = found.first
    data, parts = video.sidecar.get("report"), []
    parts += each([data] if data else [], _ran, lambda _: f"the report of {video.name}")
    groups = [
        (label, v.phases) for label, v in (("reference", found.second), ("accelerated", video))
    ]
    where = (video.sidecar.get("environment") or {}).get("device", "cpu")
    what = "of the process" if where == "cpu" else "of the device"
    parts.append(f"<h3>Peak memory {what}, by phase</h3>{charts.memory_bars(groups)}")
    return f'<div class="report">{"".join(parts)}</div>'


def _ran(data: Mapping[str, Any]) -> str:
    """Return what ran at which step, and the notes of a report."""
    rows = charts.precision_rows(data)
    notes = "".join(f"<li>{escape(str(note))}</li>" for note in data.get("notes", ()))
    shown = f"<h3>Precision of attention, layers × steps</h3>{charts.heat_map(rows)}"
    # A layer that always has too few rows says no steps.
    layers = [layer for layer in data.get("layers") or () if layer.get("steps")]
    if layers:
        rows = charts.precision_rows({**data, "sites": layers})
        shown += f"<h3>Precision of linear layers × steps</h3>{charts.heat_map(rows)}"
    return shown + (f"<ul>{notes}</ul>" if notes else "")
