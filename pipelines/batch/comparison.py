"""Keep what a job is compared with: reference and difference videos, numbers per frame.

NAME-reference.mp4, .json     the same seed unaccelerated, a finished job like any other
differences/NAME.mp4          |accelerated - reference|, enlarged, from the exact frames
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from accel.core.quality import psnr_by_frame
from accel.pipelines.batch.identity import job_id
from accel.pipelines.batch.naming import Naming
from accel.pipelines.batch.output import Output
from accel.pipelines.job import Job
from accel.pipelines.pictures import difference
from accel.pipelines.video import write_video

if TYPE_CHECKING:
    from accel.pipelines.generate import Result

CEILING = 100.0  # dB given for two equal frames, so that the number is finite


def reference_name(name: str) -> str:
    """Name of the reference of the job ``name``."""
    return f"{name}-reference"


def difference_path(out: Path, name: str) -> Path:
    """Return where the difference video of a job lies."""
    return out / "differences" / f"{name}.mp4"


def frame_psnr(a: np.ndarray, b: np.ndarray) -> list[float]:
    """PSNR in dB of each pair of frames of uint8 videos [F, H, W, 3], at most ``CEILING``."""
    return [min(CEILING, value) for value in psnr_by_frame(a, b)]


def keep_reference(
    out: Path, name: str, plain: Job, result: Result, reference: Result, phases: dict[str, int],
    rungs: list[str],
) -> dict[str, Any]:  # fmt: skip
    """Write both videos; what to add to the job's ``comparison``.

    ``plain`` is the reference's job, ``phases`` its peak bytes, ``rungs`` how memory was saved.
    Raises OSError if they cannot be written.
    """
    plain, key = replace(plain, name=reference_name(name)), job_id(plain)
    given = Naming(out).name(plain, key)
    assert given is not None, "the first job of a queue has no equal"
    plain = replace(plain, name=given.name)
    output = Output(out, plain.name, plain.format)
    sidecar = {
        "seconds": reference.seconds, "peak_bytes": max(phases.values()),
        "phase_peak_bytes": phases, "frames": len(reference.frames), "report": None,
        "comparison": None, "memory": rungs, "resumed_from_step": 0, "steps_not_saved": "",
    }  # fmt: skip
    output.write(reference.frames, plain, key, sidecar)
    path = difference_path(out, name)
    path.parent.mkdir(exist_ok=True)
    write_video(path, difference(result.frames, reference.frames), fps=plain.fps or 16.0)
    numbers = frame_psnr(result.frames, reference.frames)
    return {"reference": plain.name, "psnr_frames": [round(v, 2) for v in numbers]}
