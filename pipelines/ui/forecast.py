"""What the form's job will take, said beside the button before it is pressed."""

from __future__ import annotations

from html import escape
from typing import Any, cast

from accel.memory.fit import Needs
from accel.pipelines.batch.predict import Predictor, measured_rows
from accel.pipelines.batch.simulated import Answer
from accel.pipelines.job import Job
from accel.pipelines.ui.studio import Studio

UNKNOWN = Answer(why_not="not asked for")
WAIT = '<p class="quiet" role="status">Simulating its memory.</p>'


def seconds(studio: Studio, job: Job) -> float | None:
    """Return the seconds of a resolved job, from like ones that this folder knows; or None."""
    predictor = Predictor(measured_rows(studio.out), cast(Any, lambda job: UNKNOWN))
    return predictor.predict(job).seconds


def peak(needs: Needs, job: Job) -> int:
    """Return the bytes of a job's worst phase, by its plan."""
    plan = job.accel_plan()
    asked = 1 if plan is None or plan.slicing is None else plan.slicing.slices
    slices = max(n for n in needs.denoise if n <= asked)
    return needs.peak(slices) if plan is None else needs.peak(slices, plan.rehash, plan.linear)


def shown(studio: Studio, job: Job, needs: Needs | str) -> str:
    """Return time and memory of a resolved job as HTML.

    Args:
        studio: Whose folder knows like jobs.
        job: What is asked about.
        needs: Its memory, or why that is not known.
    """
    time = seconds(studio, job)
    parts = ["time unknown until a like job has run" if time is None else f"~{_span(time)}"]
    if isinstance(needs, str):
        parts.append(needs)
    else:
        more = "more than " if needs.at_least else "~"
        parts.append(f"{more}{peak(needs, job) / 2**30:.2f} GiB of weights and live tensors")
    return f'<p class="quiet">Predicted: {escape(", ".join(parts))}.</p>'


def _span(value: float) -> str:
    return f"{value:.1f} s" if value < 90 else f"{value / 60:.0f} min"
