"""Two videos side by side, with what was measured about them.

A job rendered with its reference brings exact numbers, taken from the frames before they were
encoded. For any other pair the files are compared, and the page says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from accel.core.quality import psnr
from accel.pipelines.batch.comparison import CEILING, difference_path, frame_psnr
from accel.pipelines.batch.identity import digest
from accel.pipelines.job import JobError
from accel.pipelines.pictures import GAIN, difference
from accel.pipelines.ui import charts
from accel.pipelines.ui.studio import Finished, Studio
from accel.pipelines.ui.view import file_url, settings_line
from accel.pipelines.video import read_video, write_video

PLAYABLE = ("mp4", "webm")
OWN = "its own reference"
_KEPT = 20  # differences of files, which can be made again


@dataclass(frozen=True)
class Pair:
    """Two videos beside each other: ``first`` and ``second``.

    ``frames``: dB of each frame; ``apart``: the difference as a video; ``exact``: measured on
    frames, not on files.
    """

    first: Finished
    second: Finished
    db: float
    frames: list[float]
    apart: Path
    exact: bool


def choices(studio: Studio) -> list[str]:
    """Return names of videos that can be played, those with a reference first."""
    videos = [v for v in studio.finished() if v.job.format in PLAYABLE]
    compared = [v.name for v in videos if (v.comparison or {}).get("reference")]
    rest = [v.name for v in videos if v.name not in compared]
    return compared + rest


def pair(studio: Studio, first: str, second: str) -> Pair:
    """Return the pair to show.

    ``second``: a name, or ``OWN``. Raises JobError saying what is missing.
    """
    a = studio.find(first)
    if a is None or a.job.format not in PLAYABLE:
        raise JobError("choose a video that is in the gallery")
    measured = a.comparison or {}
    own = measured.get("reference") or ""
    wanted = own if second in (OWN, "", None) else second
    b = studio.find(wanted) if wanted else None
    if b is None or b.job.format not in PLAYABLE:
        raise JobError(f"{first} has no reference; generate it with reference, or choose another")
    apart = difference_path(studio.out, a.name)
    if wanted == own and apart.is_file():
        numbers = [float(v) for v in measured.get("psnr_frames", ())]
        return Pair(a, b, float(measured["psnr_db"]), numbers, apart, True)
    return _of_files(studio, a, b)


def _of_files(studio: Studio, a: Finished, b: Finished) -> Pair:
    for video in (a, b):
        volume = (video.job.width or 0) * (video.job.height or 0) * (video.job.frames or 0)
        if volume > studio.limits.volume // 4:
            raise JobError(f"{video.name} is too large to be compared here; use accel compare")
    x, y = read_video(a.video), read_video(b.video)
    if x.shape != y.shape:
        raise JobError(f"{a.name} is {_size(x)}, {b.name} is {_size(y)}; choose two of one size")
    key = digest([str(a.video), str(b.video), a.sidecar["id"], b.sidecar["id"]])[:24]
    apart = studio.out / "differences" / f"files-{key}.mp4"
    if not apart.is_file():
        apart.parent.mkdir(exist_ok=True)
        write_video(apart, difference(x, y), fps=a.job.fps or 16.0)
        made = sorted(apart.parent.glob("files-*.mp4"), key=lambda file: file.stat().st_mtime_ns)
        for file in made[:-_KEPT]:
            file.unlink(missing_ok=True)
    frames = frame_psnr(x, y)
    return Pair(a, b, min(CEILING, psnr(x, y)), frames, apart, False)


def _size(video: Any) -> str:
    return f"{video.shape[2]}×{video.shape[1]}, {len(video)} frames"


def players(found: Pair) -> str:
    """Return the two players, their controls and the numbers under each, for ``players.js``."""
    a, b, fps = found.first, found.second, found.first.job.fps or 16.0
    video = (
        '<video class="{0}" aria-label="{0}" src="{1}" muted playsinline preload="auto" '
        'tabindex="-1"></video>'
    )
    urls = {"reference": b.video, "accelerated": a.video, "difference": found.apart}
    stage = "".join(video.format(kind, escape(file_url(path))) for kind, path in urls.items())
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
    seconds, peak = video.sidecar.get("seconds"), video.sidecar.get("peak_bytes")
    parts = [f"{seconds:.2f} s" if seconds else "", f"{peak / 2**30:.3f} GiB" if peak else ""]
    shown = "".join(f"<span>{part}</span>" for part in (*parts, *more) if part)
    about = (escape(video.name), settings_line(video.job))
    return shown + "".join(f'<span class="quiet">{text}</span>' for text in about)


def _speed(a: Finished, b: Finished) -> str:
    """Return how much faster ``a`` was.

    Runs that took steps over from a stopped one do not count.
    """
    fast, slow = a.sidecar.get("seconds"), b.sidecar.get("seconds")
    if not fast or not slow or a.sidecar.get("resumed_from_step"):
        return ""
    how = "" if slow >= fast else ", slower than the reference"
    return f"speed {slow / fast:.2f}× (one run each{how})"


def report(found: Pair) -> str:
    """Draw the report: precision over layers and steps, memory by phase, and the notes."""
    video = found.first
    data, parts = video.sidecar.get("report"), []
    if data:
        rows = charts.precision_rows(data)
        parts.append(f"<h3>Precision of attention, layers × steps</h3>{charts.heat_map(rows)}")
        notes = "".join(f"<li>{escape(str(note))}</li>" for note in data.get("notes", ()))
        parts.append(f"<ul>{notes}</ul>" if notes else "")
    groups = [
        (label, v.sidecar.get("phase_peak_bytes") or {})
        for label, v in (("reference", found.second), ("accelerated", video))
    ]
    where = (video.sidecar.get("environment") or {}).get("device", "cpu")
    what = "of the process" if where == "cpu" else "of the device"
    parts.append(f"<h3>Peak memory {what}, by phase</h3>{charts.memory_bars(groups)}")
    return f'<div class="report">{"".join(parts)}</div>'
