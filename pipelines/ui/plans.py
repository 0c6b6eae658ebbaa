"""Measured runs, to choose from: what did each preset cost, and how far was it from the reference?

Nothing here is predicted; a run counts when it was measured beside its reference.
"""

from __future__ import annotations

import math
from html import escape

from accel.pipelines.ui import charts
from accel.pipelines.ui.studio import Finished, Studio


def measured(studio: Studio) -> list[Finished]:
    """Finished videos that were compared with their reference, the fastest first."""
    found = [v for v in studio.finished() if v.comparison and v.sidecar.get("peak_bytes")]
    return sorted(found, key=lambda v: float(v.sidecar["seconds"]))


def limits(studio: Studio) -> tuple[float, float, float]:
    """Where the sliders start, so that every run fits, and the end of the first: GiB, dB, GiB."""
    runs = measured(studio)
    most = max((_gib(v) for v in runs), default=8.0)
    least = min((_db(v) for v in runs), default=0.0)
    return math.ceil(100 * most) / 100, math.floor(2 * least) / 2, max(16.0, math.ceil(2 * most))


def table(studio: Studio, memory: float, quality: float) -> str:
    """The runs within ``memory`` (GiB) and of at least ``quality`` (dB); the fastest is marked."""
    runs = measured(studio)
    if not runs:
        return (
            '<p class="quiet">Nothing is measured yet. Generate a video with its reference, and '
            "its time, memory and quality appear here.</p>"
        )
    fit = [v for v in runs if _gib(v) <= memory + 5e-4 and _db(v) >= quality - 5e-3]
    rows = "".join(_row(v, best=v is fit[0]) for v in fit)
    if fit:
        best = fit[0]
        text = (
            f"{len(fit)} of {len(runs)} measured runs fit; the fastest is "
            f"<b>{escape(best.name)}</b> ({escape(best.job.preset or 'custom plan')})."
        )
    else:
        text = f"None of the {len(runs)} measured runs fits; allow more memory or less quality."
    head = "".join(
        f"<th>{h}</th>"
        for h in ("run", "model", "acceleration", "size", "steps", "seconds", "GiB", "dB", "speed")
    )
    points = [(v.name, _gib(v), _db(v)) for v in fit]
    return (
        f'<p>{text}</p><div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{charts.scatter(points)}"
    )


def _gib(video: Finished) -> float:
    return float(video.sidecar["peak_bytes"]) / 2**30


def _db(video: Finished) -> float:
    return float(video.sidecar["comparison"]["psnr_db"])


def _row(video: Finished, *, best: bool) -> str:
    job, compared = video.job, video.sidecar["comparison"]
    cells = (
        video.name, job.model.rsplit("/", 1)[-1], job.preset or "custom",
        f"{job.width}×{job.height}×{job.frames}", job.steps, f"{video.sidecar['seconds']:.2f}",
        f"{_gib(video):.3f}", f"{_db(video):.2f}", f"{compared['speedup']:.2f}×",
    )  # fmt: skip
    inside = "".join(f"<td>{escape(str(cell))}</td>" for cell in cells)
    return f'<tr class="best">{inside}</tr>' if best else f"<tr>{inside}</tr>"
