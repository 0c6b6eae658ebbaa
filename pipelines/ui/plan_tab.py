"""What a job will need by prediction, and what runs needed by measurement, as HTML.

A run counts when it was measured beside its reference. On a CPU what is measured is the memory of
the whole process, of which a plan decides little: there, runs are not left out for their memory.
"""

from __future__ import annotations

import math
from html import escape

from accel.memory.fit import Needs
from accel.pipelines.job import Job
from accel.pipelines.ui import charts, forecast, predicted
from accel.pipelines.ui.finished import Finished
from accel.pipelines.ui.predicted import Choice, Predicted
from accel.pipelines.ui.studio import Studio
from accel.pipelines.ui.view import acceleration, each, settings_line

QUALITY = 30.0  # dB, where nothing is measured yet
WAIT = '<p class="quiet" role="status">Simulating the memory of this model and size.</p>'


# -------------------------------------------------------------------------------------- predicted


def predict(studio: Studio, job: Job, needs: Needs, memory: float, quality: float) -> Predicted:
    """Return the plan for a resolved job within ``memory`` GiB and at ``quality`` dB.

    Raises JobError.
    """
    return predicted.predict(needs, choices(studio, job), memory, quality)


def choices(studio: Studio, job: Job) -> tuple[Choice, ...]:
    """Return the accelerations with what like runs of this page say about them."""
    like = [v for v in measured(studio) if v.job.model == job.model]
    found = []
    for preset in predicted.ACCELERATIONS:
        psnr = [_db(v) for v in like if preset and v.job.preset == preset]
        seconds = forecast.seconds(studio, _with(job, preset))
        if seconds is None and preset is None:
            seconds = _reference_seconds(like, job)
        db = math.inf if preset is None else predicted.expected(psnr)
        found.append(Choice(preset, db, len(psnr), seconds))
    return tuple(found)


def _with(job: Job, preset: str | None) -> Job:
    return Job(**{**job.to_dict(), "preset": preset, "plan": None})


def _reference_seconds(like: list[Finished], job: Job) -> float | None:
    """Seconds of a run without acceleration, from the nearest reference that ran beside one."""

    def work(j: Job) -> int:
        return (j.width or 0) * (j.height or 0) * (j.frames or 0) * (j.steps or 0)

    timed = [v for v in like if v.reference_seconds and work(v.job)]
    near = min(timed, key=lambda v: abs(work(v.job) - work(job)), default=None)
    if near is None or not work(job):
        return None
    return (near.reference_seconds or 0.0) * work(job) / work(near.job)


def top(studio: Studio, needs: Needs) -> float:
    """End of the memory slider in GiB: room for the job as it comes, and for measured runs."""
    plain = 1.25 * max(needs.phases(1).values()) / 2**30
    runs = [v.gib or 0.0 for v in measured(studio) if _on_device(v)]
    return math.ceil(1000 * max(plain, *runs, 0.0)) / 1000


def shown(plan: Predicted, job: Job, memory: float) -> str:
    """Return a plan: in words, its peaks by phase, and what it was chosen from."""
    more = "more than " if plan.at_least else "~"
    peak = f"{more}{max(plan.peaks.values()) / 2**30:.3f} GiB"
    unsliced = " without slices" if plan.slices > 1 and plan.choice.seconds else ""
    text = ", ".join((peak, _seconds(plan.choice) + unsliced, _quality(plan.choice)))
    size = f"{job.width}×{job.height}, {job.frames} frames, {job.steps or 'default'} steps"
    bars = [("as it comes", plan.plain)]
    if plan.slices > 1:
        bars.append(("planned", plan.peaks))
    rows = "".join(_choice_row(c, best=c is plan.choice) for c in plan.choices)
    head = "".join(f"<th>{h}</th>" for h in ("acceleration", "quality", "time"))
    return (
        f"<h3>Predicted for {size}, {escape(job.model.rsplit('/', 1)[-1])}</h3>"
        f"<p><b>{escape(plan.name)}</b>: {escape(text)}.</p>"
        f"<h3>Peak memory by phase, simulated: weights and live tensors</h3>"
        f"{charts.memory_bars(bars, round(memory * 2**30))}"
        f'<table class="choices"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    )


def _seconds(choice: Choice) -> str:
    return "time unknown" if choice.seconds is None else f"~{choice.seconds:.1f} s"


def _quality(choice: Choice) -> str:
    if choice.preset is None:
        return "the reference itself"
    return "quality unknown" if choice.db is None else f"{choice.db:.1f} dB or more"


def _choice_row(choice: Choice, *, best: bool) -> str:
    source = f"{choice.runs} like runs" if choice.runs != 1 else "1 like run, 10 dB off"
    if choice.preset is None:
        source = "nothing is changed"
    elif not choice.runs:
        source = "generate once with reference"
    name = f'{choice.preset or "none"}<br><span class="quiet">{source}</span>'
    inside = "".join(f"<td>{cell}</td>" for cell in (name, _quality(choice), _seconds(choice)))
    return f'<tr class="best">{inside}</tr>' if best else f"<tr>{inside}</tr>"


# --------------------------------------------------------------------------------------- measured


def measured(studio: Studio) -> list[Finished]:
    """Return finished videos that were compared with their reference, the fastest first."""
    found = [v for v in studio.finished() if v.db is not None and v.gib and v.seconds]
    return sorted(found, key=lambda v: v.seconds or 0.0)


def least(studio: Studio) -> float:
    """Return where the quality slider starts, so that every run fits: dB."""
    return math.floor(2 * min((_db(v) for v in measured(studio)), default=QUALITY)) / 2


def table(studio: Studio, memory: float, quality: float) -> str:
    """Return the runs within ``memory`` (GiB) and ``quality`` (dB); the fastest is marked."""
    runs = measured(studio)
    if not runs:
        return (
            '<p class="quiet">Nothing is measured yet. Generate a video with its reference, and '
            "its time, memory and quality appear here.</p>"
        )
    fit = [v for v in runs if _in(v, memory) and _db(v) >= quality - 5e-3]
    rows = "".join(each(
        fit, lambda v: _row(v, best=v is fit[0]), lambda v: v.name,
        '<tr><td colspan="5">{}</td></tr>',
    ))  # fmt: skip
    if fit:
        best = fit[0]
        text = (
            f"{len(fit)} of {len(runs)} measured runs fit; the fastest is "
            f"<b>{escape(best.name)}</b> ({escape(acceleration(best.job))})."
        )
    else:
        text = f"None of the {len(runs)} measured runs fits; allow more memory or less quality."
    head = "".join(f"<th>{h}</th>" for h in ("run", "seconds", "GiB", "dB", "speed"))
    points = [(v.name, v.gib or 0.0, _db(v)) for v in fit]
    return (
        f'<h3>Measured</h3><p>{text}</p><table class="runs"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table>{charts.scatter(points)}"
    )


def _db(video: Finished) -> float:
    return video.db or 0.0


def _on_device(video: Finished) -> bool:
    return (video.sidecar.get("environment") or {}).get("device", "cpu") != "cpu"


def _in(video: Finished, memory: float) -> bool:
    return not _on_device(video) or (video.gib or 0.0) <= memory + 5e-4


def _row(video: Finished, *, best: bool) -> str:
    model, plain = video.job.model.rsplit("/", 1)[-1], video.reference_seconds
    about = f'{escape(video.name)}<br><span class="quiet">{escape(model)}, '
    cells = (
        f"{video.seconds:.2f}", f"{video.gib:.3f}", f"{_db(video):.2f}",
        f"{plain / video.seconds:.2f}×" if plain and video.seconds else "",
    )  # fmt: skip
    inside = f"<td>{about}{settings_line(video.job)}</span></td>"
    inside += "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr class="best">{inside}</tr>' if best else f"<tr>{inside}</tr>"
